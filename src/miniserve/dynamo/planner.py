"""`python -m miniserve.dynamo.planner`: as many workers as the load needs, for a deployment under Dynamo.

It reads what a frontend has seen (`traffic`), asks the policy that simulated clusters and `miniserve serve` have, too
(`core.scaling`), and publishes the counts through Dynamo's virtual connector (`scaling`). It starts and stops nothing:
`miniserve.dynamo.local --follow` does on one machine, and elsewhere whatever looks after workers there.
"""

import asyncio
import logging
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Annotated, Protocol

import typer

from miniserve.core.scaling import Counts, Planner
from miniserve.dynamo import HOW_TO_INSTALL
from miniserve.dynamo.command import run
from miniserve.dynamo.traffic import Traffic
from miniserve.errors import InvalidRequestError, MiniserveError
from miniserve.server.fleet.launcher import parse_capacity, parse_range

TIMEOUT_S = 5.0  # of reading the metrics

logger = logging.getLogger(__name__)


class Decisions(Protocol):
    """Where counts go: `scaling.Publisher`."""

    async def publish(self, counts: Counts) -> None:
        """See there."""

    async def is_done(self) -> bool:
        """See there."""


async def plan(planner: Planner, decisions: Decisions, read: Callable[[], Awaitable[str]], interval_s: float) -> None:
    """Publish the least at once, and then what the load needs, until it is cancelled.

    A decision waits until the one before it is done. A frontend that cannot be read changes nothing.

    Args:
        planner: the policy.
        decisions: where to.
        read: a frontend's metrics.
        interval_s: between two looks.
    """
    traffic, counts = Traffic(), planner.least
    await decisions.publish(counts)
    while True:
        await asyncio.sleep(interval_s)
        try:
            observed = traffic.read(await read(), interval_s)
        except (OSError, ValueError) as error:
            logger.warning("the frontend's metrics cannot be read: %s", error)
            continue
        if observed is None:
            continue
        wanted = planner.wanted(observed, counts)
        if wanted != counts and await decisions.is_done():
            logger.info("workers: %s and then %s", counts, wanted)
            counts = wanted
            await decisions.publish(counts)


def read_metrics(frontend: str) -> Callable[[], Awaitable[str]]:
    """Of a frontend's address, such as http://127.0.0.1:8000. Raises InvalidRequestError if it is none of http."""
    if not frontend.startswith(("http://", "https://")):
        raise InvalidRequestError(f"the frontend '{frontend}' is no address such as http://127.0.0.1:8000")

    def get() -> str:
        with urllib.request.urlopen(f"{frontend.rstrip('/')}/metrics", timeout=TIMEOUT_S) as page:
            return str(page.read().decode())

    return lambda: asyncio.to_thread(get)


def planner(
    capacity: Annotated[
        str, typer.Option(help="Of one worker: prompt tokens a second, outputs at once, ms a token then: 2000:8:40.")
    ],
    frontend: Annotated[str, typer.Option(help="Whose traffic.")] = "http://127.0.0.1:8000",
    prefill: Annotated[str, typer.Option(help="Workers for prompts: LOW-HIGH.")] = "1-2",
    decode: Annotated[str, typer.Option(help="Workers behind them: LOW-HIGH.")] = "1-2",
    namespace: Annotated[str, typer.Option(envvar="DYN_NAMESPACE", help="Of the deployment.")] = "dynamo",
    plan_seconds: Annotated[float, typer.Option(help="Between two looks.", min=0.1)] = 30.0,
) -> None:
    """Publish how many workers a deployment's load needs, until Ctrl-C. etcd's address is in ETCD_ENDPOINTS."""
    bounds = [parse_range(text, 1) for text in (prefill, decode)]
    least, most = (Counts(*each) for each in zip(*bounds, strict=True))
    found, read = parse_capacity(capacity), read_metrics(frontend)
    try:
        from miniserve.dynamo.scaling import Publisher, runtime
    except ImportError as error:
        raise MiniserveError(f"publishing needs {error.name}: {HOW_TO_INSTALL}") from error

    async def publish() -> None:
        connected = runtime()
        try:
            publisher = Publisher(connected, namespace)
            await publisher.start()
            await plan(Planner(lambda _: found, least, most), publisher, read, plan_seconds)
        finally:
            connected.shutdown()

    asyncio.run(publish())


if __name__ == "__main__":
    run(planner)
