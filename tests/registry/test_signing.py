"""Signatures: one flipped bit anywhere is refused, each with its own message; and OpenSSF's own tool agrees."""

import os
import shutil
import subprocess
import sys

import model_signing
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.errors import (
    AlteredTokenizerError,
    AlteredWeightsError,
    ExtraFileError,
    InvalidRequestError,
    ManifestError,
    MissingFileError,
    SignatureError,
    UnsignedModelError,
)
from miniserve.registry.keys import PrivateKey, PublicKey, make_keys
from miniserve.registry.manifest import MANIFEST, SIGNATURE, Manifest
from miniserve.registry.signing import sign, verify

FILES = {"model.safetensors": b"weights" * 9, "config.json": b"{}", "chat_template.jinja": b"{{ messages }}"}
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """(private, public) key files."""
    directory = tmp_path_factory.mktemp("keys")
    make_keys(directory / "key.pem", directory / "key.pub")
    return directory / "key.pem", directory / "key.pub"


@pytest.fixture(scope="module")
def signed(tmp_path_factory, keys):
    """A signed model that stays as it is."""
    directory = tmp_path_factory.mktemp("signed") / "model"
    directory.mkdir()
    for name, content in FILES.items():
        (directory / name).write_bytes(content)
    Manifest.of(directory).write(directory)
    assert sign(directory, PrivateKey.read(keys[0])) == directory / SIGNATURE
    return directory


@pytest.fixture
def directory(signed, tmp_path):
    """A copy, to be altered."""
    return shutil.copytree(signed, tmp_path / "model")


def check(directory, keys):
    return verify(directory, PublicKey.read(keys[1]))


def test_what_was_signed_passes_and_every_file_is_read_once(signed, keys):
    seen = []
    checked = verify(signed, PublicKey.read(keys[1]), on_bytes=lambda name, _: seen.append(name))
    assert sorted(seen) == sorted(FILES)
    assert set(checked.stamps) == {".", *FILES}


BITS = {
    "model.safetensors": (AlteredWeightsError, r"altered \(weights\)"),
    "chat_template.jinja": (AlteredTokenizerError, r"altered \(tokenizer or chat template\)"),
    MANIFEST: (ManifestError, "the manifest was altered"),
    SIGNATURE: (SignatureError, "the signature was altered|or it was altered"),
}


@pytest.mark.parametrize(("name", "examples"), [*((n, 25) for n in BITS if n != SIGNATURE), (SIGNATURE, 300)])
def test_one_flipped_bit_is_refused_with_a_message_of_its_own(signed, tmp_path_factory, keys, name, examples):
    error, says = BITS[name]
    whole = (signed / name).read_bytes()
    directory = shutil.copytree(signed, tmp_path_factory.mktemp("flipped") / "model")
    (directory / name).chmod(0o644)

    @settings(max_examples=examples, deadline=None)
    @given(bit=st.integers(0, len(whole) * 8 - 1))
    def flip(bit):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        (directory / name).write_bytes(content)
        with pytest.raises(error, match=says) as caught:
            check(directory, keys)
        assert type(caught.value) is error
        assert name in str(caught.value)

    flip()
    (directory / name).write_bytes(whole)
    check(directory, keys)


def test_a_manifest_that_was_made_anew_for_altered_weights_is_not_the_signed_one(directory, keys):
    (directory / "model.safetensors").write_bytes(b"other")
    Manifest.of(directory).write(directory)
    Manifest.read(directory).check(directory)  # by itself all is well
    with pytest.raises(ManifestError, match="not the one that was signed"):
        check(directory, keys)


def test_another_key_no_signature_an_extra_and_a_missing_file(directory, keys, tmp_path):
    other = make_keys(tmp_path / "other.pem", tmp_path / "other.pub")
    with pytest.raises(SignatureError, match=f"not of that with {other.fingerprint}"):
        verify(directory, other)
    (directory / "vocab.txt").write_text("")
    with pytest.raises(ExtraFileError, match=r"vocab\.txt"):
        check(directory, keys)
    (directory / "vocab.txt").unlink()
    (directory / "config.json").unlink()
    with pytest.raises(MissingFileError, match=r"config\.json"):
        check(directory, keys)
    (directory / SIGNATURE).unlink()
    with pytest.raises(UnsignedModelError, match="not signed"):
        check(directory, keys)


def test_only_what_is_as_its_manifest_says_is_signed(directory, keys):
    before = (directory / SIGNATURE).read_bytes()
    (directory / "model.safetensors").write_bytes(b"other")
    with pytest.raises(AlteredWeightsError):
        sign(directory, PrivateKey.read(keys[0]))
    assert (directory / SIGNATURE).read_bytes() == before


def test_openssf_verifies_what_is_signed_here(signed, keys, directory):
    config = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=keys[1])
    config.verify(signed, signed / SIGNATURE)
    (directory / "config.json").write_bytes(b"[]")
    with pytest.raises(ValueError, match=r"Hash mismatch for 'config\.json'"):
        config.verify(directory, directory / SIGNATURE)


def test_what_openssf_signs_is_verified_here(directory, keys):
    (directory / SIGNATURE).unlink()
    hashing = model_signing.hashing.Config().set_ignored_paths(paths=[directory / SIGNATURE])
    config = model_signing.signing.Config().set_hashing_config(hashing).use_elliptic_key_signer(private_key=keys[0])
    config.sign(directory, directory / SIGNATURE)
    check(directory, keys)
    (directory / "chat_template.jinja").write_bytes(b"{{ other }}")
    with pytest.raises(AlteredTokenizerError):
        check(directory, keys)


def test_openssf_signing_other_files_than_the_manifest_lists_is_refused(directory, keys):
    paths = [directory / SIGNATURE, directory / "config.json"]
    hashing = model_signing.hashing.Config().set_ignored_paths(paths=paths)
    config = model_signing.signing.Config().set_hashing_config(hashing).use_elliptic_key_signer(private_key=keys[0])
    config.sign(directory, directory / SIGNATURE)
    with pytest.raises(ManifestError, match="of other files than the manifest lists"):
        check(directory, keys)


def test_keys_are_for_their_owner_and_are_never_written_over(tmp_path):
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    made = make_keys(private, public, "secret")
    assert private.stat().st_mode & 0o077 == 0
    assert PrivateKey.read(private, "secret").public.fingerprint == made.fingerprint
    assert PublicKey.read(public).fingerprint == made.fingerprint
    for password in (None, "wrong"):
        with pytest.raises(InvalidRequestError, match="no private key can be read"):
            PrivateKey.read(private, password)
    with pytest.raises(InvalidRequestError, match="there already"):
        make_keys(private, tmp_path / "new.pub")
    with pytest.raises(InvalidRequestError, match="no public key in PEM"):
        PublicKey.read(private)
    with pytest.raises(InvalidRequestError, match="No such file"):
        PublicKey.read(tmp_path / "nowhere")


def test_a_key_of_another_kind_is_refused(tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "key.pub").write_bytes(Ed25519PrivateKey.generate().public_key().public_bytes(*form))
    with pytest.raises(InvalidRequestError, match="not a key for ECDSA"):
        PublicKey.read(tmp_path / "key.pub")


def test_without_cryptography_it_is_said_what_to_install():
    code = (
        "import sys\nsys.modules['cryptography'] = None\nimport miniserve.registry.store\n"
        "try:\n    import miniserve.registry.signing\nexcept Exception as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S, check=True, env=os.environ
    )
    assert done.stdout == "signatures need the package cryptography: pip install 'miniserve[signing]'\n"
