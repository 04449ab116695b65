"""`DraftModel`: a second, smaller decoder that guesses what the first will say.

To it each request is a sequence of its own, a twin with the same tokens, sampling parameters and seed, and KV blocks
from the draft model's own pool. Before it guesses, a twin drops what the target did not accept and computes what it
lacks: all of it at the first guess, in chunks of at most `budget` tokens a step, then a token or two. Blocks are given
back when the request ends or loses its own; while there are none, a request goes without drafts, and nobody is evicted.

A guess for output token i is drawn from the draft model's distribution with the same random number that the target will
draw token i with, since equality decides (see model_runner.py). Where the two distributions are close, so are the
tokens. An optimal coupling, which rejection sampling is, accepts with probability 1 - D, with D their total variation
distance; one that does without knowledge of the other's distribution at best with (1 - D) / (1 + D) in the worst case,
and what it gives depends on no drafter (Daliri, Musco and Suresh 2024, "Coupling without Communication and
Drafter-Invariant Speculative Decoding"). With temperature 0 nothing is lost: both accept where the likeliest agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from miniserve.core.block_pool import BlockPool
from miniserve.core.executor import Scheduled, Step
from miniserve.core.request import Request
from miniserve.runtime.model_runner import ModelRunner


@dataclass(slots=True)
class _Twin:
    """A request as the draft model has it. Its first `num_agreed` tokens are the request's for certain."""

    request: Request
    num_agreed: int

    def catch_up(self, token_ids: Sequence[int]) -> None:
        """Take over the tokens that the request has by now; what was computed of other ones is void."""
        mine = self.request
        agreed, most = self.num_agreed, min(len(mine.token_ids), len(token_ids))
        while agreed < most and mine.token_ids[agreed] == token_ids[agreed]:
            agreed += 1
        # The last token is computed again if need be: a guess comes from its logits.
        mine.num_computed = min(mine.num_computed, agreed, len(token_ids) - 1)
        mine.token_ids[self.num_agreed :] = token_ids[self.num_agreed :]
        self.num_agreed = len(token_ids)


class DraftModel:
    """Drafts of up to `longest` tokens from a decoder.

    Args:
        runner: the decoder with KV memory of its own.
        pool: the blocks of that memory.
        longest: the most tokens of a draft.
        budget: the most tokens computed at once while twins catch up.
    """

    def __init__(self, runner: ModelRunner, pool: BlockPool, longest: int, budget: int) -> None:
        self.longest = longest
        self._runner, self._pool, self._budget = runner, pool, budget
        self._twins: dict[str, _Twin] = {}

    def propose(self, requests: Sequence[Request], rooms: Sequence[int]) -> list[list[int]]:
        """See `Proposer.propose`. Computes a step to catch up, and one for each further token of the longest draft."""
        lengths = {request.request_id: len(request.token_ids) for request in requests}
        ends = {name: lengths[name] + room for name, room in zip(lengths, rooms, strict=True)}
        parts, budget = [], self._budget
        for request in requests:
            twin = self._twin(request)
            count = min(twin.num_remaining, budget)
            if count and self._take_blocks(twin, ends[request.request_id]):
                parts.append(Scheduled(twin, twin.num_computed, count))
                budget -= count
        while parts:
            result, going = self._runner.launch(Step(parts)).result(), []
            for part, tokens in zip(parts, result.tokens, strict=True):
                twin = part.request
                twin.num_computed += part.num_tokens
                twin.token_ids += tokens  # none where it has not caught up yet: it goes on when it is asked next
                if tokens and len(twin.token_ids) < ends[twin.request_id]:
                    going.append(Scheduled(twin, twin.num_computed, 1))
            parts = going
        return [self._twins[name].request.token_ids[length:] for name, length in lengths.items()]

    def forget(self, request: Request) -> None:
        """Give back the blocks of the request's twin."""
        twin = self._twins.pop(request.request_id, None)
        if twin is not None:
            self._pool.release(twin.request.block_table)

    def _twin(self, request: Request) -> Request:
        twin = self._twins.get(request.request_id)
        if twin is None:
            params = replace(request.params, logprobs=None, prompt_logprobs=None)
            prompt = request.token_ids[: request.num_prompt_tokens]
            twin = _Twin(Request(request.request_id, prompt, request.limits, params, request.seed), len(prompt))
            self._twins[request.request_id] = twin
        twin.catch_up(request.token_ids)
        return twin.request

    def _take_blocks(self, twin: Request, length: int) -> bool:
        """Room for so many tokens; False, and no change, if there are too few blocks."""
        lacking = max(-(-length // self._pool.block_size) - len(twin.block_table), 0)
        blocks = self._pool.allocate(lacking)
        twin.block_table.extend(blocks or ())
        return blocks is not None
