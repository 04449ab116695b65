"""Deleting a tenant's files from the disk tier's directory, whoever else uses it.

What it promises: no file of the tenant's that was there at the beginning is there at the end, of whatever model, and no
key of its files. What deleting files cannot promise: that a solid-state disk, a copy-on-write file system, a snapshot
or a backup has not kept what was in them. Of encrypted files that is noise without the tenant's key, which is unlinked
first; whoever finds that too, still needs the operator's.
"""

import os
from contextlib import suppress
from pathlib import Path

from miniserve.kvstore.block_file import KEY_SUFFIX, SUFFIX


def delete_owner(directory: Path, owner: bytes) -> int:
    """Delete a tenant's files of every domain below a tier's directory: keys first, without which the rest is noise.

    While other processes serve the tenant, they go on to write. Returns how many blocks it had.

    Raises:
        OSError: the first of what the system refused; all else has been deleted.
    """
    folders = [folder for folder in directory.glob(f"*/{owner.hex()}") if folder.is_dir()]
    files = [Path(at, name) for folder in folders for at, _, names in os.walk(folder) for name in names]
    refused: OSError | None = None
    count = 0
    for path in sorted(files, key=lambda path: path.suffix != KEY_SUFFIX):
        try:
            path.unlink()
            count += path.suffix == SUFFIX
        except FileNotFoundError:
            pass  # another process makes room
        except OSError as error:
            refused = refused or error
    for folder in folders:
        for at, _, _ in os.walk(folder, topdown=False):
            with suppress(OSError):  # somebody has just written into it
                Path(at).rmdir()
    if refused:
        raise refused
    return count
