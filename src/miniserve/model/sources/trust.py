"""`Trust`: models are loaded only if the owner of a key has signed them.

A model is verified before its configuration, its tokenizer or its weights are parsed, and once it is loaded the system
is asked whether a file has been written to or replaced since it was hashed, by whichever process loads it. What
remains: whoever can change files below the file system, or swaps a folder above the model's there and back, between the
two readings; a file system that does not keep the time of a change, and two changes within the milliseconds to which
some keep it. A model that is in memory is not looked at again. Torch-free.
"""

from pathlib import Path

from miniserve.errors import UnsignedModelError
from miniserve.model.sources.resolve import REGISTERED, resolve
from miniserve.registry.manifest import Checked
from miniserve.registry.store import Registry


class Trust:
    """In whom, and what has been verified by it.

    Args:
        public_key: a PEM file; None: in anybody, and nothing is verified.

    Raises:
        InvalidRequestError: there is no such key.
        MiniserveError: the package `cryptography` is not installed.
    """

    def __init__(self, public_key: Path | None) -> None:
        self._key = None
        self._checked: list[Checked] = []
        if public_key:
            from miniserve.registry.keys import PublicKey

            self._key = PublicKey.read(public_key)

    def admit(self, name: str) -> str:
        """Verify the model called `name`; returns the name by which just that one is loaded, with its version.

        Raises:
            RefusedModelError: one of its subclasses: nobody has signed it, another has, or it was altered.
            MiniserveError: as `resolve` raises them.
        """
        if self._key is None:
            return name
        from miniserve.registry.signing import verify

        exact, directory = _directory(name)
        self._checked.append(verify(directory, self._key))
        return exact

    def confirm(self) -> None:
        """Ask again, once all is loaded. Raises AlteredFileError if a file has been written to meanwhile."""
        for each in self._checked:
            each.unchanged()


def _directory(name: str) -> tuple[str, Path]:
    """Where the model lies, and its name with its version. Nothing in a directory is looked at."""
    if name.startswith(REGISTERED):
        version = Registry().find(name.removeprefix(REGISTERED))
        return f"{REGISTERED}{version.reference}", version.path
    if name.strip() and (path := Path(name).expanduser()).is_dir():
        return name, path
    files = resolve(name)
    if files.directory is None:
        raise UnsignedModelError(f"{files.path}: a file alone has no signature: register it, or give its directory")
    return files.name, files.directory
