"""Signatures of models with a key, in the form of OpenSSF Model Signing 1.0, whose tool verifies them and makes others.

`model.sig` is a Sigstore bundle: in a DSSE envelope, signed with ECDSA, stands an in-toto statement with the SHA-256 of
every file of the model, its manifest too. The envelope is put together here, with `cryptography` alone: the library
`model_signing` brings clients of Sigstore's services along, sixteen packages in all, and who verifies should have to
trust little. Tests hold the two against each other, both ways.

A check goes from the key inwards, and reads each file once: the signature, then the manifest by what is signed, then
the files by the manifest. What it cannot show: that a key was stolen, or that a newer version was taken away.

Forms: github.com/secure-systems-lab/dsse (protocol.md), github.com/in-toto/attestation (Statement v1).
"""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from miniserve.errors import ManifestError, SignatureError, UnsignedModelError
from miniserve.registry.files import canonical_json, write_whole
from miniserve.registry.keys import PrivateKey, PublicKey
from miniserve.registry.manifest import MANIFEST, SIGNATURE, Checked, Manifest, manifest_bytes

_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"


def sign(directory: Path, key: PrivateKey) -> Path:
    """Sign a model that is as its manifest says; returns the signature's path. An older signature is replaced.

    Raises:
        RefusedModelError: one of its subclasses: the model is not as its manifest says, or has none.
    """
    content = manifest_bytes(directory)
    manifest = Manifest.parse(content, directory)
    manifest.check(directory)
    payload = canonical_json(_statement(directory.absolute().name, _signed_hashes(manifest, content)))
    bundle = _bundle(key.public.fingerprint, payload, key.sign(_encoded(payload)))
    write_whole(directory / SIGNATURE, json.dumps(bundle, separators=(",", ":")).encode("ascii"))
    return directory / SIGNATURE


def verify(directory: Path, key: PublicKey, *, on_bytes: Callable[[str, int], None] | None = None) -> Checked:
    """Whether a model is the one that the key's owner has signed: every file, and none besides.

    Args:
        directory: the model's.
        key: its owner's signature counts, and nobody else's.
        on_bytes: as `Manifest.check` takes it.

    Raises:
        UnsignedModelError: there is no signature.
        SignatureError: it was altered, or is another key's.
        ManifestError: the manifest is not the one that was signed.
        RefusedModelError, UnsafeWeightsError: as `Manifest.check` raises them.
    """
    signed = _signed(directory / SIGNATURE, key)
    content = manifest_bytes(directory)
    if signed.get(MANIFEST) != hashlib.sha256(content).hexdigest():
        raise ManifestError(f"{directory / MANIFEST}: the manifest was altered: it is not the one that was signed")
    manifest = Manifest.parse(content, directory)
    if signed != _signed_hashes(manifest, content):
        raise ManifestError(f"{directory / MANIFEST}: the signature is of other files than the manifest lists")
    return manifest.check(directory, on_bytes=on_bytes)


def _signed(path: Path, key: PublicKey) -> dict[str, str]:
    """What the key's owner has signed: the SHA-256 of each file, by name."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UnsignedModelError(f"{path.parent}: not signed: there is no {SIGNATURE}") from error
    try:
        bundle = json.loads(content.decode("ascii"))
        envelope = bundle["dsseEnvelope"]
        texts = envelope["payload"], envelope["signatures"][0]["sig"]
        payload, signature = (base64.b64decode(text, validate=True) for text in texts)
        hint = bundle["verificationMaterial"]["publicKey"]["hint"]
        # Nothing in the file is left unsaid: a bit that may be flipped unnoticed has no place in a signature.
        whole = bundle == _bundle(hint, payload, signature)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise SignatureError(f"{path}: the signature was altered: it is not in the form of one")
    if hint != key.fingerprint:
        raise SignatureError(
            f"{path}: the signature is of the key with SHA-256 {hint}, not of that with {key.fingerprint}; or it was "
            "altered"
        )
    if not key.has_signed(_encoded(payload), signature):
        raise SignatureError(f"{path}: the signature was altered: the key has not signed what it says")
    return _hashes(path, payload)


def _hashes(path: Path, payload: bytes) -> dict[str, str]:
    """From a statement that the key has signed; what it asks for beyond what is checked here is refused."""
    try:
        statement = json.loads(payload)
        resources = statement["predicate"]["resources"]
        kinds = {statement["_type"], statement["predicateType"], statement["predicate"]["serialization"]["method"]}
        if kinds != {_STATEMENT, _PREDICATE, "files"} or any(each["algorithm"] != "sha256" for each in resources):
            raise ValueError("another form")
        return {each["name"]: each["digest"] for each in resources}
    except (ValueError, TypeError, KeyError) as error:
        raise SignatureError(f"{path}: what is signed is no list of files with their SHA-256") from error


def _signed_hashes(manifest: Manifest, content: bytes) -> dict[str, str]:
    """Of every file that a signature is of; `content` is the manifest's own."""
    hashes = {name: entry.sha256 for name, entry in manifest.files.items()}
    return hashes | {MANIFEST: hashlib.sha256(content).hexdigest()}


def _statement(name: str, hashes: Mapping[str, str]) -> dict[str, Any]:
    resources = [{"name": file, "algorithm": "sha256", "digest": hashes[file]} for file in sorted(hashes)]
    root = hashlib.sha256(b"".join(bytes.fromhex(each["digest"]) for each in resources)).hexdigest()
    how = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [SIGNATURE]}
    return {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": _PREDICATE,
        "predicate": {"serialization": how, "resources": resources},
    }


def _bundle(hint: str, payload: bytes, signature: bytes) -> dict[str, Any]:
    return {
        "mediaType": _BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode("ascii"),
            "payloadType": _PAYLOAD,
            "signatures": [{"sig": base64.b64encode(signature).decode("ascii"), "keyid": ""}],
        },
    }


def _encoded(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD), _PAYLOAD.encode(), len(payload), payload)
