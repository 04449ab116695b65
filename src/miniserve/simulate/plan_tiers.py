"""Tiers in a plan: what stacks of them bring to the deployments that serve most without.

A tier gives back what a device had to forget, so it is tried where that is worth most: with the few candidates that are
best without one. What it brings is said in comparison with the same candidate; where it brings nothing, why. What tiers
cost is not known, and in no figure here.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from miniserve.hardware.cost import Part
from miniserve.simulate.candidates import Candidate
from miniserve.simulate.capacity import PRECISION, Load
from miniserve.simulate.deployment import Deployment
from miniserve.simulate.outcome import Outcome
from miniserve.simulate.tier_plan import TierPlan

TRIED = 3  # candidates
LITTLE = 0.05  # of prompts' tokens; of what is reused an engine finds whole blocks

Stack = Sequence[TierPlan]


def stacked(
    outcomes: Sequence[Outcome], stacks: Sequence[Stack], load: Load,
    simulate: Callable[[Candidate, Stack, int], Outcome], computing: Callable[[Candidate], Deployment],
    progress: Callable[[str, int], None] | None = None,
) -> list[Outcome]:  # fmt: skip
    """Of each of the best candidates with each stack.

    Args:
        outcomes: without tiers.
        stacks: to try.
        load: in which prompts share blocks.
        simulate: a candidate with a stack, given about how many users it may serve.
        computing: what the engines that compute its prompts are.
        progress: as of `Search.outcomes`.
    """
    simulated = [each for each in outcomes if each.best or each.missed]
    # Of those that keep the limits with nobody, the nearest to it: it may be for want of memory.
    best = sorted(
        simulated, key=lambda each: (-each.output_tokens_per_s, -(each.missed.attained if each.missed else 1))
    )
    tries = [(without, stack) for without in best[:TRIED] for stack in stacks]
    found: list[Outcome] = []
    for at, (without, stack) in enumerate(tries):
        candidate = without.candidate
        if progress:
            names = " + ".join(tier.name for tier in stack)
            progress(f"{candidate.weights}, {candidate} with {names}", len(tries) - at)
        served = [each.best.users for each in (without, *found) if each.candidate == candidate and each.best]
        outcome = simulate(candidate, stack, max(served, default=0))
        brings = brought(without, outcome, load, stack, computing(candidate))
        found.append(replace(outcome, reason=f"{brings}; {outcome.reason}"))
    return found


def brought(without: Outcome, outcome: Outcome, load: Load, stack: Stack, engine: Deployment) -> str:
    """What a stack did for a candidate, or why it did nothing.

    Args:
        without: of the same candidate.
        outcome: with the stack.
        load: as it was asked.
        stack: the tiers, the nearest first.
        engine: that computes prompts.
    """
    before, after = without.output_tokens_per_s, outcome.output_tokens_per_s
    if after > before * (1 + 1 / PRECISION):
        return f"{after / before:.1f} times as much as without" if before else "without, not even one is served in time"
    trial = outcome.best or outcome.missed
    assert trial, "it was simulated"
    read = sum(trial.hits.get(tier.name, 0.0) for tier in stack)
    if read >= LITTLE:
        return f"no more than without, though {read:.0%} of prompts' tokens are read"
    if trial.hits.get("device", 0.0) >= load.found / load.prompt - LITTLE:
        return "the device's own memory holds all that is reused"
    slow = [tier.name for tier in stack if _is_slow(tier, load, engine)]
    if slow:
        return f"loading from {slow[0]} is slower than computing"
    return "the tiers forget it before it is asked for again"


def _is_slow(tier: TierPlan, load: Load, engine: Deployment) -> bool:
    """Whether what is found of a mean prompt takes longer to read than to compute, with nobody else reading."""
    link = tier.of(engine.num_devices, engine.num_devices).link()
    return link.seconds(load.found * engine.kv_sent_bytes, 0.0) > engine.step_time.seconds([Part(0, load.found)])
