"""Loading only what is signed: refused before it is parsed, and what is written to while it loads is noticed."""

import shutil
import time

import pytest

from miniserve import LLM, SamplingParams
from miniserve.errors import (
    AlteredFileError,
    AlteredWeightsError,
    InvalidRequestError,
    MissingFileError,
    SignatureError,
    UnsignedModelError,
)
from miniserve.model.load import load_model
from miniserve.model.sources import trust
from miniserve.model.sources.embedded import load_embedded
from miniserve.model.sources.trust import Trust
from miniserve.registry.keys import PrivateKey
from miniserve.registry.manifest import Manifest
from miniserve.registry.signing import sign
from miniserve.registry.store import Registry
from miniserve.registry.version import Provenance

PACKAGED = load_embedded()["tiny-moe"].path  # has no signature
TICK_S = 0.02  # systems keep a file's times to some milliseconds


@pytest.fixture(autouse=True)
def _registry(tmp_path, monkeypatch):
    monkeypatch.setenv("MINISERVE_REGISTRY", str(tmp_path / "registry"))


@pytest.fixture(scope="module")
def key():
    return PrivateKey.make()


@pytest.fixture
def public(key, tmp_path):
    (tmp_path / "key.pub").write_bytes(key.public.pem)
    return tmp_path / "key.pub"


@pytest.fixture
def signed(tmp_path, key):
    directory = shutil.copytree(PACKAGED, tmp_path / "model")
    Manifest.of(directory).write(directory)
    sign(directory, key)
    return directory


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def open_llm(model, public, **options):
    return LLM(str(model), device="cpu", backend="torch", require_signed=public, kv_cache_memory=2**24, **options)


def test_a_signed_model_and_draft_are_loaded(signed, public):
    with open_llm(signed, public, speculation=f"{signed}:2") as llm:
        (output,) = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=2))
    assert len(output.outputs[0].token_ids) == 2


def test_an_altered_model_is_refused_before_it_is_parsed(signed, public, monkeypatch):
    flip(signed / "model.safetensors")
    monkeypatch.setattr("miniserve.assembly.load_model", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(AlteredWeightsError, match=r"model\.safetensors"):
        open_llm(signed, public)


def test_an_unsigned_draft_is_refused_too(signed, public):
    with pytest.raises(UnsignedModelError):
        open_llm(signed, public, speculation=f"{PACKAGED}:2")


def test_what_is_written_to_while_it_loads_is_refused(signed, public, monkeypatch):
    def load(*arguments, **options):
        loaded = load_model(*arguments, **options)
        time.sleep(TICK_S)
        flip(signed / "model.safetensors")
        return loaded

    monkeypatch.setattr("miniserve.assembly.load_model", load)
    with pytest.raises(AlteredFileError, match="replaced since it was verified"):
        open_llm(signed, public)


def test_a_model_that_is_loaded_already_and_a_key_that_is_none(signed, public, tmp_path):
    loaded = load_model(str(signed), device="cpu", backend="torch")
    with pytest.raises(InvalidRequestError, match="this one is already"):
        LLM(loaded, require_signed=public)
    with pytest.raises(InvalidRequestError, match="no public key"):
        open_llm(signed, signed / "config.json")


def test_without_a_key_nothing_is_asked():
    untrusting = Trust(None)
    assert untrusting.admit("anything") == "anything"
    untrusting.confirm()


def test_a_newest_version_is_loaded_as_the_one_that_was_verified(signed, public, key, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(PACKAGED, source)
    made = Provenance(source="a run", by="ada", licence="MIT")
    registry = Registry()
    sign(registry.register("tiny", source, card="x", provenance=made).path, key)
    believer = Trust(public)
    assert believer.admit("registry:tiny") == "registry:tiny@1"
    second = registry.register("tiny", source, card="x", provenance=made)
    believer.confirm()
    with pytest.raises(UnsignedModelError, match="tiny/2: not signed"):
        believer.admit("registry:tiny")
    sign(second.path, PrivateKey.make())
    with pytest.raises(SignatureError, match="the signature is of the key"):
        believer.admit("registry:tiny")
    sign(second.path, key)
    (second.path / "config.json").unlink()
    with pytest.raises(MissingFileError):
        believer.admit("registry:tiny@2")


def test_a_file_alone_cannot_be_signed(public, tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsignedModelError, match="a file alone has no signature"):
        Trust(public).admit(str(tmp_path / "m.gguf"))


def test_a_signed_gguf_in_a_directory_of_its_own_is_admitted(public, key, tmp_path):
    directory = tmp_path / "alone"
    directory.mkdir()
    (directory / "m.gguf").write_bytes(b"GGUF")
    Manifest.of(directory).write(directory)
    sign(directory, key)
    assert Trust(public).admit(str(directory)) == str(directory)
    assert trust.resolve(str(directory)).kind == "gguf"
