"""Experts of few bits: what `quantization` says is true of a mixture, within a stated tolerance of float32."""

import pytest
import torch

from miniserve.errors import InvalidRequestError
from miniserve.model.cache import NoCache
from miniserve.model.checkpoint_gguf import GGUFCheckpoint
from miniserve.model.checkpoint_hf import SafetensorsCheckpoint
from miniserve.model.load import load_model
from miniserve.model.weights import load_weights
from support import tiny_models

CPU = torch.device("cpu")
TOKENS = torch.arange(48) * 11 % 128
#: Mean error of logits, of their standard deviation. Weights are random, so a token whose best experts are nearly equal
#: may go to another: that, and not the rounding of products, is most of it.
TOLERANCE = {"int8": 0.03, "fp8": 0.12, "int4": 0.35}


@torch.inference_mode()
def logits(decoder):
    return decoder.logits(decoder(TOKENS, torch.arange(len(TOKENS)), NoCache(decoder.config)))


def error(got, want):
    return float((got - want).abs().mean() / want.std())


@pytest.fixture(scope="module")
def directory(tiny_directory):
    return tiny_directory("mixtral")[0]


@pytest.fixture(scope="module")
def exact(directory):
    return logits(load_weights(SafetensorsCheckpoint(directory), dtype=torch.float32, device=CPU))


@pytest.mark.parametrize(("quantization", "kind"), [("int8", torch.int8), ("int4", torch.uint8)])
def test_on_a_cpu(compiled, directory, exact, quantization, kind):
    decoder = load_model(
        str(directory), device="cpu", backend="cpu", dtype="float32", quantization=quantization
    ).decoder
    for mixture in decoder.mixtures:
        assert [stack.matrix.data.dtype for stack in mixture.stacks] == [kind, kind]
        assert mixture.gate_up.numel() == mixture.down.numel() == 0
        assert mixture.router.matrix.data.dtype is torch.float32
    assert 0 < error(logits(decoder), exact) < TOLERANCE[quantization]


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_rows_as_a_gpu_has_them(directory, exact, quantization):
    """With the reference's operators: the Triton kernels' own test is that they equal it."""
    checkpoint = SafetensorsCheckpoint(directory)
    decoder = load_weights(checkpoint, dtype=torch.float32, device=CPU, quantization=quantization, rows=True)
    kind = torch.int8 if quantization == "int8" else torch.float8_e4m3fn
    for mixture in decoder.mixtures:
        for stack in mixture.stacks:
            assert stack.matrix.data.dtype is kind
            assert stack.matrix.scales.shape == (stack.shape[0] * stack.shape[1], 1)
    assert 0 < error(logits(decoder), exact) < TOLERANCE[quantization]


def test_less_memory(compiled, directory):
    small, large = (
        load_model(str(directory), device="cpu", backend="cpu", dtype="float32", quantization=form).decoder.weight_bytes
        for form in ("int8", "none")
    )
    assert small < large / 2


def test_experts_without_whole_blocks_are_refused_by_name(compiled, tiny_directory):
    """Theirs are rows of 48."""
    with pytest.raises(InvalidRequestError, match=r"mlp\.(experts\.0\.)?down.*8 bits"):
        load_model(str(tiny_directory("qwen3_moe")[0]), device="cpu", backend="cpu", quantization="int8")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_a_file_s_own_blocks_stay_bit_by_bit(tmp_path, kind):
    path = tmp_path / "m.gguf"
    tiny_models.export_gguf(tiny_models.make("mixtral"), "mixtral", path, kind)
    checkpoint = GGUFCheckpoint(path)
    mixture = load_weights(checkpoint, dtype=torch.float32, device=CPU, quantization="file").mixtures[1]
    for expert in range(4):
        name = f"model.layers.1.mlp.experts.{expert}"
        assert torch.equal(mixture.stacks[1][expert].dense(), checkpoint.load(f"{name}.down_proj.weight"))
        gate, up = mixture.stacks[0][expert].dense().chunk(2)
        assert torch.equal(gate, checkpoint.load(f"{name}.gate_proj.weight"))
        assert torch.equal(up, checkpoint.load(f"{name}.up_proj.weight"))
    assert mixture.stacks[0].matrix.data.dtype is (torch.int8 if kind == "Q8_0" else torch.uint8)
