"""Keys of the disk tier: the operator's, which is in a file of its own, and below it one for each tenant.

Block files are encrypted with AES-256-GCM under their tenant's key: 32 random bytes, made with its first block, which
lie beside its files and are themselves encrypted under the operator's key:

    DIRECTORY / domain / owner / tenant.key     nonce 12 | key, encrypted 32 | tag 16
    DIRECTORY / domain / owner / xx / hash.kv

Why random, and not derived from the operator's key: a key that can be derived again cannot be forgotten. To delete a
tenant its key is unlinked first; what a disk or a backup may keep of the blocks is then noise, unless it has kept those
60 bytes too, and somebody has the operator's key. Replacing that one is what is final, for all tenants at once.

Whoever uses a tenant's key looks first whether its file is still the one that was read: when one process deletes it,
the others stop using it with their next block. Nonces are random: one key is good for 2**32 blocks (NIST SP 800-38D).
The domain is derived from the operator's key, so that files under other keys, and files that are not encrypted, are in
other folders, where nobody looks for ours and nobody takes them for damaged; and so is the root of the blocks' hashes:
without the key nobody can try from a file's name what its prompt was.

What this does not hide: how many tenants and blocks there are, when they were used, and who shares whose beginning. Nor
does it hold against somebody who reads this process's memory, where keys and KV are plain.

Importing this without `cryptography` is a clear error.
"""

import base64
import binascii
import hmac
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from filelock import FileLock

from miniserve.errors import InvalidRequestError, MiniserveError
from miniserve.kvstore.block_file import KEY_SUFFIX
from miniserve.registry.files import write_whole

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives import ciphers
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import GCM
except ImportError as error:
    raise MiniserveError(
        "an encrypted disk tier needs the package cryptography: pip install 'miniserve[encryption]'"
    ) from error

KEY_BYTES, NONCE_BYTES, TAG_BYTES = 32, 12, 16
KEY_FILE = f"tenant{KEY_SUFFIX}"
LOCK_S = 10.0
HOW_TO_MAKE_ONE = "(umask 077; head -c 32 /dev/urandom | base64 > FILE)"


class Cipher:
    """AES-256-GCM under one key, with a fresh random nonce for each message.

    With as few large buffers as can be: a second one of a block's size costs more than to encrypt it, as the system
    takes such memory back, and fills it with zeros, every time.
    """

    def __init__(self, key: bytes) -> None:
        self._aes = AES(key)

    def seal(self, parts: Sequence[bytes | memoryview], bound: bytes) -> tuple[bytes, memoryview]:
        """The nonce, and the encrypted parts with a tag, all of which goes with `bound` only."""
        nonce = os.urandom(NONCE_BYTES)
        sealing = ciphers.Cipher(self._aes, GCM(nonce)).encryptor()
        sealing.authenticate_additional_data(bound)
        sealed, end = np.empty(sum(map(len, parts)) + TAG_BYTES, np.uint8).data, 0
        for part in parts:
            end += sealing.update_into(part, sealed[end:])
        sealing.finalize()
        sealed[end:] = sealing.tag
        return nonce, sealed

    def open(self, sealed: memoryview, bound: bytes) -> memoryview | None:
        """What was sealed, in its place; None if it is not what this key sealed with `bound`, bit by bit."""
        if len(sealed) < NONCE_BYTES + TAG_BYTES:
            return None
        nonce, content, tag = sealed[:NONCE_BYTES].tobytes(), sealed[NONCE_BYTES:], sealed[-TAG_BYTES:].tobytes()
        opening = ciphers.Cipher(self._aes, GCM(nonce, tag)).decryptor()
        opening.authenticate_additional_data(bound)
        length = opening.update_into(content[:-TAG_BYTES], content)
        try:
            opening.finalize()
        except InvalidTag:
            return None
        return content[:length]


class MasterKey:
    """The operator's key.

    Args:
        key: 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.wrapping = Cipher(self.derived(b"tenants' keys"))

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a file: 32 bytes in base64 or hexadecimal.

        Raises:
            InvalidRequestError: it cannot be read, anybody may read it, or it has something else.
        """
        try:
            text = path.read_text("ascii").strip()
            mode = path.stat().st_mode
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise InvalidRequestError(f"the key file {path} cannot be read: {reason}") from error
        if mode & stat.S_IROTH:
            raise InvalidRequestError(f"the key file {path}: anybody on this machine may read it: chmod o-r")
        try:
            key = bytes.fromhex(text) if len(text) == 2 * KEY_BYTES else base64.b64decode(text, validate=True)
        except (ValueError, binascii.Error):
            key = b""
        if len(key) != KEY_BYTES:
            raise InvalidRequestError(
                f"the key file {path} must have {KEY_BYTES} random bytes in base64 or hexadecimal: {HOW_TO_MAKE_ONE}"
            )
        return cls(key)

    def derived(self, purpose: bytes) -> bytes:
        """32 bytes that tell nothing of the key: HMAC-SHA256 of what they are for."""
        return hmac.digest(self._key, b"miniserve-kv " + purpose, "sha256")

    def tenants(self, domain: bytes, home: Path) -> "TenantKeys":
        """Those of a domain in this folder."""
        return TenantKeys(self, domain, home)


class TenantKeys:
    """The keys of one domain's tenants, each in a file. Safe to use from several threads and processes.

    Args:
        master: encrypts them.
        domain: theirs.
        home: its folder.
    """

    def __init__(self, master: MasterKey, domain: bytes, home: Path) -> None:
        self._master, self._domain, self._home = master, domain, home
        self._known: dict[bytes, tuple[tuple[int, int], Cipher]] = {}  # with the file's number and time

    def find(self, owner: bytes) -> Cipher | None:
        """A tenant's, as it is now; None if there is none, or none that this operator's key opens."""
        path = self._home / owner.hex() / KEY_FILE
        try:
            status = path.stat()
            stamp, known = (status.st_ino, status.st_mtime_ns), self._known.get(owner)
            if known and known[0] == stamp:
                return known[1]
            key = self._master.wrapping.open(memoryview(bytearray(path.read_bytes())), self._domain + owner)
        except FileNotFoundError:
            key = None
        if key is None:
            self._known.pop(owner, None)
            return None
        cipher = Cipher(key.tobytes())
        self._known[owner] = stamp, cipher
        return cipher

    def make(self, owner: bytes) -> Cipher:
        """A tenant's, made if there is none. Raises OSError as the system does."""
        if found := self.find(owner):
            return found
        folder = self._home / owner.hex()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(self._home / "keys.lock", timeout=LOCK_S, mode=0o600):
            if found := self.find(owner):
                return found  # another process was first
            key = os.urandom(KEY_BYTES)
            write_whole(folder / KEY_FILE, b"".join(self._master.wrapping.seal([key], self._domain + owner)), 0o600)
            return self.find(owner) or Cipher(key)
