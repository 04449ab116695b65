"""`verify`: every damaged file is found and named; whole ones pass with their hashes."""

import hashlib
import json
import os
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from miniserve.errors import ChecksumError, CorruptFileError, TensorError
from miniserve.model.sources.files import ModelFiles
from miniserve.model.sources.verify import verify
from miniserve.registry.files import sha256_of

EMPTY_GGUF = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)  # version 3, no tensors, no metadata


def test_sha256_reports_what_it_read(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(EMPTY_GGUF)
    seen: list[int] = []
    assert sha256_of(file, seen.append) == hashlib.sha256(EMPTY_GGUF).hexdigest()
    assert sum(seen) == len(EMPTY_GGUF)


@pytest.fixture
def sharded(tmp_path) -> ModelFiles:
    """A directory with two safetensors files and their index."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    for name in ("a", "b"):
        save_file({name: np.zeros((8, 8), np.float32)}, directory / f"{name}.safetensors")
    index = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return ModelFiles(str(directory), "directory", directory, "local directory")


def test_verify_lists_every_file_of_a_directory(sharded):
    checks = verify(sharded)
    assert {c.path.name for c in checks} == {p.name for p in sharded.path.iterdir()}
    assert all(c.sha256 == sha256_of(c.path) and c.expected_sha256 is None for c in checks)


def truncate(directory):
    os.truncate(directory / "b.safetensors", 200)


def lose(directory):
    (directory / "b.safetensors").unlink()


def swap(directory):
    (directory / "a.safetensors").replace(directory / "b.safetensors")
    save_file({"a": np.zeros(1, np.float32)}, directory / "a.safetensors")


def garble(directory):
    (directory / "model.safetensors.index.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "error", "named"),
    [
        (truncate, CorruptFileError, "b.safetensors: not a whole"),
        (lose, CorruptFileError, "files that are missing: b.safetensors"),
        (swap, TensorError, "b.safetensors: no tensor 'b'"),
        (garble, CorruptFileError, "index.json: a JSON object was expected"),
    ],
)
def test_verify_names_the_damaged_file(sharded, damage, error, named):
    damage(sharded.path)
    with pytest.raises(error, match=named):
        verify(sharded)


def test_verify_knows_a_gguf_file_by_its_first_bytes(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"version https://git-lfs")
    with pytest.raises(CorruptFileError, match="not a GGUF"):
        verify(ModelFiles("m", "gguf", file, "local file"))


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_verify_holds_a_hub_file_to_the_hash_its_blob_is_named_by(tmp_path):
    blob, link = tmp_path / hashlib.sha256(EMPTY_GGUF).hexdigest(), tmp_path / "m.gguf"
    blob.write_bytes(EMPTY_GGUF)
    link.symlink_to(blob)
    files = ModelFiles("m", "gguf", link, "a snapshot")
    assert verify(files)[0].expected_sha256 == blob.name
    blob.write_bytes(EMPTY_GGUF + b"?")
    with pytest.raises(ChecksumError, match=blob.name):
        verify(files)


def sha256_of_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
