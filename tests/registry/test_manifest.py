"""Manifests: each way in which a model can be another than the one on record has its own error."""

import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.errors import (
    AlteredFileError,
    AlteredTokenizerError,
    AlteredWeightsError,
    ExtraFileError,
    InvalidRequestError,
    ManifestError,
    MissingFileError,
    UnsafeWeightsError,
)
from miniserve.registry.manifest import MANIFEST, Manifest

TICK_S = 0.02  # systems keep a file's times to some milliseconds
FILES = {
    "model.safetensors": b"weights" * 9,
    "config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "card.md": b"# A model",
}


def put(directory):
    for name, content in FILES.items():
        (directory / name).write_bytes(content)
    Manifest.of(directory).write(directory)
    return directory


@pytest.fixture
def directory(tmp_path):
    return put(tmp_path)


def check(directory):
    return Manifest.read(directory).check(directory)


def test_a_manifest_lists_every_file_and_passes(directory):
    seen = []
    manifest = Manifest.read(directory)
    assert set(manifest.files) == set(FILES)
    checked = manifest.check(directory, on_bytes=lambda name, size: seen.append((name, size)))
    assert sorted(seen) == sorted((name, len(content)) for name, content in FILES.items())
    checked.unchanged()
    assert manifest == Manifest.of(directory)


ALTERED = {
    "model.safetensors": (AlteredWeightsError, r"altered \(weights\)"),
    "chat_template.jinja": (AlteredTokenizerError, r"altered \(tokenizer or chat template\)"),
    "config.json": (AlteredFileError, r"altered \(configuration\)"),
    "card.md": (AlteredFileError, r"altered \(text about the model\)"),
    MANIFEST: (ManifestError, "the manifest was altered"),
}


@pytest.mark.parametrize("name", ALTERED)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_one_flipped_bit_is_refused_and_named(tmp_path_factory, name, data):
    directory = put(tmp_path_factory.mktemp("model"))
    content = bytearray((directory / name).read_bytes())
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8
    (directory / name).chmod(0o644)
    (directory / name).write_bytes(content)
    error, says = ALTERED[name]
    with pytest.raises(error, match=says) as caught:
        check(directory)
    assert type(caught.value) is error
    assert name in str(caught.value)


def test_another_size_is_told_without_reading(directory):
    (directory / "model.safetensors").write_bytes(b"short")
    with pytest.raises(AlteredWeightsError, match="5 bytes, and its manifest says 63"):
        check(directory)


def test_a_missing_and_an_extra_file_are_named(directory):
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(ExtraFileError, match=r"tokenizer\.json: not in its manifest"):
        check(directory)
    (directory / "tokenizer.json").unlink()
    (directory / "config.json").unlink()
    with pytest.raises(MissingFileError, match=r"config\.json: in its manifest, and not there"):
        check(directory)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "m.PT", "x.pkl", "modeling_evil.py", "what.json", ".hidden"])
def test_pickles_programs_and_the_unknown_are_refused_by_name(directory, name):
    (directory / name).write_bytes(b"")
    with pytest.raises(UnsafeWeightsError, match=rf"{name}: refused"):
        check(directory)
    with pytest.raises(UnsafeWeightsError, match=rf"{name}: refused"):
        Manifest.of(directory)


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_links_and_folders_are_no_files_of_a_model(directory):
    (directory / "vocab.txt").symlink_to(directory / "card.md")
    with pytest.raises(ExtraFileError, match=r"vocab\.txt: a folder or a link"):
        check(directory)
    (directory / "vocab.txt").unlink()
    (directory / "original").mkdir()
    with pytest.raises(ExtraFileError, match="original: a folder or a link"):
        check(directory)


def test_no_manifest_is_said(tmp_path):
    with pytest.raises(ManifestError, match=r"no manifest\.json"):
        Manifest.read(tmp_path)
    with pytest.raises(InvalidRequestError, match="not a directory"):
        Manifest.of(tmp_path / "model.gguf")


def test_a_file_written_to_after_the_check_is_noticed(directory):
    checked = check(directory)
    path = directory / "model.safetensors"
    times = path.stat()
    time.sleep(TICK_S)
    path.write_bytes(path.read_bytes())  # the same content, but who knows what was there in between
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(AlteredFileError, match=r"model\.safetensors: written to or replaced"):
        checked.unchanged()
    checked = check(directory)
    time.sleep(TICK_S)
    path.rename(directory / "aside")  # away and back: another may have been read in between
    (directory / "aside").rename(path)
    with pytest.raises(AlteredFileError, match="written to or replaced"):
        checked.unchanged()
