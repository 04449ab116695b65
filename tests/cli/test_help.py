"""Help as a newcomer meets it: light, whole, and for every command; and what ends in one line on stderr."""

import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from miniserve import cli

HEAVY = ("torch", "numpy", "rich", "asyncio", "filelock", "psutil", "tomllib", "miniserve.hardware", "miniserve.model")


def commands():
    """Words of every command, groups among them."""
    found = [()]
    for name, command in get_command(cli.app).commands.items():
        found += [(name,), *((name, inner) for inner in getattr(command, "commands", {}))]
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_no_name_and_no_summary_is_cut_at_80_columns(words):
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(cli.app, [*words, "--help"])
    assert shown.exit_code == 0, shown.output
    assert "..." not in shown.output.partition("Commands:")[2]
    assert max(map(len, shown.output.splitlines())) <= 80
    command = get_command(cli.app)
    for word in words:
        command = command.commands[word]
    shown_ones = [each for each in command.params if not getattr(each, "hidden", False)]
    options = [option for each in shown_ones for option in each.opts if option.startswith("--")]
    assert all(option in shown.output for option in options)


def test_help_imports_nothing_heavy():
    code = (
        f"import sys; sys.argv = ['miniserve', '--help']\nimport miniserve.cli as cli\n"
        f"try:\n    cli.main()\nexcept SystemExit as error:\n    assert not error.code\n"
        f"found = [name for name in {HEAVY!r} if name in sys.modules]\nassert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Commands:" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate"], "error: --model and --hardware say what is simulated, or a CONFIG does"),
        (["simulate", "-m", "qwen3-8b", "--hardware", "gb200-nvl72"], "'gb200-nvl72' is a system of 72 × gb200: name"),
        (["simulate", "-m", "qwen3-8b", "--hardware", "h101"], "error: hardware 'h101' is not in the catalogue; near"),
        (["simulate", "-m", "qwen3-235b", "--hardware", "h100"], "near it: qwen3-32b, qwen3-235b-a22b"),
        (
            ["simulate", "-m", "qwen3-8b", "--hardware", "h100", "--save-config", "/nowhere/x.toml"],
            "error: /nowhere/x.toml: No such file or directory",
        ),
        (
            ["plan", "-m", "qwen3-8b", "--hardware", "h100", "--slo", "ttft:500", "--budget", "1"],
            "error: $1 an hour: one NVIDIA H100 SXM5 80 GB costs $1.3 (hyperscaler_tco)",
        ),
        (
            ["plan", "-m", "dbrx", "--hardware", "h100", "--gpus", "8", "--slo", "ttft:9", "--ffn-hardware", "groq-lp30"],
            "miniserve simulate --hardware h100 --afd 2x6 --ffn-hardware groq-lp30",
        ),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["miniserve", *arguments])
    with pytest.raises(SystemExit):
        cli.main()
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert not shown.out
