"""The ledger's verdicts follow from its numbers, and its table loses nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.notebook import Entry, Ledger

GAINS = st.floats(0.01, 100)


@pytest.mark.parametrize(
    ("predicted", "measured", "verdict"),
    [
        (2.0, 2.0, "held"),
        (2.0, 1.71, "held"),
        (2.0, 1.69, "fell short"),
        (2.0, 2.29, "held"),
        (2.0, 2.31, "exceeded"),
        (2.0, 0.99, "lost"),
        (0.5, 0.5, "lost"),
        (1.0, 1.0, "held"),
        (None, 1.06, "gained"),
        (None, 1.04, "no difference"),
        (None, 0.96, "no difference"),
        (None, 0.94, "lost"),
    ],
)
def test_the_verdict(predicted, measured, verdict):
    assert Entry("a", "b", predicted, "bytes", measured, "recorded").verdict == verdict


@given(GAINS, GAINS)
def test_a_slowdown_is_never_called_anything_else(predicted, measured):
    assert (Entry("a", "b", predicted, "bytes", measured, "measured").verdict == "lost") == (measured < 1)


@pytest.mark.parametrize("gain", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_gain_is_refused(gain):
    with pytest.raises(InvalidRequestError, match="fusion: predicted gain"):
        Entry("fusion", "here", gain, "bytes", 1.0, "measured")
    with pytest.raises(InvalidRequestError, match="fusion: measured gain"):
        Entry("fusion", "here", 1.0, "bytes", gain, "measured")


def test_the_table_has_every_entry_with_its_label_and_its_fate():
    ledger = Ledger(
        [
            Entry("graphs", "H100", 2.9, "calls", 2.5, "recorded"),
            Entry("<b>", "here", 1.8, "bytes", 0.3, "measured", now="withdrawn"),
        ],
        "What we did",
    )
    lines = repr(ledger).splitlines()
    assert lines[1].split() == ["graphs", "H100", "2.90×", "calls", "2.50×", "held", "recorded", "in", "use"]
    assert lines[2].split() == ["<b>", "here", "1.80×", "bytes", "0.30×", "lost", "measured", "withdrawn"]
    table = ledger._repr_html_()
    assert "&lt;b&gt;" in table
    assert "<strong>lost</strong>" in table
    assert "ms-recorded" in table
    assert table.count("<tr>") == 3
    assert 'aria-label="What we did"' in table
    assert ledger.count("lost") == ledger.count("held") == 1


def test_an_empty_ledger_is_refused():
    with pytest.raises(InvalidRequestError, match="at least one entry"):
        Ledger([])
