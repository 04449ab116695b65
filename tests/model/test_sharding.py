"""A model in slices: the same logits as whole, for every family and both formats, and no slice that is not one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from miniserve.errors import InvalidRequestError, TensorError
from miniserve.kernels.formats import E4M3
from miniserve.kernels.groups import Groups
from miniserve.kernels.scaled_gemm import quantise_rows
from miniserve.model.cache import NoCache
from miniserve.model.checkpoint import Checkpoint
from miniserve.model.checkpoint_gguf import GGUFCheckpoint
from miniserve.model.checkpoint_hf import SafetensorsCheckpoint
from miniserve.model.choices import choose
from miniserve.model.config import MoE
from miniserve.model.load import load_decoder
from miniserve.model.one_call import OneCall
from miniserve.model.sharding import ShardedCheckpoint, sharded_config
from miniserve.model.weight_plan import weight_plan
from support import tiny_models
from support.thread_ranks import ThreadRanks

TOKENS = torch.randint(3, 128, (40,), generator=torch.Generator().manual_seed(1))


def logits_of(checkpoint, size, **how):
    """Of every rank, [size, T, V]."""
    choices = choose("cpu", **({"dtype": "float32", "backend": "torch"} | how))

    @torch.inference_mode()
    def compute(communicator):
        decoder = load_decoder(checkpoint, choices, communicator)
        return decoder.logits(decoder(TOKENS, torch.arange(len(TOKENS)), NoCache(decoder.config)))

    return torch.stack(ThreadRanks(size).run(compute))


@pytest.mark.parametrize("family", tiny_models.CONFIGS)
def test_logits_of_two_ranks_equal_transformers(family, tiny_directory):
    directory, reference = tiny_directory(family)
    checkpoint = SafetensorsCheckpoint(directory)
    with torch.inference_mode():
        expected = reference(TOKENS[None]).logits[0]
    first, second = logits_of(checkpoint, 2)
    assert torch.equal(first, second), "ranks that differ would choose different experts"
    assert (first - expected).abs().max() < 1e-4
    assert (first - logits_of(checkpoint, 1)[0]).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["llama", "mixtral", "olmoe"])
def test_two_ranks_from_gguf(family, tmp_path, tiny_directory):
    """Rows of llama's Q and K lie in another order there: they are put right before a slice is taken."""
    tiny_models.export_gguf(tiny_directory(family)[1], family, tmp_path / "model.gguf")
    checkpoint = GGUFCheckpoint(tmp_path / "model.gguf")
    assert (logits_of(checkpoint, 2)[0] - logits_of(checkpoint, 1)[0]).abs().max() < 1e-4


def test_two_ranks_with_cpp_kernels(compiled, tiny_directory):
    checkpoint = SafetensorsCheckpoint(tiny_directory("qwen3")[0])
    expected = logits_of(checkpoint, 1)[0]
    assert (logits_of(checkpoint, 2, backend="cpu")[0] - expected).abs().max() < 1e-4


@pytest.mark.parametrize("blocks", ["Q8_0", "Q4_1"])
def test_blocks_of_a_file_are_cut_bit_by_bit(compiled, blocks, tmp_path, tiny_directory):
    tiny_models.export_gguf(tiny_directory("llama")[1], "llama", tmp_path / "model.gguf", blocks)
    checkpoint, choices = GGUFCheckpoint(tmp_path / "model.gguf"), choose("cpu", backend="cpu", quantization="file")
    whole = load_decoder(checkpoint, choices).layers[1]
    slices = [each.layers[1] for each in ThreadRanks(2).run(lambda rank: load_decoder(checkpoint, choices, rank))]
    for name in ("attention.out", "mlp.down"):
        parts = [each.get_submodule(name).matrix for each in slices]
        assert not any(part.data.is_floating_point() for part in parts)
        assert torch.equal(torch.cat([part.dense() for part in parts], 1), whole.get_submodule(name).matrix.dense())
    halves = [each.mlp.gate_up.matrix.dense().chunk(2) for each in slices]
    fused = torch.cat([half[part] for part in (0, 1) for half in halves])
    assert torch.equal(fused, whole.mlp.gate_up.matrix.dense())


