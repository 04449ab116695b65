"""`Outcome`: what came of one candidate of a plan, with or without tiers for its KV; and why, in words and in shares.

No simulation is run here: all of it follows from trials that were, and from what a rank can do alone.
"""

import math
from dataclasses import dataclass, field

from miniserve.hardware.cost import Operator, Part
from miniserve.simulate.candidates import Candidate, Lone
from miniserve.simulate.capacity import Load, Trial


@dataclass(frozen=True)
class Outcome:
    """What came of a candidate.

    Attributes:
        candidate: which.
        reason: why it lost; of the winner, and of those that are behind it, what keeps it from serving more.
        best: its largest trial that meets the limits; None: there is none.
        share: of the time that devices compute for a mean request, by kind of work, the most first.
        tiers: the names of those that keep KV besides the devices, the nearest first.
        missed: its smallest trial that does not meet the limits; None: there was none.
    """

    candidate: Candidate
    reason: str
    best: Trial | None = None
    share: dict[str, float] = field(default_factory=dict)
    tiers: tuple[str, ...] = ()
    missed: Trial | None = None

    @property
    def output_tokens_per_s(self) -> float:
        """Of all devices; 0 if it cannot serve within the limits."""
        return self.best.output_tokens_per_s if self.best else 0.0


def what_limits(candidate: Candidate, back: Lone, bad: Trial | None, load: Load) -> str:
    """Why one of a candidate's groups serves no more users than it does.

    Args:
        candidate: which.
        back: a rank that decodes.
        bad: the smallest trial of a group that does not meet the limits; None: there was none.
        load: what is asked.
    """
    one = "a rank" if candidate.decode.ranks > 1 else "an engine"
    if bad is None:
        seats = back.deployment.max_num_seqs
        return f"every seat is taken: {seats} {'sessions' if load.user == 'session' else 'requests'} {one}"
    limits = load.slo.as_dict()
    broken = [
        f"{name[:-2].upper()} is {value_s * 1000:,.1f} ms"
        for name, value_s in bad.latencies_s.items()
        if value_s > limits.get(name, math.inf)
    ] or [f"{bad.attained:.0%} have all gaps between tokens, and the rest, within the limits"]
    users = f"{bad.users} {load.user}s" if bad.users > 1 else f"one {load.user}"
    ranks = candidate.decode.all_ranks // candidate.groups
    alone = "" if candidate.groups == 1 else " a group" if candidate.prefill else f" {one}"
    full = f"; {one} has memory for the KV of {back.room}" if bad.users > ranks * back.room else ""
    late = bad.latencies_s["ttft_s"] > load.slo.ttft_s
    pool = f": its {'prefill' if late else 'decode'} engines are the bottleneck" if candidate.prefill else ""
    return f"with {users}{alone} {', '.join(broken)}{full}{pool}"


def shares_of_time(candidate: Candidate, front: Lone, back: Lone, trial: Trial, load: Load) -> dict[str, float]:
    """Of the devices' time for a mean request, by kind of work, the most first; as if prompts had steps of their own.

    Args:
        candidate: which.
        front, back: a rank that computes prompts, and one that decodes; the same where engines do both.
        trial: of the whole candidate.
        load: what is asked.
    """
    together = max(1, round(trial.output_tokens_per_s * trial.latencies_s["tpot_s"] / candidate.decode.all_ranks))
    seconds: dict[str, float] = {}
    context = load.prompt + load.output // 2
    steps = (load.output - 1) / back.deployment.tokens_per_step
    found = int(load.prompt * sum(trial.hits.values()))
    for phase, lone, parts, times in (
        ("prefill", front, [Part(found, load.prompt - found)], 1.0),
        ("decode", back, [back.deployment.decode_part(context)] * together, steps / together),
    ):
        for op, device_s in lone.deployment.step_time.work(parts):
            kind = f"{phase}: {_kind(op)}"
            seconds[kind] = seconds.get(kind, 0.0) + times * device_s
    whole = sum(seconds.values())
    return {kind: each / whole for kind, each in sorted(seconds.items(), key=lambda pair: -pair[1])}


def _kind(op: Operator) -> str:
    """What a reader calls work of an operator's kind."""
    if op.kind == "gemm":
        return "matrix products"
    return "attention" if op.kind.endswith("attention") else op.kind.replace("_", "-")
