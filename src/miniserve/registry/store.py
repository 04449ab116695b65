"""`Registry`: models by name and version, in a directory.

    root/NAME/VERSION/  the model's files, card.md, provenance.json, manifest.json, model.sig once it is signed
    root/audit.jsonl    who registered and signed what

A version is whole or not there: it is put together in a folder aside, made to last, and renamed into its place
(intake.py). It never changes afterwards, but for the signature. Registering is safe from several processes at once.

The newest version is the one that was registered last, whatever it is called.
"""

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

from filelock import FileLock

from miniserve.cache_dir import cache_dir
from miniserve.errors import InvalidRequestError, MiniserveError, ModelNotFoundError
from miniserve.registry.audit import AuditLog
from miniserve.registry.intake import Intake, files_of
from miniserve.registry.manifest import MANIFEST
from miniserve.registry.version import Provenance, Recorded, Version

ROOT_VARIABLE = "MINISERVE_REGISTRY"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


def default_root() -> Path:
    """MINISERVE_REGISTRY, or a folder among what can be made again: set the variable for what cannot."""
    if root := os.environ.get(ROOT_VARIABLE):
        return Path(root).expanduser().absolute()
    return cache_dir() / "registry"


class Registry:
    """The registry in a directory, which is made with its first model.

    Args:
        root: the directory; None: `default_root`.
    """

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = default_root() if root is None else Path(root).expanduser().absolute()

    @property
    def audit(self) -> AuditLog:
        """Who did what to its models: `root/audit.jsonl`."""
        return AuditLog(self.root / "audit.jsonl")

    def register(
        self,
        name: str,
        source: Path | str,
        *,
        card: str,
        provenance: Provenance,
        version: str | None = None,
        on_bytes: Callable[[str, int], None] | None = None,
    ) -> Version:
        """Take a model in, as a new version.

        Args:
            name, version: letters, digits, dots, dashes and underscores, up to 64. version None: the next number.
            source: a directory with the model's files and nothing else, or one .gguf file.
            card: Markdown: what the model is, what it is for, what it cannot do.
            provenance: where it is from.
            on_bytes: hears of what is copied: of which file, and how many bytes.

        Raises:
            InvalidRequestError: a name that cannot be, a version that is there already, an empty card, no weights.
            UnsafeWeightsError: the source has a pickle, a program, or a file that is unknown.
            ModelNotFoundError: there is no such source, or no such parent.
        """
        for each in (name, *([] if version is None else [version])):
            _check_name(each)
        if not card.strip():
            raise InvalidRequestError(f"{name}: a model's card must say something")
        for field in ("source", "by", "licence"):
            if not getattr(provenance, field).strip():
                raise InvalidRequestError(f"{name}: its provenance must have a {field}")
        if provenance.parent is not None:
            self.find(provenance.parent)
        files = files_of(Path(source))
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with Intake(self.root) as intake:
                source_sha256 = intake.copy(files, on_bytes)
                with FileLock(self.root / ".lock"):
                    recorded = self._recorded(name, version, provenance, source_sha256)
                    manifest = intake.complete(card, recorded)
                    facts = {"model": f"{name}@{recorded.version}", "manifest_sha256": manifest.sha256}
                    self.audit.append(provenance.by, "model.register", **facts)  # first: no act without a record
                    place = self.root / name / recorded.version
                    intake.place(place)
        except OSError as error:
            raise MiniserveError(f"{name}: cannot be registered in {self.root}: {error}") from error
        return Version(name, recorded.version, place, recorded)

    def names(self) -> tuple[str, ...]:
        """Of the models that have a version, sorted."""
        if not self.root.is_dir():
            return ()
        folders = (path for path in self.root.iterdir() if path.is_dir() and _NAME.fullmatch(path.name))
        return tuple(sorted(path.name for path in folders if any(_version_folders(path))))

    def versions(self, name: str) -> tuple[Version, ...]:
        """Of the model called `name`, in the order in which they were registered. Raises ModelNotFoundError."""
        _check_name(name)
        if found := self._versions(name):
            return found
        close = get_close_matches(name, self.names(), n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise ModelNotFoundError(f"no model called '{name}' in the registry {self.root}.{hint}")

    def find(self, reference: str) -> Version:
        """The model by NAME@VERSION, or the newest by NAME. Raises ModelNotFoundError, or InvalidRequestError."""
        name, at, version = reference.partition("@")
        found = self.versions(name)
        if not at:
            return found[-1]
        _check_name(version)
        for each in found:
            if each.version == version:
                return each
        there = ", ".join(each.version for each in found)
        raise ModelNotFoundError(f"no version {version} of '{name}' in the registry {self.root}: there are {there}")

    def _recorded(self, name: str, version: str | None, provenance: Provenance, source_sha256: str) -> Recorded:
        """A version's provenance, with what depends on the versions that are there."""
        there = self._versions(name)
        number = there[-1].provenance.number + 1 if there else 1
        taken = {each.version for each in there}
        if version is None:
            version = next(str(n) for n in range(number, number + len(taken) + 1) if str(n) not in taken)
        if version in taken:
            raise InvalidRequestError(f"{name}@{version} is registered already, and versions do not change")
        return Recorded(
            **vars(provenance),
            name=name,
            version=version,
            number=number,
            registered=datetime.now(UTC).isoformat(timespec="seconds"),
            source_sha256=source_sha256,
        )

    def _versions(self, name: str) -> tuple[Version, ...]:
        folder = self.root / name
        found = [Version(name, path.name, path, Recorded.read(path)) for path in _version_folders(folder)]
        return tuple(sorted(found, key=lambda version: version.provenance.number))


def _version_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and (path / MANIFEST).is_file()]


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidRequestError(
            f"{name!r} is no name in a registry: letters, digits, dots, dashes and underscores, up to 64, and "
            "the first a letter or a digit"
        )
