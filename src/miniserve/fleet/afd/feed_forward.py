"""`FeedForward`: what a rank of the other side does: rows come from attention's ranks, results go back. See `exchange`.

It has nothing of a request, and knows of a step only how many rows each of its batches has. Batches come in turns,
layer by layer. What all ranks of attention send of a batch is computed at once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from miniserve.fleet.afd.apart import Apart
from miniserve.fleet.afd.exchange import share
from miniserve.fleet.afd.spans import Spans
from miniserve.model.decoder import Decoder, DecoderLayer
from miniserve.model.mixture import SparseMLP
from miniserve.runtime.process_group import Group, Wait


class FeedForward:
    """Of one rank.

    Args:
        decoder: its side, and of that this rank's part.
        apart: the sides.
        group: among all ranks; this one's `rank` counts attention's first.
        spans: where it is recorded what took how long.
    """

    def __init__(self, decoder: Decoder, apart: Apart, group: Group, spans: Spans) -> None:
        self._decoder, self._apart, self._group, self._spans = decoder, apart, group, spans
        self._numbers: list[Tensor] = []  # of each sparse layer's experts, by id, their rows in this rank's stacks
        for held in decoder.experts.layers if decoder.experts else ():
            mine = list(held[group.rank - apart.attention]) if held else []
            numbers = torch.full((sum(map(len, held)),), -1, device=decoder.device)
            numbers[mine] = torch.arange(len(mine), device=decoder.device)
            self._numbers.append(numbers)

    def step(self, batches: Sequence[int]) -> None:
        """A whole step, whose batches have so many rows."""
        waits: list[Wait] = []
        turns = [(layer, batch) for layer in range(len(self._decoder.layers)) for batch in range(len(batches))]
        coming = self._expect(0, batches[0])
        for at, (number, batch) in enumerate(turns):
            layer = self._decoder.layers[number]
            assert isinstance(layer, DecoderLayer)
            with self._spans.of("wait", number, batch):
                given = self._arrived(coming)
            if at + 1 < len(turns):  # so that it comes while this one is computed
                following, its_batch = turns[at + 1]
                coming = self._expect(following, batches[its_batch])
            with self._spans.of("feed-forward", number, batch):
                results = self._computed(number, layer, given)
            for rank, result in enumerate(results):
                if len(result):
                    waits.append(self._group.send(result.contiguous(), rank))
        for wait in waits:
            wait()

    def _expect(self, number: int, rows: int) -> list[tuple[Tensor, Wait | None]]:
        """Begin to receive the first that each rank of attention sends: its rows, or the ids asked."""
        layer, device, apart = self._decoder.layers[number], self._decoder.device, self._apart
        coming: list[tuple[Tensor, Wait | None]] = []
        for rank in range(apart.attention):
            mine = share(rows, rank, apart.attention)
            count = mine.stop - mine.start
            if isinstance(layer.mlp, SparseMLP):
                first = torch.empty(count, layer.mlp.moe.experts_per_token, dtype=torch.int32, device=device)
            else:
                first = torch.empty(
                    count, self._decoder.config.hidden_size, dtype=self._decoder.compute_dtype, device=device
                )
            coming.append((first, self._group.receive(first, rank) if count else None))
        return coming

    def _arrived(self, coming: list[tuple[Tensor, Wait | None]]) -> list[tuple[Tensor, Tensor]]:
        """Of each rank, what it asks [t, K] and its rows; of a dense part the rows alone, twice."""
        found, waits = [], list[Wait]()
        for rank, (first, wait) in enumerate(coming):
            if wait:
                wait()
            rows = first
            if first.dtype is torch.int32:
                asking = int((first >= 0).any(-1).sum())
                rows = torch.empty(
                    asking, self._decoder.config.hidden_size, dtype=self._decoder.compute_dtype, device=first.device
                )
                if asking:
                    waits.append(self._group.receive(rows, rank))
            found.append((first, rows))
        for each in waits:
            each()
        return found

    def _computed(self, number: int, layer: DecoderLayer, given: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """For each rank of attention."""
        rows = torch.cat([rows for _, rows in given])
        if not isinstance(layer.mlp, SparseMLP):
            result: Tensor = layer.mlp(rows, rows.new_zeros(len(rows), 1, dtype=torch.bool))
            return list(torch.split(result, [len(rows) for _, rows in given]))
        ids = torch.cat([ids[(ids >= 0).any(-1)] for ids, _ in given]).long()
        row, choice = (ids >= 0).nonzero(as_tuple=True)
        answers = layer.mlp.answer(rows[row], self._numbers[number][ids[row, choice]])
        return list(torch.split(answers, [int((ids >= 0).sum()) for ids, _ in given]))
