"""`Candidate`: one way to deploy a model on some devices, and what can be said of it without a simulation.

Aggregated: engines that are all alike. Disaggregated: some for prompts alone and some that decode. Rates here are of
one rank that never waits: what a pool can do at most, near enough to choose ratios by and to leave out what is far
behind. What is attained is for a simulation to say (`plan`).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from miniserve.errors import InvalidRequestError
from miniserve.hardware.cost import Part
from miniserve.simulate.deployment import Deployment
from miniserve.simulate.sizes import Pool, Size
from miniserve.workloads.service import SLO


@dataclass(frozen=True)
class Candidate:
    """A deployment: `prefill` is None where engines do both."""

    weights: str
    decode: Pool
    prefill: Pool | None = None

    @property
    def num_devices(self) -> int:
        """That it uses."""
        return self.decode.num_devices + (self.prefill.num_devices if self.prefill else 0)

    @property
    def groups(self) -> int:
        """Into how many parts that are alike it can be taken apart, ranks from ranks, each with a router of its own."""
        return math.gcd(self.prefill.all_ranks, self.decode.all_ranks) if self.prefill else self.decode.all_ranks

    def __str__(self) -> str:
        if not self.prefill:
            return str(self.decode)
        times = math.gcd(self.prefill.engines, self.decode.engines)
        front, back = (pool._replace(engines=pool.engines // times) for pool in (self.prefill, self.decode))
        return f"{times} × ({front} prefill + {back} decode)" if times > 1 else f"{front} prefill + {back} decode"


@dataclass(frozen=True)
class Lone:
    """One rank of an engine, with nobody else in its way.

    Args:
        deployment: its devices.
        prompt, output: tokens of the mean request.
        easiest: tokens of the shortest prompt that must be served within the limits for enough requests to be.
        slo: the limits.
        found: tokens of the mean prompt that at best need not be computed. With any, rates are of an engine that finds
            them all, and memory is no limit: what is found may be there once for many.
    """

    deployment: Deployment
    prompt: int
    output: int
    easiest: int
    slo: SLO
    found: int = 0

    @property
    def token_limit_s(self) -> float:
        """That no limit allows the mean time of a token to exceed."""
        return min(self.slo.tpot_s, self.slo.itl_s)

    @cached_property
    def prefill_s(self) -> float:
        """From the easiest prompt to its first token, with nothing else on the engine."""
        return self._prefill_s(self.easiest)

    @cached_property
    def decode_s(self) -> float:
        """A token of this one request."""
        return self._decode_s(1, self.easiest)

    @property
    def room(self) -> int:
        """Mean requests whose KV fits at once, each with half of its output."""
        deployment = self.deployment
        return int(deployment.num_blocks * deployment.block_size // (self.prompt + self.output / 2))

    @cached_property
    def prompts_per_s(self) -> float:
        """Prompts that it computes if it does nothing else, in steps as full as they may be."""
        left = self.prompt - self.found
        together = max(1, self.deployment.max_num_batched_tokens // left)
        full_s = self.deployment.step_time.seconds([Part(self.found, left)] * together) if together > 1 else math.inf
        return 1 / min(self._prefill_s(self.prompt, self.found), full_s / together)

    @cached_property
    def batch(self) -> int:
        """Requests that it may decode together within the limit on a token's time, its KV and its seats; 0: none."""
        return self._most(self._mean_decode_s)

    @property
    def token_s(self) -> float:
        """A token's time with `batch` requests, or with one."""
        return self._mean_decode_s(max(1, self.batch))

    @cached_property
    def outputs_per_s(self) -> float:
        """Outputs that it decodes if it does nothing else, without their first tokens."""
        steps = self.output - 1
        return (self.batch / (steps * self._mean_decode_s(self.batch)) if steps else math.inf) if self.batch else 0.0

    @cached_property
    def mixed_batch(self) -> int:
        """As `batch`, if the engine computes the prompts of as many requests meanwhile, each in a step of its own."""
        prompt_s = 1 / (self.prompts_per_s * self.output)
        return self._most(lambda requests: self._mean_decode_s(requests) + requests * prompt_s)

    @cached_property
    def fault(self) -> str | None:
        """Why it can serve nobody, however long that may take; None: it can."""
        try:
            room = self.deployment.num_blocks * self.deployment.block_size
            _ = self.prefill_s, self.decode_s  # raises where the device has no peak, or the kernels no timings
        except InvalidRequestError as error:
            return str(error)
        needs = self.prompt + self.output
        if room < needs:
            return f"memory is left for the KV of {room:,} tokens, and the mean request has {needs:,}"
        return None

    @property
    def slow_prefill(self) -> str | None:
        """Why it can compute no prompt within the limit; None: it can, alone."""
        if self.prefill_s <= self.slo.ttft_s:
            return None
        return f"the prefill of {self.easiest:,} tokens alone takes {self.prefill_s * 1000:,.0f} ms"

    @property
    def slow_decode(self) -> str | None:
        """Why it can decode nothing within the limit; None: it can, alone."""
        if self.decode_s <= self.token_limit_s or self.output < 2:
            return None
        return f"a token of one request alone takes {self.decode_s * 1000:.1f} ms"

    def _prefill_s(self, tokens: int, found: int = 0) -> float:
        """A prompt, but for what is found, in its chunks; the last one gives a token."""
        size, step_time = self.deployment.max_num_batched_tokens, self.deployment.step_time
        chunks = [(start, min(size, tokens - start)) for start in range(found, tokens, size)]
        return sum(step_time.seconds([Part(start, new, int(start + new == tokens))]) for start, new in chunks)

    def _most(self, token_s: Callable[[int], float]) -> int:
        """Requests at once, of those that fit, for which a token's time is within the limit."""
        seats = self.deployment.max_num_seqs
        low, high = 0, (seats if self.found else min(self.room, seats)) + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if token_s(middle) <= self.token_limit_s else (low, middle)
        return low

    def _mean_decode_s(self, requests: int) -> float:
        return self._decode_s(requests, self.prompt + self.output // 2)

    def _decode_s(self, requests: int, context: int) -> float:
        """Mean, of one request's token: a step gives each of them so many."""
        deployment = self.deployment
        step_s = deployment.step_time.seconds([deployment.decode_part(context)] * requests)
        return step_s / deployment.tokens_per_step


def aggregated(weights: str, num_devices: int, every: Iterable[Size]) -> Iterator[Candidate]:
    """Every size of engine, as many of each as there are devices for."""
    for size in every:
        yield Candidate(weights, Pool(num_devices // size.num_devices, *size))


def disaggregated(
    weights: str, num_devices: int, fronts: Mapping[Size, Lone], backs: Mapping[Size, Lone]
) -> Iterator[Candidate]:
    """For each pair of sizes, the ratio of engines that could serve most.

    Args:
        weights: their format.
        num_devices: that may be used.
        fronts, backs: ranks of engines that can prefill, and that can decode, by size.
    """
    for front, back in product(fronts, backs):
        ratios = [
            Candidate(
                weights, Pool((num_devices - engines * front.num_devices) // back.num_devices, *back),
                Pool(engines, *front),
            )
            for engines in range(1, (num_devices - back.num_devices) // front.num_devices + 1)
        ]  # fmt: skip
        if ratios:
            yield max(ratios, key=lambda ratio: min(pool_rates(ratio, fronts, backs)))


def pool_rates(candidate: Candidate, fronts: Mapping[Size, Lone], backs: Mapping[Size, Lone]) -> tuple[float, float]:
    """Requests a second that the two pools of a disaggregated candidate can do, if neither ever waits."""
    prefill, decode = candidate.prefill, candidate.decode
    assert prefill, "it is disaggregated"
    return prefill.all_ranks * fronts[prefill.size].prompts_per_s, decode.all_ranks * backs[decode.size].outputs_per_s
