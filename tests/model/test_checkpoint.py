"""Checkpoints that lie: every fault ends in an error that names the file, and the tensor where there is one."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from miniserve.errors import CorruptFileError, InvalidRequestError, TensorError, UnsupportedModelError
from miniserve.model.checkpoint_gguf import GGUFCheckpoint
from miniserve.model.checkpoint_hf import SafetensorsCheckpoint
from miniserve.model.layers import Linear
from miniserve.model.weight_plan import check_plan
from miniserve.model.weights import load_weights
from support import tiny_models

CPU = torch.device("cpu")


@pytest.fixture
def directory(tmp_path):
    tiny_models.save("qwen3", tmp_path)
    return tmp_path


def rewrite(directory, change):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_missing_tensor(directory):
    rewrite(directory, lambda t: t.pop("model.layers.1.self_attn.k_norm.weight"))
    with pytest.raises(TensorError, match=r"model\.layers\.1\.self_attn\.k_norm\.weight .*is missing"):
        check_plan(SafetensorsCheckpoint(directory))


def test_wrong_shape(directory):
    name = "model.layers.2.mlp.up_proj.weight"
    rewrite(directory, lambda t: t.update({name: torch.zeros(95, 64)}))
    with pytest.raises(TensorError, match=r"up_proj\.weight has shape \[95, 64\], not \[128, 64\]"):
        check_plan(SafetensorsCheckpoint(directory))


def test_bias_where_none_is_expected(directory):
    name = "model.layers.0.self_attn.o_proj.bias"
    rewrite(directory, lambda t: t.update({name: torch.zeros(64)}))
    with pytest.raises(TensorError, match=r"no place in the decoder: model\.layers\.0\.self_attn\.o_proj\.bias"):
        check_plan(SafetensorsCheckpoint(directory))


def test_unsupported_dtype(directory):
    rewrite(directory, lambda t: t.update({"model.norm.weight": torch.zeros(64, dtype=torch.float8_e4m3fn)}))
    with pytest.raises(UnsupportedModelError, match=r"model\.norm\.weight is stored as F8_E4M3"):
        SafetensorsCheckpoint(directory)


@pytest.mark.parametrize("keep", [0, 4, 100, 3000, -1])
def test_truncated_safetensors(directory, keep):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptFileError, match=r"model\.safetensors"):
        SafetensorsCheckpoint(directory)


def test_missing_shard(tmp_path):
    tiny_models.save("llama", tmp_path, shard_bytes=100_000)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CorruptFileError, match=rf"index\.json lists files that are missing: {shard.name}"):
        SafetensorsCheckpoint(tmp_path)


@pytest.mark.parametrize("name", ["../escape.safetensors", "/etc/passwd", "weights.bin", ""])
def test_index_may_not_point_elsewhere(tmp_path, name):
    tiny_models.save("llama", tmp_path, shard_bytes=100_000)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(CorruptFileError, match=r"is not the name of a \.safetensors file"):
        SafetensorsCheckpoint(tmp_path)


def test_stored_copy_of_tied_embedding_is_harmless(tmp_path):
    tiny_models.save("qwen2", tmp_path)
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    decoder = load_weights(SafetensorsCheckpoint(tmp_path), dtype=torch.float32, device=CPU)
    assert decoder.embed is None


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    tiny_models.export_gguf(tiny_models.make("llama"), "llama", path)
    return path.read_bytes()


@pytest.mark.parametrize("keep", [0, 3, 10, 30, 400, 5000, -1])
def test_truncated_gguf(tmp_path, gguf_bytes, keep):
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes[:keep])
    with pytest.raises(CorruptFileError, match=r"m\.gguf"):
        GGUFCheckpoint(path)


def test_gguf_that_claims_the_moon(tmp_path, gguf_bytes):
    """2^60 metadata entries: refused at once, not after reading for ever."""
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes[:16] + (2**60).to_bytes(8, "little") + gguf_bytes[24:])
    with pytest.raises(CorruptFileError, match="more than the file can hold"):
        GGUFCheckpoint(path)


def test_other_architecture_in_gguf(tmp_path, gguf_bytes):
    path = tmp_path / "m.gguf"
    path.write_bytes(
        gguf_bytes.replace(b"llama", b"bloom", 1).replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0bloom")
    )
    with pytest.raises(UnsupportedModelError, match=r"general\.architecture = 'bloom'"):
        GGUFCheckpoint(path)


def test_not_a_gguf(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"PK\x03\x04 a zip perhaps")
    with pytest.raises(CorruptFileError, match="not a GGUF file"):
        GGUFCheckpoint(path)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_any_quantizers_blocks_are_kept_exactly(tmp_path, kind):
    """Random bytes for elements: groups that leave an end of their range unused, as rounding anew would not."""
    path = tmp_path / "m.gguf"
    tiny_models.export_gguf(tiny_models.make("llama"), "llama", path, kind)
    checkpoint = GGUFCheckpoint(path)
    kept = load_weights(checkpoint, dtype=torch.float32, device=CPU, quantization="file")
    plain = load_weights(checkpoint, dtype=torch.float32, device=CPU)
    few_bits = 0
    for name, module in kept.named_modules():
        if isinstance(module, Linear):
            few_bits += module.matrix.scales is not None
            assert torch.equal(module.matrix.dense(), plain.get_submodule(name).matrix.dense()), name
    assert few_bits == 4 * checkpoint.config.num_layers + 1


def test_a_scale_that_is_no_number_is_refused(tmp_path):
    path = tmp_path / "m.gguf"
    tiny_models.export_gguf(tiny_models.make("llama"), "llama", path, "Q8_0")
    checkpoint = GGUFCheckpoint(path)
    content = bytearray(path.read_bytes())
    content[checkpoint._file.tensors["blk.0.ffn_down.weight"].offset + 1] = 0x7E  # the upper half of a half: NaN
    path.write_bytes(content)
    with pytest.raises(InvalidRequestError, match=r"layers\.0\.mlp\.down cannot have 8 bits.*not finite"):
        load_weights(GGUFCheckpoint(path), dtype=torch.float32, device=CPU, quantization="file")


@pytest.mark.parametrize("mixed", [False, True])
def test_blocks_that_cannot_stay_as_they_are_are_expanded(tmp_path, monkeypatch, mixed):
    """Rows of 96 are whole blocks of 32 in a file, and not of 64; matrices of two types cannot be one."""
    odd = tiny_models.CONFIGS["llama"]
    monkeypatch.setitem(
        tiny_models.CONFIGS, "llama", lambda: type(odd())(**(odd().to_dict() | {"intermediate_size": 96}))
    )
    path = tmp_path / "m.gguf"
    tiny_models.export_gguf(tiny_models.make("llama"), "llama", path, "Q8_0")
    checkpoint = GGUFCheckpoint(path)
    if mixed:
        bits = checkpoint.bits
        monkeypatch.setattr(checkpoint, "bits", lambda name: 4 if "gate_proj" in name else bits(name))
    decoder = load_weights(checkpoint, dtype=torch.float32, device=CPU, quantization="file")
    mlp = decoder.layers[0].mlp
    assert mlp.gate_up.matrix.data.dtype is (torch.float32 if mixed else torch.int8)
    assert torch.equal(mlp.down.matrix.data, checkpoint.load("model.layers.0.mlp.down_proj.weight"))
    gate = checkpoint.load("model.layers.0.mlp.gate_proj.weight")
    assert torch.equal(mlp.gate_up.matrix.dense()[: len(gate)], gate)


@pytest.mark.parametrize(("quantization", "largest"), [("fp8", 448), ("int8", 127)])
def test_weights_of_eight_bits_with_a_scale_a_row(directory, quantization, largest):
    checkpoint = SafetensorsCheckpoint(directory)
    rounded = load_weights(checkpoint, dtype=torch.float32, device=CPU, quantization=quantization, rows=True)
    plain = load_weights(checkpoint, dtype=torch.float32, device=CPU)
    for name, module in rounded.named_modules():
        if not isinstance(module, Linear):
            continue
        weight = plain.get_submodule(name).matrix.data
        assert module.matrix.has_row_scales == (name != "unembed")
        assert module.matrix.is_e4m3 == (name != "unembed" and quantization == "fp8")
        assert module.matrix.shape == tuple(weight.shape)
        if name != "unembed":
            scale = weight.abs().amax(-1, keepdim=True) / largest
            assert torch.allclose(module.matrix.scales, scale)
            # Half a step: of three mantissa bits or of the subnormals; of integers.
            step = torch.maximum(weight.abs() / 16, scale * 2**-10) if quantization == "fp8" else scale / 2
            assert ((module.matrix.dense() - weight).abs() <= step * 1.0001).all()
