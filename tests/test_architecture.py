"""ARCHITECTURE.md speaks of what there is: its modules exist, its floors are those that the linter holds."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "miniserve"
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
TABLE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def floors():
    """Of the import contract, from the highest down."""
    (contract,) = [each for each in TABLE["tool"]["importlinter"]["contracts"] if each["type"] == "layers"]
    return [set(re.findall(r"\w+", layer)) for layer in contract["layers"]]


def test_every_path_exists():
    named = set(re.findall(r"(?<![\w/.])(?:[a-z]\w*/)*(?:\w+\.(?:py|toml)|(?<=/))(?![\w/])", TEXT)) - {""}
    assert len(named) > 50
    assert not [path for path in named if not ((PACKAGE / path).exists() or (ROOT / path).exists())]


def test_the_floors_are_the_contract():
    lines = [line.partition("│") for line in TEXT.splitlines() if re.match(r"[a-z_]+( +[a-z_]+)* +│", line)]
    assert [set(names.split()) for names, _, _ in lines] == floors()
    assert all(what.strip() for _, _, what in lines)


def test_every_package_is_in_the_readme_layout():
    layout = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Layout")[2]
    named = set(re.findall(r"`([a-z_]+)(?:/|\.py)`", layout))
    assert set().union(*floors()) <= named
