"""`Registry`: models by name and version, in a directory.

    root/NAME/VERSION/  the model's files, card.md, provenance.json, manifest.json, model.sig once it is signed
    root/audit.jsonl    who registered and signed what

A version is whole or not there: it is put together in a folder aside, made to last, and renamed into its place. It
never changes afterwards, but for the signature. Files are copied, not linked: a hard link shares its bytes with the
source, and whoever writes to the source in place would write into the version. They are hashed while they are copied,
so that the manifest is of what was registered. Registering is safe from several processes at once; one that is killed
leaves a folder `root/.incoming-…`, which nobody reads and anybody may delete.

The newest version is the one that was registered last, whatever it is called.
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from filelock import FileLock

from miniserve.cache_dir import cache_dir
from miniserve.errors import InvalidRequestError, MiniserveError, ModelNotFoundError
from miniserve.registry.accepted import Role, role_of
from miniserve.registry.audit import AuditLog
from miniserve.registry.files import canonical_json, copy_hashed, sync_directory, write_whole
from miniserve.registry.manifest import MANIFEST, SIGNATURE, Entry, Manifest
from miniserve.registry.version import CARD, PROVENANCE, Provenance, Recorded, Version

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
        files = _files_of(Path(source))
        try:
            return self._take_in(name, version, files, card, provenance, on_bytes)
        except OSError as error:
            raise MiniserveError(f"{name}: cannot be registered in {self.root}: {error}") from error

    def _take_in(
        self,
        name: str,
        version: str | None,
        files: list[Path],
        card: str,
        provenance: Provenance,
        on_bytes: Callable[[str, int], None] | None,
    ) -> Version:
        """Copy aside, and put in its place."""
        self.root.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".incoming-", dir=self.root))
        try:
            entries = {}
            for path in files:
                digest = copy_hashed(path, aside / path.name, on_bytes and partial(on_bytes, path.name))
                entries[path.name] = Entry((aside / path.name).stat().st_size, digest)
            source_sha256 = Manifest(entries).sha256
            entries[CARD] = _put(aside / CARD, card.encode())
            with FileLock(self.root / ".lock"):
                return self._place(aside, name, version, entries, provenance, source_sha256)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _place(
        self,
        aside: Path,
        name: str,
        version: str | None,
        entries: dict[str, Entry],
        provenance: Provenance,
        source_sha256: str,
    ) -> Version:
        """Write what depends on the versions that are there, and rename; nobody else registers meanwhile."""
        there = self._versions(name)
        number = there[-1].provenance.number + 1 if there else 1
        taken = {each.version for each in there}
        if version is None:
            version = next(str(n) for n in range(number, number + len(taken) + 1) if str(n) not in taken)
        if version in taken:
            raise InvalidRequestError(f"{name}@{version} is registered already, and versions do not change")
        recorded = Recorded(
            **vars(provenance),
            name=name,
            version=version,
            number=number,
            registered=datetime.now(UTC).isoformat(timespec="seconds"),
            source_sha256=source_sha256,
        )
        entries[PROVENANCE] = _put(aside / PROVENANCE, canonical_json(asdict(recorded)) + b"\n")
        manifest = Manifest(entries)
        manifest.write(aside)
        for file in entries:
            (aside / file).chmod(0o444)
        aside.chmod(0o755)
        sync_directory(aside)
        facts = {"model": f"{name}@{version}", "manifest_sha256": manifest.sha256}
        self.audit.append(provenance.by, "model.register", **facts)  # before the act: no act without a record
        place = self.root / name / version
        place.parent.mkdir(exist_ok=True)
        aside.rename(place)
        sync_directory(place.parent)
        sync_directory(self.root)
        return Version(name, version, place, recorded)

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


def _put(path: Path, content: bytes) -> Entry:
    write_whole(path, content)
    return Entry(len(content), hashlib.sha256(content).hexdigest())


def _files_of(source: Path) -> list[Path]:
    """The model's files: every one in the directory, all of names that are accepted. Links are followed."""
    if source.is_file():
        if source.suffix.lower() != ".gguf":
            role_of(source.name)
            raise InvalidRequestError(f"{source}: neither a directory nor a .gguf file")
        return [source]
    if not source.is_dir():
        raise ModelNotFoundError(f"{source}: no such file or directory")
    files = sorted(source.iterdir())
    for path in files:
        if path.name in {MANIFEST, SIGNATURE, CARD, PROVENANCE}:
            raise InvalidRequestError(f"{path}: a registry writes a file of this name itself")
        if not path.is_file():
            raise InvalidRequestError(
                f"{path}: a folder; a model's files lie beside each other, and nothing else there"
            )
        role_of(path.name)
    if not any(role_of(path.name) is Role.WEIGHTS for path in files):
        raise InvalidRequestError(f"{source}: no weights in it: .safetensors or .gguf")
    return files
