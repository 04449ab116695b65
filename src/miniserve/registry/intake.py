"""`Intake`: a version that is being put together, in a folder aside, until it is renamed into its place.

Files are copied, not linked: a hard link shares its bytes with the source, and whoever writes to the source in place
would write into the version. They are hashed while they are copied, so that the manifest is of what was registered.
All that is written lasts before the folder is renamed. An intake that is left without that is deleted; one whose
process is killed leaves a folder `.incoming-…`, which nobody reads and anybody may delete.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from miniserve.errors import InvalidRequestError, ModelNotFoundError
from miniserve.registry.accepted import Role, role_of
from miniserve.registry.files import canonical_json, copy_hashed, sync_directory, write_whole
from miniserve.registry.manifest import MANIFEST, SIGNATURE, Entry, Manifest
from miniserve.registry.version import CARD, PROVENANCE, Recorded


def files_of(source: Path) -> list[Path]:
    """The model's files: every one in the directory, all of names that are accepted. Links are followed.

    Args:
        source: a directory with the model's files and nothing else, or one .gguf file.

    Raises:
        InvalidRequestError: a folder in it, a file that a registry writes itself, no weights.
        UnsafeWeightsError: a pickle, a program, or a file that is unknown.
        ModelNotFoundError: there is no such source.
    """
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


class Intake:
    """One version's. Use it as a context manager: leaving the block deletes what has not been placed.

    Args:
        root: the registry's directory, in which the folder is made.

    Raises:
        OSError: what the system refuses, here and below.
    """

    def __init__(self, root: Path) -> None:
        self._root, self._folder = root, Path(tempfile.mkdtemp(prefix=".incoming-", dir=root))
        self._entries: dict[str, Entry] = {}

    def __enter__(self) -> "Intake":
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def copy(self, files: Iterable[Path], on_bytes: Callable[[str, int], None] | None) -> str:
        """Copy the source's files; returns the SHA-256 of the manifest of these alone.

        Args:
            files: of names that differ.
            on_bytes: hears of which file is copied, and how many bytes.
        """
        for path in files:
            target = self._folder / path.name
            digest = copy_hashed(path, target, on_bytes and partial(on_bytes, path.name))
            self._entries[path.name] = Entry(target.stat().st_size, digest)
        return Manifest(dict(self._entries)).sha256

    def complete(self, card: str, recorded: Recorded) -> Manifest:
        """Add what the registry writes; nothing changes afterwards. Returns the manifest of everything."""
        self._write(CARD, card.encode())
        self._write(PROVENANCE, canonical_json(asdict(recorded)) + b"\n")
        manifest = Manifest(self._entries)
        manifest.write(self._folder)
        for file in self._entries:
            (self._folder / file).chmod(0o444)
        self._folder.chmod(0o755)
        sync_directory(self._folder)
        return manifest

    def place(self, path: Path) -> None:
        """Rename the folder to the version's, below the root."""
        path.parent.mkdir(exist_ok=True)
        self._folder.rename(path)
        sync_directory(path.parent)
        sync_directory(self._root)

    def _write(self, name: str, content: bytes) -> None:
        write_whole(self._folder / name, content)
        self._entries[name] = Entry(len(content), hashlib.sha256(content).hexdigest())
