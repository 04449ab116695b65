"""How much a step has to do at least: bytes from memory and FLOPs. What a share of the limit is a share of.

Of the operators' costs (`hardware.cost`), every weight met once, the KV of every context once and the new KV written;
activations are left out, as they may stay in a cache.
"""

from collections.abc import Iterable
from typing import NamedTuple

from miniserve.core.step_record import PartRecord
from miniserve.hardware.cost import Part
from miniserve.hardware.shape import Precision
from miniserve.hardware.step import step_operators
from miniserve.model.config import ModelConfig
from miniserve.model.decoder import Decoder
from miniserve.model.shape import shape_of


class Work(NamedTuple):
    """Bytes moved and floating-point operations done."""

    bytes: float
    flops: float


def precision_of(decoder: Decoder) -> Precision:
    """Bytes of a decoder's numbers as they are stored: of a weight in the layers, the average."""
    config, unembedding = decoder.config, decoder.unembed.matrix.nbytes
    size = config.vocab_size * config.hidden_size
    in_layers = config.num_parameters() - size * (1 if config.tie_embeddings else 2)
    computed, stored = (
        {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[str(dtype).removeprefix("torch.")]
        for dtype in (decoder.compute_dtype, decoder.dtype)
    )
    return Precision(
        linear=computed,
        unembedding=computed,
        attention=computed,
        kv=stored,
        weight_bytes=(decoder.weight_bytes - unembedding) / in_layers,
        unembedding_bytes=unembedding / size,
        embedding_bytes=decoder.dtype.itemsize,
        activation_bytes=decoder.compute_dtype.itemsize,
    )


def step_work(config: ModelConfig, parts: Iterable[PartRecord], precision: Precision) -> Work:
    """The least that a step with these parts must move and compute."""
    computed = (Part(part.start, part.num_tokens, part.sampled + part.num_drafted) for part in parts)
    operators = step_operators(shape_of(config), computed, precision)
    return Work(
        sum(op.times * (op.weight_bytes + op.kv_bytes) for op in operators),
        sum(op.times * op.flops for op in operators),
    )
