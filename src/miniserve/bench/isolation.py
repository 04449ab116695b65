"""Whether a tenant can find out, by timing, what another one has asked: the attack itself, and how it is judged.

The attacker guesses what a victim has sent, sends the same with a key of his own, and times the first token: what is
cached comes sooner. Here the guesses come in pairs. Of two requests that nobody has ever sent, the victim sends one;
then the attacker sends both, in an order drawn by lot, so that neither which is first nor the machine's moods favour
one side. If nothing leaks, the difference of a pair is as likely to have one sign as the other: Wilcoxon's signed-rank
test, exactly and from both sides, says how likely a table as lopsided as the one found would be then.

A test that finds nothing has shown little by itself. So the same attack is made within one tenant, where it must
succeed, and the interval of the median says how large a difference could have been missed.
"""

import json
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from miniserve.errors import MiniserveError

TIMEOUT_S = 60.0

Body = dict[str, Any]
#: Makes a request that nobody has sent, but for its model.
Guess = Callable[[random.Random], Body]


class Answer(NamedTuple):
    """When the first token had come, and how many tokens of the prompt the server says it had cached."""

    seconds: float
    cached_tokens: int


class Asker:
    """Somebody with a key. Sends one request at a time, over one connection. A context manager.

    Args:
        url: of the API, with its `/v1`.
        model: the name that requests give.
        key: None: none is sent.
    """

    def __init__(self, url: str, model: str, key: str | None = None) -> None:
        parts = urlsplit(url)
        self._connection = HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        self._path, self._model = f"{parts.path}/completions", model
        self._headers = {"content-type": "application/json"}
        if key is not None:
            self._headers["authorization"] = f"Bearer {key}"

    def __enter__(self) -> "Asker":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(self, body: Body) -> Answer:
        """Have one token made: the time of the whole answer is that of the first token.

        Raises:
            MiniserveError: it is refused.
        """
        data = json.dumps(body | {"model": self._model, "max_tokens": 1, "temperature": 0})
        began = time.perf_counter()
        self._connection.request("POST", self._path, data, self._headers)
        response = self._connection.getresponse()
        text = response.read()
        seconds = time.perf_counter() - began
        if response.status != 200:
            raise MiniserveError(f"the server answers {response.status}: {text[:300].decode(errors='replace')}")
        return Answer(seconds, json.loads(text)["usage"]["prompt_tokens_details"]["cached_tokens"])


class Pair(NamedTuple):
    """What the attacker saw of a request that the victim had sent before, and of one that nobody had."""

    sent: Answer
    unsent: Answer

    @property
    def difference_s(self) -> float:
        """By how much the one that was sent came sooner."""
        return self.unsent.seconds - self.sent.seconds


def attack(victim: Asker, attacker: Asker, guess: Guess, draw: random.Random) -> Pair:
    """One pair."""
    sent, unsent = guess(draw), guess(draw)
    victim.ask(sent)
    bodies = [sent, unsent]
    draw.shuffle(bodies)
    answers = [attacker.ask(body) for body in bodies]
    return Pair(*(answers if bodies[0] is sent else answers[::-1]))


def long_prompt(words: int) -> Guess:
    """A prompt of so many random words."""
    return lambda draw: {"prompt": _words(draw, words)}


def long_schema(properties: int) -> Guess:
    """A JSON schema of so many properties with random names: what is cached of it is its compiled form."""

    def guess(draw: random.Random) -> Body:
        names = _words(draw, properties).split()
        pattern = {"type": "string", "pattern": "^[a-z]{1,20}(-[0-9]{1,9}){1,9}$"}
        schema = {"type": "object", "properties": dict.fromkeys(names, pattern), "required": names}
        named = {"name": "guess", "schema": schema}
        return {"prompt": "x", "response_format": {"type": "json_schema", "json_schema": named}}

    return guess


def _words(draw: random.Random, number: int) -> str:
    return " ".join(draw.randbytes(4).hex() for _ in range(number))


@dataclass(frozen=True)
class Verdict:
    """What pairs say.

    Attributes:
        num_pairs: how many there are.
        sent_s, unsent_s: medians of the time to the first token.
        p_value: how likely differences so lopsided are if nothing leaks.
        share_sooner: of the pairs, in how many what was sent came sooner: what an attacker would get right by one try.
        difference_s: the median difference of a pair.
        interval_s: where the median difference lies, with `confidence`.
        confidence: at least so much: of the intervals between two of the differences it is the narrowest that has it.
        cached_tokens: of what was sent, all that the server told the attacker it had cached.
    """

    num_pairs: int
    sent_s: float
    unsent_s: float
    p_value: float
    share_sooner: float
    difference_s: float
    interval_s: tuple[float, float]
    confidence: float
    cached_tokens: int


def judge(pairs: Sequence[Pair], confidence: float = 0.95) -> Verdict:
    """The verdict on some pairs, at least one."""
    differences = [pair.difference_s for pair in pairs]
    return Verdict(
        len(pairs),
        statistics.median(pair.sent.seconds for pair in pairs),
        statistics.median(pair.unsent.seconds for pair in pairs),
        signed_rank(differences),
        statistics.fmean(difference > 0 for difference in differences),
        statistics.median(differences),
        median_interval(differences, confidence),
        confidence,
        sum(pair.sent.cached_tokens for pair in pairs),
    )


def signed_rank(differences: Sequence[float]) -> float:
    """The p-value of Wilcoxon's signed-rank test, two-sided and exact; 1 if there is no difference at all.

    Pairs without a difference are left out, equal ones share their ranks. Under the hypothesis each sign is a toss:
    the sum of the ranks with a plus has as many ways to come about as there are sets of ranks with that sum.
    """
    sizes = sorted(abs(each) for each in differences if each)
    first = {size: at for at, size in reversed(list(enumerate(sizes)))}
    twice = {size: 2 * first[size] + sizes.count(size) + 1 for size in first}  # twice the mean rank: a whole number
    total = sum(twice[size] for size in sizes)
    ways = [1] + [0] * total  # by the sum
    for size in sizes:
        rank = twice[size]
        ways = [count + (ways[at - rank] if at >= rank else 0) for at, count in enumerate(ways)]
    plus = sum(twice[each] for each in differences if each > 0)
    tail = sum(ways[: min(plus, total - plus) + 1])
    return min(1.0, 2 * tail / (1 << len(sizes)))


def median_interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """Where the median of what `values` were drawn from lies: between two of them, by the binomial distribution.

    Infinite where there are too few values to say.
    """
    ordered, number = sorted(values), len(values)
    below = 0.0  # the chance that fewer than `at` + 1 values lie on one side of the median
    for at in range(number // 2 + 1):
        below += math.comb(number, at) / 2**number
        if 2 * below > 1 - confidence:
            return (ordered[at - 1], ordered[number - at]) if at else (-math.inf, math.inf)
    return ordered[0], ordered[-1]
