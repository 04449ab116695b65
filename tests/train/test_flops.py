"""FLOPs of training against a count of what torch does."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from miniserve.train.flops import product_flops_per_s, token_flops
from miniserve.train.forward import forward
from support.tiny_training import DENSE, settings, trainer


def test_a_dense_models_are_what_torch_counts_but_for_attention():
    run = trainer(settings())
    ids, _ = run.corpus.batch(0, 0, 4)
    with FlopCounterMode(display=False) as counter:
        forward(run.decoder, ids).logits.sum().backward()
    counted = sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if "mm" in str(op))
    config, length = DENSE.config(), ids.shape[1]
    attention = 3 * 4 * config.num_layers * config.num_heads * config.head_dim * (length + 1) / 2
    norms = 3 * 2 * (config.hidden_size * (2 * config.num_layers + 1) + 2 * config.num_layers * config.head_dim)
    assert (token_flops(config, length) - attention - norms) * ids.numel() == pytest.approx(counted, rel=1e-6)


def test_a_product_takes_time():
    assert 1e6 < product_flops_per_s(torch.device("cpu"), torch.float32, size=64, rounds=2) < 1e16
