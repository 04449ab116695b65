"""Our GGUF header reader against the `gguf` package's own reader and writer."""

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize

from miniserve.errors import CorruptFileError, TensorError, UnsupportedModelError
from miniserve.model.gguf import BLOCK_BITS, GGUFFile

METADATA = {
    "a.uint8": (200, "uint8"), "a.int8": (-5, "int8"), "a.uint16": (60000, "uint16"), "a.int16": (-30000, "int16"),
    "a.uint32": (2**32 - 1, "uint32"), "a.int32": (-(2**31), "int32"), "a.uint64": (2**64 - 1, "uint64"),
    "a.int64": (-(2**63), "int64"), "a.float32": (0.5, "float32"), "a.float64": (1e-300, "float64"),
    "a.bool": (True, "bool"), "a.string": ("naïve ☃", "string"),
}  # fmt: skip
KINDS = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file with every scalar type, arrays, and a matrix in each format. Returns path and the float32 matrix."""
    path = tmp_path_factory.mktemp("gguf") / "all.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, (value, kind) in METADATA.items():
        getattr(writer, f"add_{kind}")(key, value)
    writer.add_array("a.strings", ["", "x", "é" * 100])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_array("a.floats", [0.25, -1.5])
    matrix = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    for kind in KINDS:
        number = gguf.GGMLQuantizationType[kind]
        data = quantize(matrix, number)
        writer.add_tensor(f"w.{kind}", data, raw_dtype=number if data.dtype == np.uint8 else None)
    writer.add_tensor("stacked", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, matrix


def test_metadata_equals_what_was_written(written):
    metadata = GGUFFile(written[0]).metadata
    assert {key: metadata[key] for key in METADATA} == {key: value for key, (value, _) in METADATA.items()}
    assert metadata["a.strings"] == ["", "x", "é" * 100]
    assert metadata["a.numbers"] == [1, 2, 3]
    assert metadata["a.floats"] == [0.25, -1.5]


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_equal_the_package_reader(written, kind):
    path, matrix = written
    (theirs,) = (t for t in gguf.GGUFReader(path).tensors if t.name == f"w.{kind}")
    ours = GGUFFile(path).load(f"w.{kind}")
    assert ours.dtype == np.float32
    assert ours.shape == matrix.shape
    expected = theirs.data if kind in ("F32", "F16") else dequantize(theirs.data, theirs.tensor_type)
    assert np.array_equal(ours, expected.astype(np.float32))
    assert np.abs(ours - matrix).max() < (0.5 if kind.startswith("Q4") else 0.3)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_blocks_undecoded_are_worth_what_the_package_decodes(written, kind):
    path, _ = written
    file = GGUFFile(path)
    q, scale, minimum = file.blocks(f"w.{kind}")
    values = q.reshape(6, 2, 32) * scale.astype(np.float32)[..., None]
    if minimum is not None:
        values += minimum.astype(np.float32)[..., None]
    assert BLOCK_BITS[file.tensors[f"w.{kind}"].type_id] == (8 if minimum is None else 4)
    assert np.array_equal(values.reshape(6, 64), file.load(f"w.{kind}"))


def test_one_row_of_a_stack(written):
    file = GGUFFile(written[0])
    assert file.tensors["stacked"].shape == (2, 3, 4)
    assert np.array_equal(file.load("stacked", 1), np.arange(12, 24, dtype=np.float32).reshape(3, 4))


def test_default_model_equals_the_package_reader(smollm2_gguf):
    """All 33 keys, 49,152 tokens and 48,900 merges included."""
    theirs = {k: f.contents() for k, f in gguf.GGUFReader(smollm2_gguf).fields.items() if not k.startswith("GGUF.")}
    assert GGUFFile(smollm2_gguf).metadata == theirs


def test_missing_tensor_is_named(written):
    with pytest.raises(TensorError, match="tensor nowhere is missing"):
        GGUFFile(written[0]).load("nowhere")


def patched(written, tmp_path, old, new):
    data = written[0].read_bytes()
    assert data.count(old) == 1
    path = tmp_path / "patched.gguf"
    path.write_bytes(data.replace(old, new))
    return path


def test_version_is_checked(written, tmp_path):
    path = tmp_path / "v9.gguf"
    path.write_bytes(b"GGUF" + (9).to_bytes(4, "little") + written[0].read_bytes()[8:])
    with pytest.raises(UnsupportedModelError, match="version 9"):
        GGUFFile(path)


def test_repeated_names_are_refused(written, tmp_path):
    with pytest.raises(TensorError, match=r"w\.Q5_1 appears twice"):
        GGUFFile(patched(written, tmp_path, b"w.Q5_0", b"w.Q5_1"))
    with pytest.raises(CorruptFileError, match=r"'a\.int64' appears twice"):
        GGUFFile(patched(written, tmp_path, b"a.int32", b"a.int64"))
