"""The training pass is the serving decoder's function, its gradients are transformers', and less may be kept."""

import pytest
import torch

from miniserve.kernels import reference
from miniserve.model.cache import NoCache
from miniserve.model.config import ModelConfig, MoE, Rope
from miniserve.model.decoder import Decoder
from miniserve.train.forward import forward
from miniserve.train.initialise import initialise
from miniserve.train.precision import TrainOperators, operators


def config(sparse=False, **changes):
    moe = MoE(4, 2, 24, normalize_weights=True, dense_layers=frozenset({0})) if sparse else None
    sizes = {
        "architecture": "qwen3_moe" if sparse else "qwen3", "vocab_size": 61, "hidden_size": 32, "num_layers": 2,
        "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "intermediate_size": 48, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6, "rope": Rope(10000.0), "qk_norm": "head", "tie_embeddings": True, "moe": moe,
    }  # fmt: skip
    return ModelConfig(**(sizes | changes))


def decoder(sparse=False, mode="fp32", **changes):
    made = Decoder(config(sparse, **changes), dtype=torch.float32, device=torch.device("cpu"), ops=operators(mode))
    initialise(made, seed=3)
    return made


def tokens(rows=3, length=10):
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sparse", [False, True])
def test_it_is_the_serving_decoders_function(sparse):
    model, ids = decoder(sparse), tokens()
    trained = forward(model, ids)
    assert len(trained.router_logits) == (1 if sparse else 0)
    for row, sequence in enumerate(ids):
        with torch.inference_mode():
            hidden = model(sequence, torch.arange(len(sequence)), NoCache(model.config))
            served = model.logits(hidden)
        assert torch.allclose(trained.logits.unflatten(0, ids.shape)[row], served, atol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_layers_that_are_computed_again_give_the_same_gradients(sparse):
    model, ids = decoder(sparse), tokens()
    found = []
    for recompute in (False, True):
        model.zero_grad()
        activations = forward(model, ids, recompute=recompute)
        (
            activations.logits.square().mean() + sum(each.square().mean() for each in activations.router_logits)
        ).backward()
        found.append({name: each.grad.clone() for name, each in model.named_parameters()})
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name
        assert gradient.abs().max() > 0, name


def test_less_is_kept_where_layers_are_computed_again():
    model, ids = decoder(num_layers=6), tokens(4, 32)

    def kept(recompute):
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            forward(model, ids, recompute=recompute)
        return sum(sizes.values())

    assert kept(True) < kept(False) / 3


def test_tokens_do_not_see_what_comes_later_or_other_sequences():
    model, ids = decoder(True), tokens()
    before = forward(model, ids).logits.unflatten(0, ids.shape)
    changed = ids.clone()
    changed[1, 6:] = (changed[1, 6:] + 1) % 61
    after = forward(model, changed).logits.unflatten(0, ids.shape)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert torch.allclose(before[1, :6], after[1, :6], atol=1e-6)
    assert not torch.allclose(before[1, 6:], after[1, 6:], atol=1e-3)


def test_only_the_mixture_is_not_the_references():
    others = [name for name in vars(TrainOperators) if not name.startswith("_") and name != "moe"]
    assert len(others) == 8
    for mode in ("fp32", "bf16", "fp16"):
        assert all(getattr(operators(mode), name) is getattr(reference, name) for name in others)
