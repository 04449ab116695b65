"""`Version`: a model in the registry, with where it comes from (`Provenance`) and what a person should know of it."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from miniserve.errors import ManifestError
from miniserve.registry.manifest import SIGNATURE, Manifest

CARD, PROVENANCE = "card.md", "provenance.json"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a version comes from, as whoever registers it says.

    Attributes:
        source: where its files are from: an address, a repository and its revision, a training run.
        by: who registers it.
        licence: by an SPDX identifier, or in words.
        parent: the version that it was made from, as NAME@VERSION; None: none.
    """

    source: str
    by: str
    licence: str
    parent: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recorded(Provenance):
    """`provenance.json`: the same, and what the registry adds.

    Attributes:
        name, version: which it is. They are what is signed: a version that is moved to another's place is found out.
        number: counts the versions of a name from 1, in the order in which they were registered.
        registered: when; ISO 8601 in UTC.
        source_sha256: `Manifest.sha256` of the source's files, as they were read.
    """

    name: str
    version: str
    number: int
    registered: str
    source_sha256: str

    @classmethod
    def read(cls, version: Path) -> Self:
        """From a version's directory. Raises ManifestError if it is not there, or not what a registry writes."""
        try:
            recorded = cls(**json.loads((version / PROVENANCE).read_bytes()))
            if not isinstance(recorded.number, int):
                raise TypeError
        except (OSError, ValueError, TypeError) as error:
            raise ManifestError(f"{version / PROVENANCE}: not what a registry writes: absent, or altered") from error
        if (recorded.name, recorded.version) != (version.parent.name, version.name):
            raise ManifestError(
                f"{version}: these are the files of {recorded.name}@{recorded.version}, which were put here"
            )
        return recorded


@dataclass(frozen=True)
class Version:
    """A model in the registry; `path` is the directory with its files."""

    name: str
    version: str
    path: Path
    provenance: Recorded

    @property
    def reference(self) -> str:
        """NAME@VERSION: what `Registry.find` takes."""
        return f"{self.name}@{self.version}"

    @property
    def card(self) -> str:
        """What a person should know of the model, in Markdown."""
        return (self.path / CARD).read_text(encoding="utf-8")

    @cached_property
    def manifest(self) -> Manifest:
        """Its files. Reading it checks none of them: `manifest.check(path)` does."""
        return Manifest.read(self.path)

    @property
    def is_signed(self) -> bool:
        """Whether there is a signature, by whomever."""
        return (self.path / SIGNATURE).is_file()
