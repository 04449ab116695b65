"""What a stranger reads first agrees with the package: links lead somewhere, a citation names what there is."""

import re
from pathlib import Path

import pytest
import yaml

import miniserve

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_its_links_lead_to_files(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    assert not [link for link in links if "://" not in link and not (ROOT / link).exists()]


def test_the_citation_names_this_version_and_the_books_authors():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    book = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cited)  # what its schema demands
    assert str(cited["version"]) == miniserve.__version__
    assert cited["title"] == book["title"]
    assert cited["authors"] == [{"name": book["author"]}]


def test_the_changelog_has_what_is_to_come_first():
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert len(versions) == len(set(versions))
