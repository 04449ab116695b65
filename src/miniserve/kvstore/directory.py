"""`BlockDirectory`: where the files of one domain's KV blocks lie, in a directory for many.

    DIRECTORY / domain / owner / first byte of the hash / hash.kv        (all in hexadecimal)

The files of a tenant lie together, of whatever model, and are deleted together (deletion.py). Folders are for the eyes
alone of the user who runs the process. It says where files are, and never what is in them.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from miniserve.errors import InvalidRequestError
from miniserve.kvstore.block_file import PARTIAL, SUFFIX
from miniserve.kvstore.record import BlockKey

ABANDONED_S = 600.0  # after which a file that is still partial was left by a process that died


class File(NamedTuple):
    """A block's, of whatever domain. Sorted, the one that was used longest ago comes first."""

    used_s: float
    size: int
    path: Path


class BlockDirectory:
    """Of one domain.

    Args:
        root: of all domains; made if it is not there.
        domain: 32 bytes.

    Attributes:
        home: the domain's.

    Raises:
        InvalidRequestError: it cannot be made or written to.
    """

    def __init__(self, root: Path, domain: bytes) -> None:
        self.root, self.home = root, root / domain.hex()[:32]
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.home.mkdir(mode=0o700, exist_ok=True)
            if not os.access(self.home, os.W_OK | os.X_OK):
                raise PermissionError(f"{self.home} cannot be written to")
        except OSError as error:
            raise InvalidRequestError(f"the disk tier cannot use {root}: {error}") from error

    def path(self, key: BlockKey) -> Path:
        """Of a block's file, whether it is there or not."""
        name = key.content.hex()
        return self.home / key.owner.hex() / name[:2] / (name + SUFFIX)

    def key(self, path: Path) -> BlockKey | None:
        """Of a file, if it is this domain's."""
        owner = path.parent.parent
        if owner.parent == self.home:
            with suppress(ValueError):
                return BlockKey(bytes.fromhex(owner.name), bytes.fromhex(path.stem))
        return None

    def expect(self, keys: Sequence[BlockKey]) -> None:
        """These are going to be read: let the system begin with all of them at once, where it takes the hint."""
        if not hasattr(os, "posix_fadvise"):
            return
        for key in keys:
            with suppress(OSError):
                descriptor = os.open(self.path(key), os.O_RDONLY)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(descriptor)

    def survey(self) -> list[File]:
        """The blocks' files, of all domains. Deletes what processes that died left unfinished."""
        files = []
        for file in self._walk():
            if file.path.suffix == SUFFIX:
                files.append(file)
            elif file.path.suffix == PARTIAL and time.time() - file.used_s > ABANDONED_S:
                with suppress(OSError):
                    file.path.unlink()
        return files

    def _walk(self) -> Iterator[File]:
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder, name)
                with suppress(OSError):  # gone meanwhile
                    stat = path.stat()
                    yield File(stat.st_mtime, stat.st_size, path)