class Zeros(Checkpoint):
    """Any config's checkpoint, of blocks."""

    def __init__(self, config):
        self.path, self.config = Path("zeros"), config
        self.shapes = {part.name: part.shape for part in weight_plan(config)}

    def load(self, name):
        return torch.zeros(self.shapes[name])

    def bits(self, name):
        return 8

    def groups(self, name):
        return Groups.rounding(self.load(name), 8)

    def tokenizer(self):
        raise NotImplementedError


@pytest.fixture
def config(tiny_directory):
    return SafetensorsCheckpoint(tiny_directory("llama")[0]).config


def test_a_cut_through_blocks_leaves_none(config):
    """Columns of 160: 80 a rank, which is two and a half groups. Such a matrix is expanded, its values what they are."""
    whole = Zeros(replace(config, intermediate_size=160))
    cut = ShardedCheckpoint(whole, 1, 2)
    down, gate = "model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.gate_proj.weight"
    assert (cut.bits(down), cut.bits(gate), whole.bits(down)) == (None, 8, 8)
    assert cut.load(down).shape == (64, 80)
    assert cut.groups(gate).q.shape == (80, 64)


class InRows(Zeros):
    """The same in rows of E4M3 with a scale each, and of random values."""

    def row_format(self, name):
        return E4M3

    def rows(self, name):
        return quantise_rows(torch.randn(self.shapes[name], generator=torch.Generator().manual_seed(len(name))), E4M3)


def test_part_of_a_row_has_the_scale_of_the_whole_row(config):
    whole = InRows(config)
    slices = [ShardedCheckpoint(whole, rank, 2) for rank in (0, 1)]
    for kind, dim in (("down", 1), ("gate", 0)):
        name = f"model.layers.0.mlp.{kind}_proj.weight"
        parts = [cut.rows(name) for cut in slices]
        assert slices[0].row_format(name) is E4M3
        dense = torch.cat([part.data.float() * part.scales for part in parts], dim)
        assert torch.equal(dense, whole.rows(name).data.float() * whole.rows(name).scales)


def test_slices_make_up_the_whole(config):
    """Each tensor is whole on both ranks, or half on each; together twice what is whole and once what is cut."""
    slices = [ShardedCheckpoint(Zeros(config), rank, 2) for rank in (0, 1)]
    for part in weight_plan(config):
        sizes = [cut.load(part.name).numel() for cut in slices]
        is_cut = part.name.rpartition("_proj")[1] == "_proj"
        assert sizes == [torch.Size(part.shape).numel() // (2 if is_cut else 1)] * 2


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        ({}, 4, "tensor_parallel_size is 4: it must divide num_kv_heads, which is 2 in this model"),
        ({}, 0, "tensor_parallel_size is 0: it must be at least 1"),
        ({"intermediate_size": 129}, 2, "it must divide intermediate_size, which is 129"),
        ({"moe": MoE(4, 2, 47, True)}, 2, "it must divide an expert's intermediate_size, which is 47"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(config, changes, size, message):
    with pytest.raises(InvalidRequestError, match=message):
        sharded_config(replace(config, **changes), size)


def test_a_width_that_no_layer_has_does_not_matter(config):
    """Where all layers are mixtures, `intermediate_size` is nobody's."""
    assert (
        sharded_config(replace(config, intermediate_size=129, moe=MoE(4, 2, 48, True)), 2).moe.intermediate_size == 24
    )


def test_a_checkpoint_that_is_not_what_it_says_is_refused_whole(config):
    broken = Zeros(config)
    broken.shapes["model.layers.0.self_attn.o_proj.weight"] = (64, 64)
    with pytest.raises(TensorError, match=r"o_proj.weight has shape \[64, 64\], not \[64, 128\]"):
        ShardedCheckpoint(broken, 0, 2)


def test_layers_in_one_call_are_not_for_slices(compiled, tiny_directory):
    checkpoint, choices = SafetensorsCheckpoint(tiny_directory("llama")[0]), choose("cpu", backend="cpu")
    assert OneCall.of(load_decoder(checkpoint, choices)) is not None
    assert ThreadRanks(2).run(lambda rank: OneCall.of(load_decoder(checkpoint, choices, rank))) == [None, None]
