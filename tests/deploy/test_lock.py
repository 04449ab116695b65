"""Pins with hashes, from a report as pip writes it."""

import runpy
from pathlib import Path

import pytest

lock = runpy.run_path(str(Path(__file__).parents[2] / "deploy" / "lock.py"))["lock"]


def installed(name, version, **info):
    return {"metadata": {"name": name, "version": version}, "download_info": {"url": f"https://x/{name}", **info}}


def test_each_package_has_the_hash_of_its_file():
    packages = [
        installed("tqdm", "4.70.1", archive_info={"hashes": {"sha256": "ab"}}),
        installed("Jinja2", "3.1.6", archive_info={"hashes": {"sha256": "cd"}}),
    ]
    assert list(lock({"install": packages})) == ["Jinja2==3.1.6 --hash=sha256:cd", "tqdm==4.70.1 --hash=sha256:ab"]


def test_a_package_that_came_as_no_file_is_refused():
    with pytest.raises(ValueError, match="here 1 has no SHA-256"):
        list(lock({"install": [installed("here", "1", dir_info={})]}))
