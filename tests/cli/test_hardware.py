"""`miniserve hardware`, as a person and as a script sees it."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from miniserve.cli import app
from miniserve.errors import InvalidRequestError
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.figures import MARKS


def invoke(*arguments: str) -> str:
    """Standard output; an error of ours escapes as it is, since `main` is what prints it."""
    result = CliRunner().invoke(app, ["hardware", *arguments])
    if result.exception:
        raise result.exception
    return result.stdout


def test_a_pipe_gets_every_entry_with_its_marks():
    catalog = load_catalog()
    rows = [line.split("\t") for line in invoke().splitlines()]
    assert rows[0][:4] == ["vendor", "generation", "accelerator", "memory GB"]
    tiers = len(catalog.tiers)
    keys = [row[2] for row in rows[: -1 - tiers]]
    assert [key for key in keys if key not in ("accelerator", "system")] == [entry.key for entry in catalog]
    assert [row[1] for row in rows[-tiers:]] == [tier.kind for tier in catalog.tiers.values()]
    assert ["memory tiers", "dram", "gb200, gb300", "240 GB S", "225 GB/s D", "6 µs D"] in rows
    letters = {mark[0].upper() for mark in MARKS}
    for row in rows[1 : 1 + len(catalog.accelerators)]:
        assert all(cell == "-" or cell.rpartition(" ")[2] in letters for cell in row[3:]), row
    assert ["NVIDIA", "Hopper", "h100", "80 V", "3,350 V", "989.4 V", "1,978.9 V", "-", "450 V", "700 V"] in rows


def test_the_legend_explains_every_letter():
    result = CliRunner().invoke(app, ["hardware"])
    for mark in MARKS:
        assert f"{mark[0].upper()} {mark}: " in result.stderr


def test_a_card_gives_source_and_mark_of_each_value():
    text = invoke("Rubin")
    lines = [line.split("\t") for line in text.splitlines()]
    assert ["memory bandwidth", "22 TB/s", "preliminary", "nvidia-vera-rubin", ""] in lines
    assert any(line[:3] == ["or", "19.4 TB/s", "preliminary"] for line in lines)
    assert ["fp4, sparse", "50 PFLOP/s", "preliminary", "nvidia-vera-rubin", ""] in lines
    assert "note: The 50 PFLOP/s of fp4 that headlines print are sparse" in text
    assert "https://www.nvidia.com/en-us/data-center/vera-rubin-nvl72/" in text


def test_a_systems_card_tells_sums_from_what_is_stated():
    lines = [line.split("\t") for line in invoke("gb300-nvl72").splitlines()]
    assert ["memory bandwidth", "576 TB/s", "sum", "72 × gb300", ""] in lines
    assert ["memory, stated for the whole", "20 TB", "vendor", "nvidia-gb300", ""] in lines


def test_json_of_one_and_of_all():
    one = json.loads(invoke("b200", "--json"))
    bandwidth = one["figures"]["memory_bandwidth_bytes_per_s"]
    assert (bandwidth["value"], bandwidth["unit"], bandwidth["mark"]) == (7.7e12, "B/s", "vendor")
    assert [other["mark"] for other in bandwidth["also"]] == ["measured", "secondary"]
    assert one["sources"][bandwidth["source"]]["url"].startswith("https://")
    every = json.loads(invoke("--json"))
    assert len(every["entries"]) == len(list(load_catalog()))
    used = {figure["source"] for entry in every["entries"] for figure in entry["figures"].values()}
    assert used <= set(every["sources"])


def test_a_kind_of_memory_tier_has_a_card_for_each_place():
    text = invoke("dram")
    lines = [line.split("\t") for line in text.splitlines()]
    assert [line[1] for line in lines if line[0] == "capacity"] == ["250 GB", "240 GB", "750 GB"]
    assert ["latency", "6 µs", "measured", "dualpath", "5 to 7 µs for each cudaMemcpyAsync"] in lines
    assert "dualpath: Wu et al." in text
    assert "shared: all engines see the same blocks" in invoke("cmx")
    assert "memory tiers beside it: dram, nvme" in invoke("h100")
    assert "memory tiers" not in invoke("t4") + invoke("hgx-h100")
    (tier,) = json.loads(invoke("cmx", "--json"))["tiers"]
    assert (tier["accelerators"], tier["shared"]) == (["rubin"], True)
    every = json.loads(invoke("--json"))
    used = {figure["source"] for tier in every["tiers"] for figure in tier["figures"].values()}
    assert used <= set(every["sources"])


def test_an_unknown_name_is_an_error_with_names_near_it():
    with pytest.raises(InvalidRequestError, match=r"near it: .*h100"):
        invoke("h1000")


def test_a_terminal_shows_groups_within_80_columns(monkeypatch):
    from miniserve.cli import hardware as command

    class Terminal:
        def __init__(self) -> None:
            self.text = ""

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None:
            pass

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    command.hardware()
    lines = terminal.text.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("NVIDIA, Hopper" in line for line in lines) == 2, "once over the chips, once over the systems"
    assert any(line.split()[:3] == ["h100", "80", "V"] for line in lines)


def test_the_command_line_stays_light():
    """Neither the catalogue nor torch is read for --help, and `miniserve hardware` needs no torch."""
    code = (
        "import sys; sys.argv = ['miniserve', 'hardware', 'h100', '--json']\n"
        "import miniserve.cli as cli\n"
        "assert 'miniserve.hardware.devices' not in sys.modules\n"
        "try:\n    cli.main()\nexcept SystemExit as error:\n    assert not error.code\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["key"] == "h100"
