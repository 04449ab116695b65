"""`bench soak`: random load on engines too small for it, for as long as one likes, against known answers.

Every answer is computed first, one request at a time on a roomy engine. Then engines with random, tight settings get
random arrivals, aborts, streams left early, oversized and malformed requests. After every step the invariants of
scheduler and pool are checked; every output that was not aborted must be the known one; after each round the pool is
back at its baseline. The process's memory is reported, so that a leak shows as growth.
"""

import dataclasses
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psutil

from miniserve.core.request import FinishReason
from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import InvalidRequestError
from miniserve.llm import LLM
from miniserve.model.load import LoadedModel
from miniserve.outputs import RequestOutput

NUM_QUESTIONS, LONGEST = 24, 96
Question = tuple[list[int], SamplingParams]


def soak(
    model: LoadedModel, seconds: float, *, seed: int = 0, progress: Callable[[float], None] | None = None
) -> dict[str, Any]:
    """Run for about `seconds`.

    Args:
        model: what answers.
        seconds: how long; the round in progress is finished.
        seed: of the whole run.
        progress: called with the seconds gone by after each round.

    Returns:
        How much of what happened, and the process's memory in bytes early and late.

    Raises:
        AssertionError: an invariant broke or an answer changed. Names what.
    """
    rng = random.Random(seed)
    questions = [_question(rng, model.config.vocab_size) for _ in range(NUM_QUESTIONS)]
    with LLM(model, max_model_len=LONGEST, max_num_seqs=1, enable_prefix_caching=False) as llm:
        answers = [llm.generate([prompt], params)[0] for prompt, params in questions]
    counts: Counter[str] = Counter()
    memory = []
    started = time.monotonic()
    while (gone := time.monotonic() - started) < seconds:
        _Round(model, rng, questions, answers, counts).run()
        counts["rounds"] += 1
        memory.append(psutil.Process().memory_info().rss)
        if progress:
            progress(gone)
    tenth = max(1, len(memory) // 10)
    return {
        "seconds": time.monotonic() - started,
        "counts": dict(counts),
        "memory_bytes_early": max(memory[:tenth]),
        "memory_bytes_late": max(memory[-tenth:]),
    }


def _question(rng: random.Random, vocab_size: int) -> Question:
    """A prompt of few different tokens, so that prefixes are shared, continued greedily or with a seed."""
    words = [5 + 7 * i % (vocab_size - 5) for i in range(3)]
    prompt = [rng.choice(words) for _ in range(rng.randint(1, 60))]
    greedy = SamplingParams(max_tokens=rng.randint(1, LONGEST - 60), ignore_eos=rng.random() < 0.7)
    drawn = dataclasses.replace(greedy, temperature=0.8, top_p=0.9, seed=rng.randrange(1000))
    return prompt, rng.choices([greedy, drawn], [7, 3])[0]


class _Round:
    """One engine's life."""

    def __init__(
        self,
        model: LoadedModel,
        rng: random.Random,
        questions: list[Question],
        answers: list[RequestOutput],
        counts: Counter[str],
    ) -> None:
        self.rng, self.questions, self.answers, self.counts = rng, questions, answers, counts
        self.asked: dict[str, int] = {}
        block_size = rng.choice([1, 4, 16])
        fewest = -(-LONGEST // block_size)
        block = block_size * model.config.kv_bytes_per_token(model.decoder.dtype.itemsize)
        self.llm = LLM(
            model,
            max_model_len=LONGEST,
            block_size=block_size,
            kv_cache_memory=block * rng.randint(fewest, 2 * fewest),
            max_num_seqs=rng.randint(1, 12),
            max_num_batched_tokens=rng.choice([1, 7, 32, 512]),
            enable_prefix_caching=rng.random() < 0.8,
        )

    def run(self) -> None:
        with self.llm:
            for _ in range(self.rng.randint(20, 120)):
                self.rng.choices([self.ask, self.step, self.abort, self.leave, self.nonsense], [30, 50, 8, 3, 9])[0]()
            while self.llm.has_work:
                self.step()
            pool = self.llm.engine.scheduler.pool
            assert pool.num_free == pool.num_blocks, "blocks leaked"
            assert not self.asked, f"no answer to {self.asked}"

    def ask(self) -> None:
        index = self.rng.randrange(len(self.questions))
        prompt, params = self.questions[index]
        self.asked[self.llm.add_request(prompt, params, priority=self.rng.randrange(3))] = index
        self.counts["requests"] += 1

    def step(self) -> None:
        for output in self.llm.step():
            if output.finished:
                expected = self.answers[self.asked.pop(output.request_id)]
                assert output.token_ids == expected.token_ids, f"{output.request_id} changed its answer"
                assert (output.text, output.finish_reason) == (expected.text, expected.finish_reason)
                self.counts["answered"] += 1
                self.counts["preemptions"] += output.outputs[0].num_preemptions
        self.llm.engine.scheduler.check()
        self.counts["steps"] += 1

    def abort(self) -> None:
        if self.asked:
            name = self.rng.choice(list(self.asked))
            assert self.llm.abort(name)
            del self.asked[name]
            self.llm.engine.scheduler.check()
            self.counts["aborted"] += 1

    def leave(self) -> None:
        """A reader who goes away. Others' answers that come meanwhile are collected from their snapshots."""
        before = set(self.asked)
        stream = self.llm.stream([5, 6, 7], SamplingParams(max_tokens=20, ignore_eos=True))
        for _ in stream:
            break
        stream.close()
        assert stream.output.finish_reason in (FinishReason.ABORT.value, FinishReason.LENGTH.value)
        for name in before - self.llm.live_requests:
            del self.asked[name]
            self.counts["answered_unread"] += 1
        self.counts["left"] += 1

    def nonsense(self) -> None:
        wrong: list[Callable[[], object]] = [
            lambda: self.llm.add_request([], SamplingParams()),
            lambda: self.llm.add_request([5] * LONGEST, SamplingParams()),
            lambda: self.llm.add_request([5] * 50, SamplingParams(max_tokens=LONGEST)),
            lambda: self.llm.add_request([-1], SamplingParams()),
            lambda: self.llm.add_request([10**9], SamplingParams()),
            lambda: self.llm.add_request([5], SamplingParams(temperature=math.nan)),
            lambda: self.llm.add_request([5], SamplingParams(logit_bias={10**9: 1.0})),
            lambda: self.llm.add_request("\ud800", SamplingParams()),
            lambda: self.llm.add_request([5], SamplingParams(stop=[""])),
        ]
        try:
            self.rng.choice(wrong)()
        except InvalidRequestError:
            self.counts["refused"] += 1
        else:
            raise AssertionError("nonsense was let in")
