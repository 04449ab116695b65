"""`AttentionSide`: a step on a rank of attention: its batches in turns, layer by layer.

While a batch is on the other side, the next one's attention is computed here. What comes back is waited for when its
own turn comes again.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from miniserve.fleet.afd.exchange import Collect, Exchange
from miniserve.fleet.afd.spans import Spans
from miniserve.fleet.afd.split import split
from miniserve.model.decoder import Decoder, DecoderLayer
from miniserve.runtime.batch import Batch
from miniserve.runtime.kv_cache import KVCache
from miniserve.runtime.paged_attention import PagedAttention


class _Turn(NamedTuple):
    """What a batch takes along from layer to layer; the stream [t, H] is changed in place."""

    stream: Tensor
    cos: Tensor
    sin: Tensor
    padding: Tensor
    attend: PagedAttention


class AttentionSide:
    """Of one rank.

    Args:
        decoder: its side, and of that this rank's slice.
        cache: of its heads.
        exchange: with the other side.
        batches: that take turns, at most.
        spans: where it is recorded what took how long.
    """

    def __init__(self, decoder: Decoder, cache: KVCache, exchange: Exchange, batches: int, spans: Spans) -> None:
        self._decoder, self._cache, self._exchange = decoder, cache, exchange
        self._number, self._spans = batches, spans

    def __call__(self, batch: Batch) -> Tensor:
        """The last hidden state of every token [T, H], normalised."""
        turns = [self._begin(part) for part in split(batch, self._number)]
        away: list[Collect | None] = [None] * len(turns)
        for number, layer in enumerate(self._decoder.layers):
            assert isinstance(layer, DecoderLayer)
            for at, turn in enumerate(turns):
                added = self._back(away[at], number - 1, at)
                with self._spans.of("attention", number, at):
                    x = layer.attention_norm.add(turn.stream, added)
                    x = layer.attention(x, turn.cos, turn.sin, turn.attend)
                    x = layer.mlp_norm.add(turn.stream, x)
                    away[at] = self._exchange.begin(number, layer, x, turn.padding)
        last = len(self._decoder.layers) - 1
        found = [self._decoder.norm.add(turn.stream, self._back(away[at], last, at)) for at, turn in enumerate(turns)]
        self._exchange.end()
        return torch.cat(found)

    def _begin(self, part: Batch) -> _Turn:
        padding = (part.positions < 0)[:, None]
        return _Turn(
            *self._decoder.begin(part.token_ids, part.positions),
            padding,
            PagedAttention(self._decoder.ops, self._cache, part),
        )

    def _back(self, collect: Collect | None, layer: int, batch: int) -> Tensor | None:
        if collect is None:
            return None
        with self._spans.of("wait", layer, batch):
            return collect()
