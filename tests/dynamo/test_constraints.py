"""The versions of Dynamo that are installed: they belong together, the extra allows them, and torch is left alone."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PINS = {
    requirement.name: requirement.specifier
    for line in (ROOT / "constraints" / "dynamo.txt").read_text().splitlines()
    if line and not line.startswith("#")
    for requirement in [Requirement(line)]
}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def version_of(name):
    (only,) = PINS[name]
    assert only.operator == "=="
    return only.version


def test_both_parts_are_of_one_version_which_the_extra_allows():
    (wanted,) = [each for line in EXTRAS["dynamo"] if (each := Requirement(line)).name == "ai-dynamo-runtime"]
    assert version_of("ai-dynamo") == version_of("ai-dynamo-runtime")
    assert version_of("ai-dynamo-runtime") in wanted.specifier
    assert {"1.4.2", "1.6.1"} <= set(wanted.specifier.filter(["1.4.1", "1.4.2", "1.6.1", "1.7.0"]))


def test_what_moves_kv_is_one_version_too():
    assert {version_of(name) for name in ("nixl", "nixl-cu12", "nixl-cu13")} == {version_of("nixl")}
    assert version_of("nixl") in Requirement(EXTRAS["nixl"][0]).specifier


def test_torch_and_what_belongs_to_it_is_not_pinned():
    assert not [name for name in PINS if name in {"torch", "numpy", "triton"} or "nvidia" in name]
