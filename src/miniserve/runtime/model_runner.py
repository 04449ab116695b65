"""`ModelRunner`: the real executor. A step goes in; the decoder runs over its tokens; sampled tokens come out.

Drafts are verified by equality. At each position of a draft a token is chosen exactly as it would be had decoding come
there one token at a time: from its own logits, with its own history, by the random number that belongs to this output
token. While the draft has that token, the next position's is good as well. So output is the same with any draft and
none, greedy or drawn. Rejection sampling (Leviathan et al. 2023; Chen et al. 2023) keeps the distribution too, but not
the tokens: what a seed gives would hang on whether there was budget for a draft, which is to say on the requests beside
it. For a guess without a distribution, as `NGramProposer` makes, both accept it with the probability p that the model
gives it; for a draft model's see draft_model.py.

It owns the KV cache's memory and nothing else that lasts: all it knows of requests comes with each step. Attention
reads and writes the cache through the batch's block table and slots; the decoder knows of neither.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, islice

import torch
from torch import Tensor

from miniserve.core.executor import Computed, InFlight, Scheduled, Step, StepResult
from miniserve.core.request import Request, TokenLogprob
from miniserve.core.sampling_params import Limits
from miniserve.model.decoder import Decoder
from miniserve.model.one_call import OneCall
from miniserve.runtime.ahead import Position, after_pending, positions
from miniserve.runtime.batch import Batch
from miniserve.runtime.graphs import DecodeGraphs
from miniserve.runtime.in_flight import Chosen
from miniserve.runtime.kv_cache import KVCache
from miniserve.runtime.logprobs import token_logprobs
from miniserve.runtime.newest import Newest
from miniserve.runtime.paged_attention import PagedAttention
from miniserve.runtime.sampler import Sampled, choose, never_waits, sample
from miniserve.runtime.upload import upload

LOGIT_ROWS = 256  # rows of [V] logits in memory at a time where a whole prompt's are wanted


class ModelRunner:
    """Computes steps with a decoder.

    Args:
        decoder: the model.
        cache: the KV memory, on the same device.
        block_size: tokens a KV block holds.
        graphs: of decode steps, if they are to be launched as CUDA graphs.
        newest: where pending tokens are, if steps are to be launched ahead; the same as the graphs'.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        block_size: int,
        graphs: DecodeGraphs | None = None,
        newest: Newest | None = None,
    ) -> None:
        self.decoder, self.cache, self.block_size = decoder, cache, block_size
        self._graphs, self._newest = graphs, newest
        self._one_call = OneCall.of(decoder)

    @torch.inference_mode()
    def launch(self, step: Step) -> InFlight:
        """Compute a step of at least one request, or begin to. See `Executor.launch`."""
        if self._newest and all(map(_never_waits, step.scheduled)):
            return self._launch_ahead(step, self._newest)
        if self._graphs and self._graphs.takes(step):
            return Computed(self._decode(step, self._graphs))
        started = time.perf_counter()
        batch = Batch.from_step(step, self.block_size, self.decoder.device, self._newest)
        prepared = time.perf_counter()
        hidden = self._forward(batch)
        rows, places = _places(step)
        usual = all(part.samples and not part.draft for part in step.scheduled)
        logits = self.decoder.logits(hidden[batch.last_rows if usual else rows])
        self._synchronize()
        computed = time.perf_counter()
        tokens, logprobs = _accepted(step, sample(logits, places, self.decoder.ops.argmax))
        prompt_logprobs = self._prompt_logprobs(step, batch, hidden)
        ended = time.perf_counter()
        seconds = {"prepare": prepared - started, "forward": computed - prepared, "sample": ended - computed}
        return Computed(StepResult(tokens, logprobs, prompt_logprobs, seconds))

    def _launch_ahead(self, step: Step, newest: Newest) -> InFlight:
        """Leave the device to it: the tokens it chooses stay there for the next step, and come here when asked for."""
        rows, places = _places(step)
        known = None
        if self._graphs and self._graphs.takes(step):
            logits, known = self._graphs(step)
        else:
            hidden = self._forward(Batch.from_step(step, self.block_size, self.decoder.device, newest))
            logits = self.decoder.logits(hidden[upload(rows, self.decoder.device, torch.int64)])
        tokens = choose(logits, places, self.decoder.ops.argmax, known)
        newest.keep([part.request for part in step.scheduled if part.samples], tokens)
        return Chosen(tokens, places, [part.samples for part in step.scheduled])

    def _forward(self, batch: Batch) -> Tensor:
        if self._one_call and self._one_call.is_faster(len(batch.token_ids)):
            return self._one_call(batch.token_ids, batch.positions, self.cache.layers, batch.paged)
        attend = PagedAttention(self.decoder.ops, self.cache, batch)
        hidden: Tensor = self.decoder(batch.token_ids, batch.positions, attend)
        return hidden

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compute steps that write no KV, so that what compiles or is loaded at first use waits for no request.

        Products have other kernels for other numbers of rows, the vendor's too: one row, a few, and more and more. And
        a prompt that does not fill its tiles, alone and beside a decode.
        """
        longest = self.decoder.config.max_position_embeddings
        for length in (1, 10, 37, 64, 128, 512):
            self._compute_nowhere((min(length, longest),))
        self._compute_nowhere((min(37, longest), 1))

    @torch.inference_mode()
    def prompt_seconds(self, num_tokens: int) -> float:
        """How long a prompt of so many tokens takes, the better of two after a first; no KV is written."""
        taken = []
        for _ in range(3):
            self._synchronize()
            began = time.perf_counter()
            self._compute_nowhere((num_tokens,))
            self._synchronize()
            taken.append(time.perf_counter() - began)
        return min(taken[1:])

    def _compute_nowhere(self, lengths: Sequence[int]) -> None:
        """Prompts of these lengths, side by side."""
        scheduled = []
        for length in lengths:
            request = Request("warm-up", [0] * length, Limits(1))
            request.block_table.extend([0] * -(-length // self.block_size))
            scheduled.append(Scheduled(request, 0, length))
        batch = Batch.from_step(Step(scheduled), self.block_size, self.decoder.device)
        nowhere = replace(batch, slot_mapping=torch.full_like(batch.slot_mapping, -1))
        self.decoder.logits(self._forward(nowhere)[nowhere.last_rows])

    def _decode(self, step: Step, graphs: DecodeGraphs) -> StepResult:
        """A step of each request's last token."""
        started = time.perf_counter()
        logits, known = graphs(step)
        computed = time.perf_counter()
        sampled = sample(logits, _places(step)[1], self.decoder.ops.argmax, known)
        tokens, logprobs = _accepted(step, sampled)
        seconds = {"forward": computed - started, "sample": time.perf_counter() - computed}
        return StepResult(tokens, logprobs, seconds=seconds)

    def _prompt_logprobs(self, step: Step, batch: Batch, hidden: Tensor) -> Mapping[int, list[TokenLogprob]]:
        """For the requests that ask: how likely each prompt token was that follows one of this step's."""
        found = {}
        starts = batch.query_start.tolist()
        for index, part in enumerate(step.scheduled):
            if part.request.params.prompt_logprobs is not None:
                found[index] = self._next_tokens(part, hidden[starts[index] : starts[index + 1]])
        return found

    def _next_tokens(self, part: Scheduled, hidden: Tensor) -> list[TokenLogprob]:
        request, start, num_tokens, _ = part
        count = request.params.prompt_logprobs or 0
        following = request.token_ids[start + 1 : min(start + 1 + num_tokens, request.num_prompt_tokens)]
        found: list[TokenLogprob] = []
        for at in range(0, len(following), LOGIT_ROWS):
            some = following[at : at + LOGIT_ROWS]
            found += token_logprobs(self.decoder.logits(hidden[at : at + len(some)]), some, count)
        return found

    def _synchronize(self) -> None:
        """Wait for the device, so that the times say what took long."""
        if self.decoder.device.type == "cuda":
            torch.cuda.synchronize(self.decoder.device)


