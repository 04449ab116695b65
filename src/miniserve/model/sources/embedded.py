"""Models that travel inside this package: there without a network or a cache, by a short name.

`embedded.toml` says which there are, and what their weights' hash is; each has a folder in the Hub's layout, with a
card (`README.md`) that says what it is and how it was made. Torch-free.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Embedded:
    """One of them. `folder` is relative to `miniserve/model`; the hash is the SHA-256 of its weights in hexadecimal."""

    name: str
    title: str
    description: str
    licence: str
    folder: str
    sha256: str

    @property
    def path(self) -> Path:
        """Where it lies."""
        return Path(__file__).parent.parent / self.folder

    @property
    def weights(self) -> Path:
        """The one file with all of them."""
        return self.path / "model.safetensors"


def load_embedded() -> dict[str, Embedded]:
    """All of them, by name."""
    table = tomllib.loads(Path(__file__).with_name("embedded.toml").read_text(encoding="utf-8"))
    return {name: Embedded(name=name, **fields) for name, fields in table.items()}
