"""Checkpoints that come in 8 bits: the logits of the weights they stand for, codes kept as they are, and every fault named."""

import copy
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from miniserve.errors import CorruptFileError, MiniserveError, TensorError, UnsupportedModelError
from miniserve.model.cache import NoCache
from miniserve.model.checkpoint_hf import SafetensorsCheckpoint
from miniserve.model.choices import Choices, choose
from miniserve.model.layers import Linear
from miniserve.model.load import load_model
from miniserve.model.weights import load_weights
from support import eight_bits

CPU = torch.device("cpu")
DOWN = "model.layers.1.mlp.down_proj."
TOKENS = torch.randint(3, 128, (40,), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def logits_of(decoder):
    return decoder.logits(decoder(TOKENS, torch.arange(len(TOKENS)), NoCache(decoder.config)))


@torch.inference_mode()
def reference_logits(model):
    return model(TOKENS[None]).logits[0].float()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`saved(family, scheme)` -> (directory, the transformers model that it stands for)."""
    made = {}

    def get(family, scheme):
        if (family, scheme) not in made:
            directory = tmp_path_factory.mktemp("eight") / scheme
            made[family, scheme] = directory, eight_bits.save(family, directory, scheme)
        return made[family, scheme]

    return get


@pytest.mark.parametrize("scheme", eight_bits.SCHEMES)
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_logits_equal_transformers_on_the_expanded_weights(saved, family, scheme):
    directory, reference = saved(family, scheme)
    decoder = load_weights(SafetensorsCheckpoint(directory), dtype=torch.float32, device=CPU)
    expected = reference_logits(reference)
    assert expected.abs().max() > 0.1
    assert (logits_of(decoder) - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("scheme", "quantization"),
    [
        *((scheme, "file") for scheme in ("fp8-row", "fp8-tensor", "fp8-plain", "int8-row", "int8-tensor")),
        ("fp8-row", "fp8"),
        ("fp8-tensor", "fp8"),
    ],
)
def test_codes_are_kept_bit_by_bit(saved, scheme, quantization):
    """Also where E4M3 is asked for and the file has it: rounding anew would change scales."""
    directory, reference = saved("qwen2", scheme)
    decoder = load_weights(SafetensorsCheckpoint(directory), dtype=torch.float32, device=CPU, quantization=quantization)
    codes = load_file(directory / "model.safetensors")
    mine = decoder.layers[1].attention.qkv.matrix.data.view(torch.uint8)
    theirs = [codes[f"model.layers.1.self_attn.{part}_proj.weight"].view(torch.uint8) for part in "qkv"]
    assert torch.equal(mine, torch.cat(theirs))
    for name, module in decoder.named_modules():
        if isinstance(module, Linear):
            assert module.matrix.has_row_scales == (name != "unembed"), name
    assert (logits_of(decoder) - reference_logits(reference)).abs().max() < 1e-4


def test_a_block_scale_is_expanded_where_the_file_is_to_be_kept(saved):
    directory, reference = saved("llama", "fp8-block")
    decoder = load_weights(SafetensorsCheckpoint(directory), dtype=torch.float32, device=CPU, quantization="file")
    assert not any(module.matrix.scales is not None for module in decoder.modules() if isinstance(module, Linear))
    assert (logits_of(decoder) - reference_logits(reference)).abs().max() < 1e-4


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_a_cpu_expands_and_says_so(saved, backend):
    loaded = load_model(str(saved("llama", "fp8-row")[0]), device="cpu", backend=backend)
    wide = str(loaded.choices.dtype).removeprefix("torch.")
    assert loaded.choices.quantization == "none"
    assert f"the file's E4M3 weights are expanded to {wide}: rows of it need the Triton kernels" in loaded.choices.note
    assert load_model(str(saved("llama", "fp8-row")[0]), device="cpu", quantization="none").choices.note == ""


@pytest.mark.parametrize(
    ("capability", "scheme", "quantization", "note"),
    [
        ((8, 9), "fp8-row", "file", ""),
        ((8, 0), "fp8-row", "none", "E4M3 weights are expanded to bfloat16: it needs compute capability 8.9"),
        ((8, 0), "int8-row", "file", ""),
        ((9, 0), "fp8-block", "none", r"a scale for each block of \(128, 128\) is not one for each row"),
    ],
)
def test_what_a_gpu_does_with_them(saved, monkeypatch, capability, scheme, quantization, note):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    on_gpu = Choices(torch.device("cuda"), "triton", torch.bfloat16, torch.bfloat16, "none")
    stored = SafetensorsCheckpoint(saved("llama", scheme)[0]).stored
    made = on_gpu.for_file(stored, asked="auto")
    assert made.quantization == quantization
    assert bool(made.note) == bool(note)
    assert re.search(note, made.note)
    assert on_gpu.for_file(stored, asked="none") is on_gpu
    assert on_gpu.for_file(None, asked="auto") is on_gpu


def faults():
    """What is done to (tensors, scale's name, weight's name) -> what the error says."""
    scale, weight = DOWN + "weight_scale", DOWN + "weight"
    yield lambda t: t.pop(scale), TensorError, rf"{weight} is stored in E4M3, and its scale {scale} is missing"
    yield (
        lambda t: t.update({scale: t[scale][:5]}),
        TensorError,
        rf"{scale} has shape \[5, 1\], not \[64, 1\] or \[64\]",
    )
    yield lambda t: t.update({scale: t[scale].T.contiguous()}), TensorError, rf"{scale} has shape \[1, 64\]"
    yield lambda t: t.update({scale: t[scale].int()}), TensorError, rf"{scale} is stored as I32"
    yield (
        lambda t: t.update({weight: t[weight].float()}),
        TensorError,
        rf"{scale} is a scale, and {weight} is not stored",
    )
    yield lambda t: t.update({weight: t[weight].view(torch.int8)}), MiniserveError, r"down_proj\.weight"
    yield lambda t: t.update({weight: t[weight][:63]}), TensorError, rf"{scale} has shape \[64, 1\], not \[63, 1\]"
    norm = "model.norm.weight"
    yield lambda t: t.update({norm: t[norm].to(torch.float8_e4m3fn)}), TensorError, rf"{norm} \[64\] is stored in E4M3"
    for value in (0.0, -1.0, torch.nan, torch.inf):
        yield (
            lambda t, v=value: t[scale].__setitem__(3, v),
            TensorError,
            rf"{scale} holds a scale that is not finite, or",
        )


@pytest.mark.parametrize(("change", "error", "message"), [*faults()])
@pytest.mark.parametrize("quantization", ["none", "file"])
def test_garbled_scales_and_weights(saved, tmp_path, change, error, message, quantization):
    directory, _ = saved("llama", "fp8-row")
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    with pytest.raises(error, match=rf"model\.safetensors.*{message}"):
        load_weights(SafetensorsCheckpoint(tmp_path), dtype=torch.float32, device=CPU, quantization=quantization)


def edits():
    """A path into the `quantization_config` of fp8-row, the value to put there, and what the error says."""
    group, weights = ("config_groups", "group_0"), ("config_groups", "group_0", "weights")
    yield ("quant_method",), "gptq", "quant_method = 'gptq' is not supported. Supported: compressed-tensors, fp8"
    yield ("quant_method",), None, "quant_method is missing"
    yield ("format",), "pack-quantized", "format = 'pack-quantized' is not supported"
    yield ("format",), "nvfp4-pack-quantized", "nvfp4"
    yield ("format",), "int-quantized", "format"
    yield ("kv_cache_scheme",), {"num_bits": 8}, "kv_cache_scheme"
    yield ("sparsity_config",), {"format": "sparse-24-bitmask"}, "sparse-24-bitmask"
    yield ("transform_config",), {"config_groups": 1}, "transform_config"
    yield ("mystery",), 1, "mystery"
    yield ("config_groups",), {}, "config_groups has 0 groups"
    yield ("config_groups",), [], "config_groups should be an object"
    yield group, None, "group_0 should be an object"
    yield (*group, "targets"), ["re:.*q_proj"], "targets"
    yield (*group, "output_activations"), {"num_bits": 8}, "output_activations"
    yield (*group, "input_activations", "num_bits"), 4, "input_activations: num_bits = 4"
    yield weights, None, "weights should be an object"
    yield (*weights, "num_bits"), 4, "num_bits = 4"
    yield (*weights, "type"), "int", "type = 'int'"
    yield (*weights, "symmetric"), False, "symmetric"
    yield (*weights, "dynamic"), True, "dynamic"
    yield (*weights, "strategy"), "group", "strategy = 'group'"
    yield (*weights, "group_size"), 128, "group_size = 128"
    yield (*weights, "block_structure"), [128, 128], "block_structure"
    yield (*weights, "actorder"), "group", "actorder"


@pytest.mark.parametrize(("path", "value", "message"), [*edits()])
def test_what_is_not_supported_is_refused_by_name(saved, tmp_path, path, value, message):
    directory, _ = saved("llama", "fp8-row")
    content = json.loads((directory / "config.json").read_text())
    *outer, last = path
    at = content["quantization_config"] = copy.deepcopy(content["quantization_config"])
    for part in outer:
        at = at[part]
    at[last] = value
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(
        (UnsupportedModelError, CorruptFileError), match=rf"config\.json: quantization_config.*{message}"
    ):
        SafetensorsCheckpoint(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"), [("fmt", "e5m2"), ("weight_block_size", [128]), ("weight_block_size", [0, 1])]
)
def test_other_fp8_is_refused_by_name(saved, tmp_path, field, value):
    content = json.loads((saved("llama", "fp8-block")[0] / "config.json").read_text())
    content["quantization_config"][field] = value
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises((UnsupportedModelError, CorruptFileError), match=field):
        SafetensorsCheckpoint(tmp_path)


def test_int8_weights_in_groups_can_still_be_asked_for(compiled, saved):
    """Rounded anew, from what the file's codes stand for."""
    loaded = load_model(str(saved("llama", "fp8-row")[0]), device="cpu", backend="cpu", quantization="int8")
    assert loaded.choices == choose("cpu", backend="cpu", quantization="int8")
    assert loaded.decoder.layers[0].mlp.down.matrix.data.dtype is torch.int8
