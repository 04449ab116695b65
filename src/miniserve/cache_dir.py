"""Where on this machine things are kept that can be made or fetched again: models, compiled kernels."""

import os
import sys
from pathlib import Path


def cache_dir() -> Path:
    """The directory, if it exists or not: MINISERVE_CACHE, else XDG_CACHE_HOME/miniserve, else the platform's habit."""
    if override := os.environ.get("MINISERVE_CACHE"):
        return Path(override).expanduser().absolute()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser().absolute() / "miniserve"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "miniserve"
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "miniserve"
    return Path.home() / ".cache" / "miniserve"
