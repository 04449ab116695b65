"""`Gate`: the smoke evaluation that a version must pass before it answers anybody.

Two kinds of checks, read from a file of TOML: a text that the model must not find too surprising, which no damaged
weights pass; and a prompt whose greedy reply must match a pattern. And one that needs no file: a reply is the same
twice over, and its probabilities are numbers.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import InvalidRequestError, MiniserveError
from miniserve.server.backend import Backend
from miniserve.server.errors import APIError
from miniserve.server.messages import Piece
from miniserve.tables import from_table, read_toml

BEGINNING = "Once upon a time there was"
FEW_TOKENS = 8


class GateError(MiniserveError):
    """A version did not pass; says which check, what came and what was wanted."""


@dataclass(frozen=True)
class Text:
    """A text, and the most that it may surprise: the mean of -ln p over its tokens but the first, in nats."""

    text: str
    max_nats: float


@dataclass(frozen=True)
class Reply:
    """A prompt, and a regular expression that has to be found in its greedy continuation."""

    prompt: str
    pattern: str
    max_tokens: int = 16


@dataclass(frozen=True)
class Gate:
    """What is checked.

    Attributes:
        texts, replies: see there; with none of either only what is always checked is.
    """

    texts: tuple[Text, ...] = ()
    replies: tuple[Reply, ...] = ()

    async def check(self, engine: Backend) -> None:
        """Try an engine that has started.

        Raises:
            GateError: it did not pass, or did not answer.
        """
        try:
            await self._check_same(engine)
            for text in self.texts:
                await self._check_text(engine, text)
            for reply in self.replies:
                await self._check_reply(engine, reply)
        except (APIError, InvalidRequestError) as error:
            raise GateError(f"smoke evaluation: {error}") from error

    async def _check_same(self, engine: Backend) -> None:
        ids = engine.tokenizer.encode(BEGINNING)
        params = SamplingParams(max_tokens=FEW_TOKENS, temperature=0.0, ignore_eos=True, logprobs=0)
        first, second = [await _whole(engine, ids, params) for _ in range(2)]
        if first.tokens != second.tokens:
            raise GateError(f"smoke evaluation: {BEGINNING!r} goes on with {first.text!r}, then with {second.text!r}")
        values = [each.logprob for each in first.logprobs or ()]
        if len(values) != FEW_TOKENS or not all(map(math.isfinite, values)):
            raise GateError(f"smoke evaluation: log-probabilities behind {BEGINNING!r} are {values}")

    async def _check_text(self, engine: Backend, text: Text) -> None:
        ids = engine.tokenizer.encode(text.text)
        if len(ids) < 2:
            raise GateError(f"smoke evaluation: the text {text.text!r} has {len(ids)} tokens: it needs 2")
        whole = await _whole(engine, ids, SamplingParams(max_tokens=1, prompt_logprobs=0))
        values = [each.logprob for each in whole.prompt_logprobs or () if each is not None]
        nats = -sum(values) / len(values) if values else math.nan
        if not nats <= text.max_nats:
            raise GateError(
                f"smoke evaluation: {text.text[:40]!r} surprises by {nats:.3f} nats a token: at most {text.max_nats:g}"
            )

    async def _check_reply(self, engine: Backend, reply: Reply) -> None:
        params = SamplingParams(max_tokens=reply.max_tokens, temperature=0.0)
        text = (await _whole(engine, engine.tokenizer.encode(reply.prompt), params)).text
        if not re.search(reply.pattern, text):
            raise GateError(f"smoke evaluation: {reply.prompt!r} goes on with {text!r}, without {reply.pattern!r}")


#: What needs no file.
ALWAYS = Gate()


async def _whole(engine: Backend, ids: Sequence[int], params: SamplingParams) -> Piece:
    joined: Piece | None = None
    with await engine.submit([ids], params) as pieces:
        async for piece in pieces:
            joined = joined.then(piece) if joined else piece
    assert joined is not None, "a reply ends with a piece"
    return joined


def read_gate(path: Path) -> Gate:
    """Read a file of checks: tables `[[texts]]` and `[[replies]]` with the fields of `Text` and `Reply`.

    Raises:
        CorruptFileError: it cannot be read, or is no TOML; names the file.
        InvalidRequestError: it says something else; names the file and the place in it.
    """
    table = read_toml(path)
    try:
        gate = from_table(Gate, table)
        for reply in gate.replies:
            re.compile(reply.pattern)
    except re.error as error:
        raise InvalidRequestError(f"{path}: pattern {error.pattern!r}: {error}") from error
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{path}: {error}") from error
    if not gate.texts and not gate.replies:
        raise InvalidRequestError(f"{path} has no checks: it needs [[texts]] or [[replies]]")
    return gate
