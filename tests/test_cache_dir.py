"""Where things are kept: what the environment says goes before the platform's habit."""

import sys

from miniserve.cache_dir import cache_dir


def test_the_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("MINISERVE_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_dir() == tmp_path / "a"
    monkeypatch.delenv("MINISERVE_CACHE")
    assert cache_dir() == tmp_path / "b" / "miniserve"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_dir() == tmp_path / ".cache" / "miniserve"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_dir() == tmp_path / "Library" / "Caches" / "miniserve"
