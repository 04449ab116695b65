"""Closed and open loops: who decides when the next request is sent.

In a closed loop a fixed number of users each send their next request when the last one has ended, so that a slow server
slows its own load: right for throughput, too kind for latency. In an open loop requests come when they come; one whose
turn it is is sent, however many are under way, and its latencies count from the moment it was due. Times are the event
loop's, so a loop with a virtual clock runs the same code.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator

from miniserve.workloads.arrivals import Arrival
from miniserve.workloads.service import Service

Send = Callable[[Arrival, float], Awaitable[Service]]
Done = Callable[[Service], None]
PAUSE_S = 0.1  # of a user whose request failed: a server that is down is not to be hammered


class Load:
    """Sends requests until they run out or time is up, and hands on what became of each.

    Args:
        send: has a request served that is due at the given moment.
        done: called with each one that has ended.
        duration_s: seconds after which nothing more is sent; what is under way is waited for.

    Attributes:
        num_open: requests under way.
    """

    def __init__(self, send: Send, done: Done, duration_s: float = math.inf) -> None:
        self._send, self._done, self._duration_s = send, done, duration_s
        self.num_open = 0

    async def closed(self, arrivals: Iterator[Arrival], concurrency: int) -> None:
        """`concurrency` users, without a pause. The arrivals' times do not matter."""
        clock = asyncio.get_running_loop().time
        end_s = clock() + self._duration_s

        async def user() -> None:
            for arrival in arrivals:
                service = await self._serve(arrival, clock())
                if service.error is not None:
                    await asyncio.sleep(PAUSE_S)
                if clock() >= end_s:
                    return

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(user())

    async def open(self, arrivals: Iterator[Arrival]) -> None:
        """Each request at its time."""
        clock = asyncio.get_running_loop().time
        start_s = clock()
        async with asyncio.TaskGroup() as group:
            for arrival in arrivals:
                if arrival.at_s >= self._duration_s:
                    break
                due_s = start_s + arrival.at_s
                await asyncio.sleep(max(0.0, due_s - clock()))
                group.create_task(self._serve(arrival, due_s))

    async def _serve(self, arrival: Arrival, due_s: float) -> Service:
        self.num_open += 1
        service = await self._send(arrival, due_s)
        self._done(service)
        self.num_open -= 1  # one that is cancelled stays open: it has not ended
        return service
