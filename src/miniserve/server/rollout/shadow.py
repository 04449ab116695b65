"""`Shadow`: has a version compute copies of what another answers, and counts how alike the answers are.

Nobody waits for a copy, sees its output, or hears that it failed. Of copies that would be too many at once the latest
are not made, and counted. Only outputs that nothing random is in are compared: greedy ones, and those with a seed.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import InvalidRequestError
from miniserve.server.backend import Backend
from miniserve.server.errors import APIError
from miniserve.server.rollout.version import Version

MAX_COPIES = 16  # at once

#: Each choice's tokens.
Outputs = Mapping[int, Sequence[int]]


@dataclass
class Counts:
    """Of one version's copies.

    Attributes:
        copies: that were computed to the end, or until the original's client had gone.
        skipped: not made: too many at once, or the version was not ready.
        failed: that ended with an error.
        alike, different: compared, by whether all tokens were the original's.
        tokens, tokens_alike: of the originals that were compared, and those before the first difference.
    """

    copies: int = 0
    skipped: int = 0
    failed: int = 0
    alike: int = 0
    different: int = 0
    tokens: int = 0
    tokens_alike: int = 0

    def compare(self, original: Outputs, copy: Outputs) -> None:
        """Count two answers. What the original's client did not wait for is not compared."""
        alike = sum(_alike(tokens, copy.get(choice, ())) for choice, tokens in original.items())
        total = sum(map(len, original.values()))
        self.tokens += total
        self.tokens_alike += alike
        self.alike += alike == total
        self.different += alike != total


@dataclass
class Copy:
    """What is to be computed again.

    Attributes:
        prompts: gives the token ids by an engine's tokenizer.
        params, cache_salt: as of the original.
        original: done when the original has ended, with its outputs.
    """

    prompts: Callable[[Backend], Awaitable[Sequence[Sequence[int]]]]
    params: SamplingParams
    cache_salt: str
    original: asyncio.Future[Outputs] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def end(self, outputs: Outputs) -> None:
        """The original has ended; without outputs if it was refused."""
        if not self.original.done():
            self.original.set_result(outputs)


class Shadow:
    """All copies.

    Attributes:
        counts: by version.
    """

    def __init__(self) -> None:
        self.counts: dict[str, Counts] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, version: Version, copy: Copy) -> None:
        """Have a copy made beside the original."""
        counts = self.counts.setdefault(version.name, Counts())
        if len(self._tasks) >= MAX_COPIES:
            counts.skipped += 1
            return
        task = asyncio.get_running_loop().create_task(self._make(version, copy, counts))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _make(self, version: Version, copy: Copy, counts: Counts) -> None:
        outputs: dict[int, list[int]] = {}
        try:
            with version.lease() as engine:
                reply = await engine.submit(await copy.prompts(engine), copy.params, cache_salt=copy.cache_salt)
        except (APIError, InvalidRequestError):
            counts.skipped += 1
            return
        try:
            with reply:
                async for piece in reply:
                    outputs.setdefault(piece.choice, []).extend(piece.tokens)
        except APIError:
            counts.failed += 1
            return
        original = await copy.original
        counts.copies += 1
        if original and (copy.params.temperature == 0 or copy.params.seed is not None):
            counts.compare(original, outputs)


def _alike(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens before the first difference."""
    shorter = min(len(first), len(second))
    return next((at for at in range(shorter) if first[at] != second[at]), shorter)
