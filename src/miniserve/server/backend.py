"""What the server's HTTP side needs of whatever computes: one engine, a fleet of them, several versions of a model."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from miniserve.core.sampling_params import SamplingParams
from miniserve.model.tokenizer.tokenizer import Tokenizer
from miniserve.server.errors import APIError, busy
from miniserve.server.messages import Facts, Report
from miniserve.server.reply import Reply
from miniserve.server.view.records import EngineState, Update


class EngineReport(NamedTuple):
    """How one engine is.

    Attributes:
        name: among several; "" if there is only one.
        ready: whether it takes requests.
        num_restarts: how often its process died.
        num_blocks: of its KV pool.
        report: its counts; None if there have not been any.
    """

    name: str
    ready: bool
    num_restarts: int
    num_blocks: int
    report: Report | None


class Running(Protocol):
    """What computes, as those who run it and look at it see it. On one event loop.

    Attributes:
        draining: set it to take no more.
        on_update: takes what is recorded while it is watched.
    """

    draining: bool
    on_update: Callable[[Update], None]

    @property
    def facts(self) -> Facts:
        """Its limits, known once it has started."""
        ...

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        ...

    @property
    def num_open(self) -> int:
        """Outputs that have not ended."""
        ...

    @property
    def num_restarts(self) -> int:
        """Engine processes that died."""
        ...

    @property
    def states(self) -> list[EngineState]:
        """How each engine is, as those who watch are told."""
        ...

    def check_ready(self) -> None:
        """Raise an APIError of 503 unless requests are taken."""
        ...

    async def start(self) -> None:
        """Returns when requests are taken. Raises MiniserveError."""
        ...

    async def stop(self) -> None:
        """End every process; what is still open fails."""
        ...

    def fail_all(self, error: APIError) -> None:
        """End everything that is open with an error."""
        ...

    async def reports(self) -> list[EngineReport]:
        """How each engine is."""
        ...

    async def delete_kv(self, cache_salt: str) -> dict[str, int]:
        """Have every engine forget a tenant's KV: how many blocks, by place. Raises APIError: see `EngineClient`."""
        ...

    def watch(self, on: bool) -> None:
        """Have updates sent to `on_update`, or no more."""
        ...


class Backend(Running, Protocol):
    """Takes prompts of one version of one model, gives replies."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's, known once it has started."""
        ...

    async def submit(self, prompts: Sequence[Sequence[int]], params: SamplingParams, *, cache_salt: str = "") -> Reply:
        """Have prompts continued; see `EngineClient.submit`."""
        ...


def check_room(num_prompts: int, n: int, num_open: int, limit: int) -> int:
    """How many outputs a submission has, if there is room for them.

    Args:
        num_prompts, n: of the submission, and outputs of each.
        num_open: outputs that have not ended.
        limit: most of them at once, waiting ones too.

    Raises:
        APIError: 400, they are too many at any time; 429, now.
    """
    choices = num_prompts * n
    if choices > limit:
        message = f"{num_prompts} prompts with n {n} are {choices} outputs: at most {limit}"
        raise APIError(400, message, param="n", code="invalid_value")
    if num_open + choices > limit:
        raise busy(f"{num_open} outputs are running or waiting, and {choices} more would exceed {limit}")
    return choices


async def delete_everywhere(engines: Iterable[Running], cache_salt: str) -> dict[str, int]:
    """Have each forget a tenant's KV: their blocks together, by place. Raises the first APIError, when all are done."""
    asked = [engine.delete_kv(cache_salt) for engine in engines]
    total: Counter[str] = Counter()
    failed: BaseException | None = None
    for outcome in await asyncio.gather(*asked, return_exceptions=True):
        if isinstance(outcome, BaseException):
            failed = failed or outcome
        else:
            total.update(outcome)
    if failed:
        raise failed
    return dict(total)
