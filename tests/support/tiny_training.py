"""A run that takes a second: a tiny model, and a text that can be learned."""

import numpy as np
import torch

from miniserve.model.decoder import Decoder
from miniserve.train.corpus import Corpus
from miniserve.train.initialise import initialise
from miniserve.train.precision import operators
from miniserve.train.settings import ModelSettings, TrainSettings
from miniserve.train.trainer import Trainer

DENSE = ModelSettings(32, hidden=16, layers=2, heads=2, kv_heads=1, head_dim=8, intermediate=32, positions=32)
SPARSE = ModelSettings(
    32, hidden=16, layers=2, heads=2, kv_heads=1, head_dim=8, intermediate=32, experts=4, expert_intermediate=16,
    positions=32,
)  # fmt: skip


def settings(model=DENSE, **changes):
    each = {"steps": 30, "batch": 8, "length": 16, "learning_rate": 1e-2, "warmup": 1, "seed": 5} | changes
    return TrainSettings(model, text="", **each)


def corpus(length=16):
    """Every token follows from the one before it, most of the time."""
    rng, ids = np.random.default_rng(0), [1]
    for _ in range(4000):
        ids.append(int(rng.integers(32)) if rng.random() < 0.1 else (ids[-1] * 7 + 3) % 32)
    return Corpus(ids, length)


def trainer(given):
    decoder = Decoder(
        given.model.config(), dtype=torch.float32, device=torch.device("cpu"), ops=operators(given.precision)
    )
    initialise(decoder, given.seed)
    return Trainer(given, decoder, corpus(given.length))
