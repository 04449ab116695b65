"""What is said about the engine: made by the recorder, pickled to the server, written as JSON for the page.

Runs: a set or a row of blocks is a flat list of first block and number of blocks, in turn: [4, 2, 9, 1] is 4, 5, 9.
Sketch: counts by bucket, for quantiles over any window of updates. A value of s seconds is in bucket
floor(50 ln(s / 1 µs)), which knows it to 2%.
"""

from typing import NamedTuple

from msgspec import Struct

from miniserve.core.kv_counts import MoveCounts


class EngineState(Struct):
    """One engine.

    Attributes:
        name: among several; "" if there is only one.
        ready: whether it takes requests.
        restarts: its past deaths.
        version: of the model, where there are several. Each numbers its own requests.
        num_blocks: of its KV pool, where that may be another than `Engine` says.
    """

    name: str
    ready: bool
    restarts: int
    version: str = ""
    num_blocks: int | None = None


class Engine(Struct):
    """The engine as a whole, or a fleet of them, and how it is.

    Attributes:
        state: "ready", if one takes requests, "starting" or "draining".
        model: the name that requests give.
        description: for people.
        num_blocks, block_size: of an engine's KV pool; a block holds `block_size` tokens.
        budget: most tokens of a step.
        max_num_seqs: most requests computed at once.
        max_model_len: most tokens of one.
        restarts: engine processes that died.
        engines: each of them, those for prompts first.
    """

    state: str
    model: str
    description: str
    num_blocks: int
    block_size: int
    budget: int
    max_num_seqs: int
    max_model_len: int
    restarts: int
    engines: list[EngineState]


class Part(NamedTuple):
    """One request's part of a step: of its `tokens` the last `drafted` were guesses, `accepted` of them right."""

    request: str
    tokens: int
    drafted: int
    accepted: int


class ShownStep(Struct):
    """One step.

    Attributes:
        index: a running number.
        start_s: of the engine's clock.
        seconds: where the time went, by name. "schedule" and "text, send" are the host's; the executor names the parts
            of its own, and what is left is "other". Where the host runs ahead of a GPU, its time in the executor is
            "launch, wait", which is less than the step takes.
        parts: who computed what.
        preempted: who lost its blocks.
    """

    index: int
    start_s: float
    seconds: dict[str, float]
    parts: list[Part]
    preempted: list[str]


class Holder(Struct):
    """A request that holds blocks.

    Attributes:
        name: its number; those of a submission with several prompts or choices have it in common: "7.1", "7/0".
        prompt, tokens, computed: how many tokens it was given, has now, and has KV of.
        cached: of the prompt, those that the prefix cache had.
        preemptions: how often it lost its blocks.
        blocks: runs, in the order of its block table. A block that several have is shared.
    """

    name: str
    prompt: int
    tokens: int
    computed: int
    cached: int
    preemptions: int
    blocks: list[int]


class Totals(Struct):
    """Since the engine was started; see `Metrics`."""

    steps: int
    computed: int
    output: int
    prompt: int
    cached: int
    drafted: int
    accepted: int
    finished: int


class TierState(Struct):
    """A tier of KV beside the device; see `TierCounts`."""

    name: str
    capacity_bytes: int
    used_bytes: int
    hits: int
    misses: int


class Update(Struct):
    """What the page gets some ten times a second of each engine.

    Attributes:
        at_s: now, of the engine's clock.
        requests: who holds blocks, by rank.
        waiting: how many wait.
        free: blocks that nobody holds.
        cached: runs of the blocks, held or free, whose content can be found again.
        totals: see there.
        steps: the latest since the last update, 8 at most.
        ttft, itl: sketches of what was measured since the last update: times to first token, and between tokens.
        cost: share of the time since somebody began to watch that went into recording it.
        tiers: of KV beside the device, the fastest first.
        moves: requests that left for other engines and came from them; None: none do.
        engine: its name among several; whoever has several says it.
        experts: how many tokens each expert of each layer that has any has got; none where that is not counted.
    """

    at_s: float
    requests: list[Holder]
    waiting: int
    free: int
    cached: list[int]
    totals: Totals
    steps: list[ShownStep]
    ttft: dict[int, int]
    itl: dict[int, int]
    cost: float
    tiers: list[TierState] = []
    moves: MoveCounts | None = None
    engine: str = ""
    experts: list[list[int]] = []
