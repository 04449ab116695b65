"""Keys for signatures: ECDSA on NIST's curves, as PEM. Importing this without `cryptography` is a clear error.

Elsewhere it is imported where a key is used, so that nobody else needs that package.
"""

import hashlib
from pathlib import Path
from typing import Self

from miniserve.errors import InvalidRequestError, MiniserveError
from miniserve.registry.files import write_whole

try:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
except ImportError as error:
    raise MiniserveError("signatures need the package cryptography: pip install 'miniserve[signing]'") from error

_HASHES: dict[int, type[hashes.HashAlgorithm]] = {256: hashes.SHA256, 384: hashes.SHA384, 521: hashes.SHA512}


class PublicKey:
    """Who signs, as others know them.

    Attributes:
        fingerprint: SHA-256 of the key as PEM, in hexadecimal.
    """

    def __init__(self, key: ec.EllipticCurvePublicKey) -> None:
        self._key, self._how = key, _ecdsa(key.curve)
        self.fingerprint = hashlib.sha256(self.pem).hexdigest()

    @property
    def pem(self) -> bytes:
        """The content of its file."""
        form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        return self._key.public_bytes(*form)

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a PEM file. Raises InvalidRequestError if it holds no such key."""
        try:
            key = serialization.load_pem_public_key(path.read_bytes())
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise InvalidRequestError(f"{path}: no public key in PEM: {_first_line(error)}") from error
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.key_size not in _HASHES:
            raise InvalidRequestError(f"{path}: not a key for ECDSA on the curve P-256, P-384 or P-521")
        return cls(key)

    def has_signed(self, content: bytes, signature: bytes) -> bool:
        """Whether the signature is this key's, over just that."""
        try:
            self._key.verify(signature, content, self._how)
        except InvalidSignature:
            return False
        return True


class PrivateKey:
    """Who signs. `public` is what others need to verify it.

    Example:
        >>> from miniserve.registry.keys import PrivateKey
        >>> key = PrivateKey.make()
        >>> signature = key.sign(b"weights")
        >>> key.public.has_signed(b"weights", signature), key.public.has_signed(b"others", signature)
        (True, False)
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key, self._how = key, _ecdsa(key.curve)
        self.public = PublicKey(key.public_key())

    @classmethod
    def make(cls) -> Self:
        """A new one, on P-256."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def read(cls, path: Path, password: str | None = None) -> Self:
        """From a PEM file, which may be encrypted. Raises InvalidRequestError if that cannot be."""
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password.encode() if password else None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise InvalidRequestError(f"{path}: no private key can be read from it: {_first_line(error)}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.key_size not in _HASHES:
            raise InvalidRequestError(f"{path}: not a key for ECDSA on the curve P-256, P-384 or P-521")
        return cls(key)

    def write(self, path: Path, password: str | None = None) -> None:
        """Into a PEM file, for its owner's eyes only; encrypted if there is a password."""
        hidden = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden
        write_whole(path, self._key.private_bytes(*form), 0o600)

    def sign(self, content: bytes) -> bytes:
        """The signature (DER)."""
        return self._key.sign(content, self._how)


def make_keys(private: Path, public: Path, password: str | None = None) -> PublicKey:
    """Write a new key and its public half.

    Raises:
        InvalidRequestError: one of the files is there already, or cannot be written.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from miniserve.registry.keys import PublicKey, make_keys
        >>> with TemporaryDirectory() as folder:
        ...     made = make_keys(Path(folder, "mine.key"), Path(folder, "mine.pub"))
        ...     PublicKey.read(Path(folder, "mine.pub")).fingerprint == made.fingerprint
        True
    """
    for path in (private, public):
        if path.exists():
            raise InvalidRequestError(f"{path}: there already; a key that is written over is lost")
    key = PrivateKey.make()
    try:
        key.write(private, password)
        write_whole(public, key.public.pem)
    except OSError as error:
        raise InvalidRequestError(f"a key cannot be written: {error}") from error
    return key.public


def _ecdsa(curve: ec.EllipticCurve) -> ec.ECDSA:
    return ec.ECDSA(_HASHES[curve.key_size]())


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
