"""Layouts: what they weigh, when they are equal, and what a difference is called."""

import json
from dataclasses import replace

import pytest
import torch

from miniserve.errors import InvalidRequestError
from miniserve.kvstore.layout import KVLayout, files_identity
from miniserve.model.load import load_model
from miniserve.runtime.kv_cache import KV_DTYPES, block_bytes

LAYOUT = KVLayout(weights="w", computed="c", num_layers=3, num_kv_heads=2, head_dim=16, block_size=4, dtype="bfloat16")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "fp8", "int8"])
def test_a_block_weighs_what_the_cache_reserves_for_it(tiny_directory, dtype):
    model = load_model(str(tiny_directory("qwen3")[0]), dtype="float32", device="cpu", backend="torch")
    layout = KVLayout.of(model, 8, dtype)
    kind = KV_DTYPES.get(dtype) or getattr(torch, dtype)
    assert layout.block_bytes == block_bytes(model.config, 8, kind)


def test_json_there_and_back():
    assert KVLayout.from_json(LAYOUT.to_json()) == LAYOUT
    assert KVLayout.from_json(LAYOUT.to_json()).digest == LAYOUT.digest


def test_each_difference_is_named_and_changes_the_digest():
    other = replace(LAYOUT, weights="x", computed="d", num_layers=4, num_kv_heads=1, head_dim=8, block_size=2, dtype="fp8",
                    rank=1, ranks=2, format=2)  # fmt: skip
    assert LAYOUT.differences(other) == [
        "weights is x, not w", "computed is d, not c", "num_layers is 4, not 3", "num_kv_heads is 1, not 2",
        "head_dim is 8, not 16", "block_size is 2, not 4", "dtype is fp8, not bfloat16", "rank is 1, not 0",
        "ranks is 2, not 1", "format is 2, not 1",
    ]  # fmt: skip
    for name in LAYOUT.__dataclass_fields__:
        one = replace(replace(LAYOUT, ranks=2), **{name: getattr(other, name)})
        assert (one.digest == LAYOUT.digest) is (one == LAYOUT)
    assert LAYOUT.differences(replace(LAYOUT)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 0}, "block_size is 0"),
        ({"block_size": "4"}, "block_size is '4': int is expected"),
        ({"num_layers": True}, "num_layers is True"),
        ({"head_dim": 2**40}, "head_dim is 1099511627776"),
        ({"dtype": "int3"}, "'int3' is not one of"),
        ({"rank": 1}, "rank is 1 of 1"),
        ({"colour": "red"}, "has the fields"),
    ],
)
def test_what_a_peer_must_not_say(change, message):
    with pytest.raises(InvalidRequestError, match=message):
        KVLayout.from_json(json.dumps(json.loads(LAYOUT.to_json()) | change))


def test_what_is_no_layout():
    for text in ("", "[]", "3", "{}"):
        with pytest.raises(InvalidRequestError):
            KVLayout.from_json(text)


def test_the_model_is_its_weights_and_how_they_are_computed_with(tiny_directory, tmp_path):
    directory = tiny_directory("qwen3")[0]
    how = {"dtype": "float32", "device": "cpu", "backend": "torch"}
    model = load_model(str(directory), **how)
    layout = KVLayout.of(model, 4, "float32")
    for path in directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    moved = load_model(str(tmp_path), **how)
    assert KVLayout.of(moved, 4, "float32") == layout, "wherever the files lie"
    other = load_model(str(directory), **(how | {"dtype": "bfloat16"}))
    (difference,) = layout.differences(KVLayout.of(other, 4, "float32"))
    assert difference.startswith("computed is torch torch.bfloat16")
    before = files_identity(moved.files)
    weights = tmp_path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert files_identity(moved.files) != before, "a single bit of a weight"
