"""`Meter`: what a run costs its client, so that a slow client is not taken for a slow server."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any

from miniserve.workloads.service import Service, spread

BUSY_SHARE = 0.8  # of a core; above it the client is likely to be the limit
LATE_S = 0.02  # at the 99th percentile
LOOK_S = 0.05  # between two looks at how late the event loop is


class Meter:
    """Starts to measure when it is made, in a coroutine."""

    def __init__(self) -> None:
        self._cpu_s, self._wall_s = time.process_time(), time.perf_counter()
        self._lags_s: list[float] = []
        self._watch = asyncio.create_task(self._look())

    async def stop(self, services: Sequence[Service]) -> dict[str, Any]:
        """The figures.

        Returns:
            `cpu_share`, of one core; `sent_late_s`, how long after they were due requests were sent; `loop_late_s`, how
            late the event loop did what was due, reading the clock for time stamps included.
        """
        share = (time.process_time() - self._cpu_s) / max(time.perf_counter() - self._wall_s, 1e-9)
        self._watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watch
        late_s = spread(service.sent_s - service.due_s for service in services)
        return {"cpu_share": share, "sent_late_s": late_s, "loop_late_s": spread(self._lags_s)}

    async def _look(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due_s = clock() + LOOK_S
            await asyncio.sleep(LOOK_S)
            self._lags_s.append(clock() - due_s)


def remarks(client: dict[str, Any]) -> list[str]:
    """Where the figures of `Meter.stop` say that the client was the limit, for people."""
    found = []
    if client["cpu_share"] > BUSY_SHARE:
        found.append(f"the client took {client['cpu_share']:.0%} of a core: it may be the limit, not the server")
    for name, what in (("sent_late_s", "requests were sent"), ("loop_late_s", "the client's clock was read")):
        late = client[name]
        if late and late["p99"] > LATE_S:
            found.append(f"{what} up to {late['p99'] * 1e3:.0f} ms late (99th percentile): the client fell behind")
    return found
