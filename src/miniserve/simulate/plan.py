"""`Search`: which deployment to take for a model, some devices, a load and limits; and why not the others.

Every candidate that fits, and whose engines can serve one request alone within the limits, is simulated with the most
users for whom the limits are met. They are ranked by output tokens a second and device, of all the devices there are:
one that is left over costs as much as one that computes. Those that serve most are tried with tiers for KV, too.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

from miniserve.errors import InvalidRequestError
from miniserve.hardware.imbalance import power_law_imbalance
from miniserve.hardware.shape import Parallel, Precision
from miniserve.simulate.candidates import Candidate, Lone, aggregated, disaggregated, pool_rates
from miniserve.simulate.capacity import Load, largest, try_load
from miniserve.simulate.deployment import Deployment
from miniserve.simulate.outcome import Outcome, shares_of_time, what_limits
from miniserve.simulate.plan_tiers import stacked
from miniserve.simulate.sizes import Size, sizes, sizes_apart
from miniserve.simulate.storage import Link
from miniserve.simulate.tier_plan import TierPlan
from miniserve.simulate.tiers import Stacks

NEAR = 1.03  # a pool may do a little more than is estimated: where prompts share its steps, these are fuller


@dataclass(frozen=True)
class Search:
    """A question about deployments, and the search that answers it.

    Args:
        template: of every engine, but for its formats and how it is split.
        num_devices: that there are.
        load: what is asked.
        weights: formats to try; `kv`: of keys and values.
        link_bandwidth: of each prefill rank's KV, bytes/s.
        expert_skew: exponent of the power law that experts are chosen by; None: by the template's imbalance.
        afd: try attention and feed-forward parts on devices of their own, too: of each number of devices, the ratio
            and the batches that decode most.
        stacks: of tiers to try, the nearest first, beside engines that compute prompts.
    """

    template: Deployment
    num_devices: int
    load: Load
    weights: Sequence[str] = ("bf16",)
    kv: str | None = None
    link_bandwidth: float = 50e9
    expert_skew: float | None = None
    afd: bool = False
    stacks: Sequence[Sequence[TierPlan]] = ()

    def __post_init__(self) -> None:
        if self.num_devices < 1:
            raise InvalidRequestError(f"{self.num_devices} devices: a deployment needs one at least")
        if not 0 < self.load.attainment <= 1:
            raise InvalidRequestError(f"attainment {self.load.attainment} must be above 0, and 1 at most")
        Link(self.link_bandwidth)  # raises where that is no bandwidth
        if self.stacks and not self.load.shares:
            raise InvalidRequestError("nobody would read the tiers: in this load no prompt begins as another one did")
        for stack in self.stacks:
            Stacks(stack)  # raises where two tiers have one name
        if self.expert_skew is not None:
            if not self.template.shape.experts:
                raise InvalidRequestError(f"an expert skew of {self.expert_skew}: the model has no experts")
            power_law_imbalance(self.expert_skew, self.template.shape.experts, Parallel())  # raises for no exponent

    @cached_property
    def _engines(self) -> dict[tuple[str, Size], Lone | str]:
        """A rank of every engine that may be part of a candidate, or why it cannot be one."""
        found: dict[tuple[str, Size], Lone | str] = {}
        for weights in self.weights:
            found |= {
                (weights, size): self._engine(weights, size) for size in sizes(self.num_devices, self.template.shape)
            }
            found |= {(weights, size): lone for size, lone in self._engines_apart(weights)}
        return found

    def _engines_apart(self, weights: str) -> Iterator[tuple[Size, Lone | str]]:
        """Of each number of devices, the engine in two parts that decodes most; one that cannot, if none can."""
        by_devices: dict[int, list[tuple[Size, Lone | str]]] = {}
        for size in sizes_apart(self.num_devices) if self.afd else ():
            by_devices.setdefault(size.num_devices, []).append((size, self._engine(weights, size)))
        for each in by_devices.values():
            yield max(each, key=lambda pair: pair[0].ranks * pair[1].outputs_per_s if isinstance(pair[1], Lone) else -1)

    def _engine(self, weights: str, size: Size) -> Lone | str:
        load, precision, template = self.load, Precision.of(weights, self.kv), self.template
        parallel, sides, imbalance = size.parallel(template.shape), size.sides(template.shape), template.imbalance
        try:
            if template.shape.experts and self.expert_skew is not None:
                shared_out = Parallel(1, sides.ffn, sides.redundant) if sides else parallel
                imbalance = power_law_imbalance(self.expert_skew, template.shape.experts, shared_out)
            deployment = replace(template, precision=precision, parallel=parallel, sides=sides, imbalance=imbalance)
        except InvalidRequestError as error:
            return str(error)
        lone = Lone(deployment, load.prompt, load.output, load.easiest, load.slo, load.found)
        return lone.fault or lone

    def outcomes(self, progress: Callable[[str, int], None] | None = None) -> list[Outcome]:
        """Of every candidate, the best first.

        Args:
            progress: told which is being tried, and how many candidates are left with it.
        """
        found, able = [], []
        for candidate in self._aggregated():
            lone = self._engines[candidate.weights, candidate.decode.size]
            reason = lone if isinstance(lone, str) else lone.slow_prefill or lone.slow_decode
            if reason:
                found.append(Outcome(candidate, reason))
            else:
                able.append(candidate)
        able += sorted(dict.fromkeys(self._disaggregated()), key=lambda candidate: -self._at_most(candidate))
        best = 0.0
        for at, candidate in enumerate(able):
            if candidate.prefill and NEAR * self._at_most(candidate) < best:
                found.append(Outcome(candidate, self._too_little(candidate)))
                continue
            if progress:
                progress(f"{candidate.weights}, {candidate}", len(able) - at)
            found.append(self._simulate(candidate))
            best = max(best, found[-1].output_tokens_per_s)
        found += stacked(found, self.stacks, self.load, self._simulate, self._computing, progress)
        return sorted(found, key=lambda outcome: -outcome.output_tokens_per_s)

    def least(self) -> dict[str, float]:
        """The shortest times that any engine that fits can serve one request alone in, by the limits' names."""
        lones = [lone for lone in self._engines.values() if isinstance(lone, Lone)]
        if not lones:
            return {}
        return {"ttft_s": min(lone.prefill_s for lone in lones), "tpot_s": min(lone.decode_s for lone in lones)}

    def _aggregated(self) -> Iterator[Candidate]:
        for weights in self.weights:
            every = (size for name, size in self._engines if name == weights)
            yield from aggregated(weights, self.num_devices, every)

    def _able(self, weights: str) -> dict[Size, Lone]:
        return {
            size: lone for (name, size), lone in self._engines.items() if name == weights and isinstance(lone, Lone)
        }

    def _pools(self, weights: str) -> tuple[dict[Size, Lone], dict[Size, Lone]]:
        """Engines that can prefill in time, and that can decode in time, by size."""
        able = self._able(weights)
        fronts = {size: lone for size, lone in able.items() if not (lone.slow_prefill or size.ffn)}
        return fronts, {size: lone for size, lone in able.items() if not lone.slow_decode}

    def _disaggregated(self) -> Iterator[Candidate]:
        """Where prompts may be found, for each pair of sizes the best ratio if all are, and if none is."""
        for weights in self.weights:
            fronts, backs = self._pools(weights)
            cold = {size: replace(lone, found=0) for size, lone in fronts.items()}
            for pools in (fronts, cold) if self.load.shares else (fronts,):
                yield from disaggregated(weights, self.num_devices, pools, backs)

    def _rates(self, candidate: Candidate) -> tuple[float, float]:
        return pool_rates(candidate, *self._pools(candidate.weights))

    def _at_most(self, candidate: Candidate) -> float:
        """Output tokens a second of a disaggregated candidate whose slower pool never waits."""
        return min(self._rates(candidate)) * self.load.output

    def _slower(self, candidate: Candidate) -> str:
        """Which of its pools can do less."""
        prefill, decode = self._rates(candidate)
        return "prefill" if prefill < decode else "decode"

    def _too_little(self, candidate: Candidate) -> str:
        each, slower = self._at_most(candidate) / self.num_devices, self._slower(candidate)
        found = " and found all that is reused" if self.load.shares else ""
        return f"its {slower} engines could do {each:,.0f} tokens/s a device if they never waited{found}"

    # One candidate.

    def _computing(self, candidate: Candidate) -> Deployment:
        """Of the engines that compute its prompts."""
        return self._able(candidate.weights)[(candidate.prefill or candidate.decode).size].deployment

    def _simulate(self, candidate: Candidate, tiers: Sequence[TierPlan] = (), near: int = 0) -> Outcome:
        """With tiers beside engines that compute prompts. The limit may be near so many users, if that is known."""
        decode, prefill = candidate.decode, candidate.prefill
        back = self._able(candidate.weights)[decode.size]
        groups = candidate.groups
        engines = decode.all_ranks // groups
        attempt = partial(try_load, self.load, decode=back.deployment, engines=engines, tiers=tiers)
        guess = back.mixed_batch
        if prefill:
            front = self._able(candidate.weights)[prefill.size]
            attempt = partial(
                attempt, prefill=front.deployment, prefill_engines=prefill.all_ranks // groups,
                link_bandwidth=self.link_bandwidth,
            )  # fmt: skip
            rate = min(self._rates(candidate)) / groups
            guess = round(rate * (front.prefill_s + self.load.output * back.token_s))
        if self.load.shares:
            guess = near // groups or engines * back.room
        most = engines * back.deployment.max_num_seqs
        good, bad = largest(attempt, self.load.attainment, guess, most)
        limit = what_limits(candidate, back, bad, self.load)
        found = Outcome(candidate, limit, tiers=tuple(tier.name for tier in tiers), missed=bad)
        if good is None:
            return found
        good = replace(good, users=groups * good.users, output_tokens_per_s=groups * good.output_tokens_per_s)
        computing = self._able(candidate.weights)[(prefill or decode).size]
        return replace(found, best=good, share=shares_of_time(candidate, computing, back, good, self.load))
