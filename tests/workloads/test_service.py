"""Percentiles against numpy's definition, and goodput against counting by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.workloads.service import SLO, Service, spread, summary

seconds = st.floats(0, 100, allow_nan=False)


@st.composite
def services(draw):
    due = draw(seconds)
    gaps = draw(st.lists(seconds, min_size=1, max_size=6))
    arrivals = [due + sum(gaps[: index + 1]) for index in range(len(gaps))]
    error = draw(st.sampled_from([None, None, "http_429", "broken"]))
    return Service(due, due, arrivals, 3, len(arrivals), ended_s=arrivals[-1], error=error)


def made(*arrivals_s, due_s=0.0, sent_s=0.0, tokens=None, error=None):
    return Service(due_s, sent_s, list(arrivals_s), 10, tokens or len(arrivals_s), 0, arrivals_s[-1], error)


def by_rank(values, share):
    """The textbook's: linear between the values at the ranks around share × (n - 1)."""
    ordered, at = sorted(values), share * (len(values) - 1)
    below, above = ordered[math.floor(at)], ordered[math.ceil(at)]
    return below + (above - below) * (at - math.floor(at))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_spread_is_the_textbooks(values):
    found = spread(values)
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        assert found[name] == pytest.approx(by_rank(values, share), abs=1e-6)
    assert found["mean"] == pytest.approx(math.fsum(values) / len(values), abs=1e-6)
    assert found["max"] == max(values)
    assert list(found) == ["mean", "p50", "p90", "p99", "max"]


def test_spread_of_nothing():
    assert spread([]) is None


def test_what_a_user_sees():
    one = made(1.5, 1.6, 1.9, due_s=1.0, sent_s=1.2, tokens=5)
    assert one.ttft_s == pytest.approx(0.5)  # from when it was due, not from when it was sent
    assert one.gaps_s == pytest.approx([0.1, 0.3])
    assert one.tpot_s == pytest.approx(0.1)  # by tokens, of which parts may have had several
    assert one.e2e_s == pytest.approx(0.9)
    assert made(1.0).tpot_s is None


@given(st.lists(services(), max_size=20), st.floats(0.1, 100), st.floats(0.1, 100))
def test_goodput_counts_those_that_meet_all_and_failed_nothing(all_of_them, ttft_s, itl_s):
    found = summary(all_of_them, 10.0, SLO(ttft_s=ttft_s, itl_s=itl_s))
    met = 0
    for one in all_of_them:
        gaps = np.diff(one.arrivals_s)
        met += one.error is None and one.arrivals_s[0] - one.due_s <= ttft_s and bool((gaps <= itl_s).all())
    assert found["goodput_per_s"] == met / 10
    assert found["slo_attainment"] == (met / len(all_of_them) if all_of_them else None)
    assert found["completed"] + sum(found["errors"].values()) == found["requests"] == len(all_of_them)
    assert found["goodput_per_s"] <= found["requests_per_s"]


def test_each_limit_counts():
    one = made(0.5, 0.6, 0.9, tokens=3)
    for name, value_ms in (("ttft", 500), ("itl", 300), ("tpot", 200), ("e2e", 900)):
        assert SLO.parse(f"{name}:{value_ms + 1}").met_by(one)
        assert not SLO.parse(f"{name}:{value_ms - 1}").met_by(one), name


def test_a_failure_is_never_fast():
    """However early it came, it has no latency, meets no limit and adds no tokens; its kind is counted."""
    failed = Service(0.0, 0.0, [0.001], 10, 1, ended_s=0.001, error="truncated")
    refused = Service(0.0, 0.0, ended_s=0.001, error="refused")
    found = summary([made(2.0, 3.0), failed, refused, refused], 4.0, SLO.parse("ttft:5000"))
    assert found["errors"] == {"truncated": 1, "refused": 2}
    assert found["ttft_s"]["p50"] == found["ttft_s"]["max"] == 2.0
    assert (found["requests_per_s"], found["output_tokens_per_s"], found["prompt_tokens_per_s"]) == (0.25, 0.5, 2.5)
    assert (found["goodput_per_s"], found["slo_attainment"]) == (0.25, 0.25)
    assert summary([failed], 1.0)["ttft_s"] is None


def test_slo_is_read_and_refused_by_name():
    slo = SLO.parse("ttft:500, itl:50")
    assert slo == SLO(ttft_s=0.5, itl_s=0.05)
    assert slo.as_dict() == {"ttft_s": 0.5, "itl_s": 0.05}
    for text in (
        "",
        "ttft",
        "ttft:",
        "ttft:fast",
        "ttft:0",
        "ttft:-1",
        "ttft:nan",
        "ttft:inf",
        "speed:3",
        "itl:1,itl:2",
    ):
        with pytest.raises(InvalidRequestError, match="SLO"):
            SLO.parse(text)