def _places(step: Step) -> tuple[list[int], list[Position]]:
    """Where a step chooses tokens: rows of the batch, and what they are. The last row of each part at least."""
    rows: list[int] = []
    places: list[Position] = []
    for part, end in zip(step.scheduled, accumulate(part.num_tokens for part in step.scheduled), strict=True):
        if part.samples:
            rows += range(end - 1 - len(part.draft), end)
            places += [after_pending(part.request)] if part.is_pending else positions(part.request, part.draft)
    return rows, places


def _never_waits(part: Scheduled) -> bool:
    """Whether the host has no business with what a part computes, until its token is asked for."""
    params = part.request.params
    return not part.draft and params.prompt_logprobs is None and (not part.samples or never_waits(part.request))


def _accepted(step: Step, chosen: Sequence[Sampled]) -> tuple[list[Sequence[int]], dict[int, list[TokenLogprob]]]:
    """Of the tokens chosen at all places of a step, those that are good: behind guesses that were chosen too.

    Returns:
        `StepResult`'s tokens and log-probabilities.
    """
    tokens: list[Sequence[int]] = []
    logprobs: dict[int, list[TokenLogprob]] = {}
    left = iter(chosen)
    for index, part in enumerate(step.scheduled):
        mine = list(islice(left, 1 + len(part.draft) if part.samples else 0))
        wrong = (at for at, guess in enumerate(part.draft) if mine[at].token != guess)
        good = mine[: next(wrong, len(part.draft)) + 1]
        tokens.append([each.token for each in good])
        if reports := [each.logprob for each in good if each.logprob is not None]:
            logprobs[index] = reports
    return tokens, logprobs
