"""Commands in chapters: run as typed, or the page fails."""

import json

import pytest

from miniserve.errors import InvalidRequestError
from miniserve.notebook.command import WIDTH, CommandOutput, run_command

PLAN = """miniserve plan -m qwen3-0.6b --hardware l4 --gpus 1 --input-len 100 --output-len 4 \\
    --slo ttft:500 --num-requests 2 --max-num-seqs 2 --out plan.json"""


def test_the_command_stands_above_what_it_printed(tmp_path, monkeypatch):
    """Two processes, 3 s. A notebook's kernel asks for colors; a page would show their codes."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = run_command(PLAN, tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text())["label"] == "simulated"
    lines = repr(shown).splitlines()
    assert lines[:2] == [f"$ {line}" if not at else line for at, line in enumerate(PLAN.splitlines())]
    assert "Take 1 × TP1 in bf16" in shown.text
    assert "\x1b" not in shown.text
    assert max(map(len, shown.text.splitlines())) <= WIDTH
    assert repr(run_command(PLAN, tmp_path)) == repr(shown)


def test_a_command_that_fails_fails_the_page():
    with pytest.raises(InvalidRequestError, match=r"ended with 2: error: .*l5.* is not in the catalogue"):
        run_command("miniserve plan -m qwen3-0.6b --hardware l5 --gpus 1 --slo ttft:500")


def test_nothing_else_is_run():
    for typed in ("ls", "", "python -c 1; miniserve"):
        with pytest.raises(InvalidRequestError, match="is no command of miniserve"):
            run_command(typed)


def test_what_was_printed_is_text_in_a_page():
    html = CommandOutput("miniserve hardware", "a < b & c")._repr_html_()
    assert "$ miniserve hardware" in html
    assert "a &lt; b &amp; c" in html
