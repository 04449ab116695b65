"""Workloads by name, drawn from distributions: synthetic, with figures of traffic that is published or described.

`azure-conv` and `azure-code` have the medians, 90th percentiles, rates and burstiness of the two Azure traces of 2023.
`agentic` has the figures that vLLM and Mooncake gave for traces of coding agents (Codex on SWE-bench): 33 turns in the
median, some 80,000 tokens of context by turn 30, 131 tokens in for one out. `chat` and `rag` are plausible and no more:
a talk of a few turns with a system prompt, and questions to documents of which some are asked for often. So is `day`:
long prompts and answers whose rate goes up and down with the hours, and in bursts.

A session's turns follow one another: the next one comes when the last has been answered, after a pause, and its prompt
begins with everything before. Everything is decided by a seed.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from miniserve.errors import InvalidRequestError
from miniserve.workloads.arrivals import Arrival, Lengths, arrival_times, drawn
from miniserve.workloads.day import Day

BLOCK_SIZE = 256
ROOM = 2**12  # names of blocks for one session or document


@dataclass(frozen=True)
class Single:
    """Requests that have nothing to do with one another.

    Attributes:
        prompts, outputs: tokens.
        rate_per_s, cv: of arrivals; see `arrival_times`.
    """

    prompts: Lengths
    outputs: Lengths
    rate_per_s: float
    cv: float = 1.0

    def arrivals(self, rng: random.Random, rate_per_s: float) -> Iterator[Arrival]:
        """Without end."""
        return drawn(self.prompts, self.outputs, rng, arrival_times(rate_per_s, rng, cv=self.cv))


@dataclass(frozen=True)
class Sessions:
    """Talks of several turns.

    Attributes:
        system_tokens: that all sessions begin with.
        first, added: tokens of the first turn, and of each later one besides the answer before it.
        outputs, turns: tokens of an answer, and how many there are.
        pause_s: mean time between an answer and the next turn, exponential.
        rate_per_s: of sessions.
        documents, document_tokens: a session is about one of so many, if there are any; the n-th is asked for 1/n as
            often as the first.
    """

    system_tokens: int
    first: Lengths
    added: Lengths
    outputs: Lengths
    turns: Lengths
    pause_s: float
    rate_per_s: float
    documents: int = 0
    document_tokens: int = 0

    def arrivals(self, rng: random.Random, rate_per_s: float) -> Iterator[Arrival]:
        """The first turns, without end; the others hang on them."""
        weights = [1 / number for number in range(1, self.documents + 1)]
        for session, at_s in enumerate(arrival_times(rate_per_s, rng)):
            document = rng.choices(range(self.documents), weights)[0] if weights else None
            yield self._session(at_s, session, document, rng)

    def _session(self, at_s: float, session: int, document: int | None, rng: random.Random) -> Arrival:
        length = self.system_tokens + (self.document_tokens if document is not None else 0) + self.first.draw(rng)
        turns: list[tuple[float, int, int]] = []
        for turn in range(self.turns.draw(rng)):
            output = self.outputs.draw(rng)
            turns.append((rng.expovariate(1 / self.pause_s) if turn else at_s, length, output))
            length += output + self.added.draw(rng)
        later: Arrival | None = None
        for pause_s, tokens, output in reversed(turns):
            later = Arrival(pause_s, tokens, output, self._names(session, document, tokens), BLOCK_SIZE, later)
        assert later is not None, "a session has a turn at least"
        return later

    def _names(self, session: int, document: int | None, tokens: int) -> tuple[int, ...]:
        """The system prompt's blocks, the document's, the session's own: the whole blocks of each."""
        count = -(-tokens // BLOCK_SIZE)
        shared = self.system_tokens // BLOCK_SIZE
        known = self.document_tokens // BLOCK_SIZE if document is not None else 0
        own = ROOM * (1 + self.documents + session)
        names = [*range(shared), *(ROOM * (1 + (document or 0)) + at for at in range(known))]
        names += [own + at for at in range(count - len(names))]
        return tuple(names[:count])


#: Of each, what it is drawn from.
PRESETS: Mapping[str, Single | Sessions | Day] = {
    "azure-conv": Single(Lengths(1020, 2735, True), Lengths(129, 424, True), 5.53, 1.09),
    "azure-code": Single(Lengths(1469, 5188, True), Lengths(13, 55, True), 2.57, 13.2),
    "chat": Sessions(
        512, Lengths(60, 300, True), Lengths(40, 200, True), Lengths(200, 500, True), Lengths(1, 8), 20.0, 1.0
    ),
    "agentic": Sessions(
        4096, Lengths(2000, 6000, True), Lengths(1650, 4000, True), Lengths(390, 950, True), Lengths(33, 60, True), 3.0,
        0.05,
    ),
    "rag": Sessions(
        256, Lengths(40, 120, True), Lengths(30, 100, True), Lengths(150, 400, True), Lengths(1, 4), 15.0, 1.0, 200,
        16384,
    ),
    "day": Day(Lengths(4000, 12000, True), Lengths(600, 1500, True), 0.5),
}  # fmt: skip


def preset(name: str, rng: random.Random, rate_per_s: float | None = None) -> Iterator[Arrival]:
    """A workload's arrivals, without end.

    Args:
        name: "azure-conv", "azure-code", "chat", "agentic", "rag" or "day".
        rng: draws them.
        rate_per_s: of requests or, where there are some, of sessions; None: its own.

    Raises:
        InvalidRequestError: there is none by that name.

    Example:
        >>> import random
        >>> from miniserve.workloads.presets import preset
        >>> first = next(preset("agentic", random.Random(0)))
        >>> first.prompt_tokens, first.then.prompt_tokens
        (7945, 9233)
    """
    if name not in PRESETS:
        raise InvalidRequestError(f"workload '{name}' is not one of {', '.join(PRESETS)}")
    chosen = PRESETS[name]
    return chosen.arrivals(rng, chosen.rate_per_s if rate_per_s is None else rate_per_s)


def ended(first: Arrival, most: int) -> Arrival:
    """A session without those turns, from the first that would be longer than `most` tokens on; its first one stays."""
    turns, arrival = [first], first.then
    while arrival and arrival.prompt_tokens + arrival.output_tokens <= most:
        turns.append(arrival)
        arrival = arrival.then
    if arrival is None:
        return first
    later: Arrival | None = None
    for turn in reversed(turns):
        later = turn._replace(then=later)
    assert later is not None, "its first turn stays"
    return later


def prefix_reuse(arrivals: Iterator[Arrival]) -> tuple[int, int]:
    """How many blocks of the prompts an endless cache would have had, and how many there are, every turn counted.

    A name stands for a block and all before it, so that one that has been seen is a prefix that has been computed.
    """
    seen: set[int] = set()
    found = total = 0
    for first in arrivals:
        arrival: Arrival | None = first
        while arrival:
            total += len(arrival.blocks)
            found += sum(name in seen for name in arrival.blocks)
            seen.update(arrival.blocks)
            arrival = arrival.then
    return found, total


def with_turns(arrivals: Iterator[Arrival], sessions: int) -> Iterator[Arrival]:
    """The first so many sessions, every turn of each in a row."""
    for first in islice(arrivals, sessions):
        arrival: Arrival | None = first
        while arrival:
            yield arrival
            arrival = arrival.then
