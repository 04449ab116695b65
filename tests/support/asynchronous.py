"""Coroutines in tests.

Playwright's synchronous API, which other files of the same process may have used, leaves an event loop running in the
main thread, where `asyncio.run` is then an error; so tests' coroutines get a thread of their own.
"""

import asyncio
import selectors
from concurrent.futures import ThreadPoolExecutor


def run(coroutine, loop_factory=None):
    def inside():
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(coroutine)

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(inside).result()


def run_in_virtual_time(coroutine):
    """As `run`, on a clock that starts at 0 and jumps to whatever is due next, so that timings are exact.

    Sockets work as long as both ends are in this loop: what one end writes the other one finds before time goes on.
    """
    return run(coroutine, VirtualLoop)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        self.now = 0.0
        super().__init__(VirtualSelector(self))

    def time(self):
        return self.now


class VirtualSelector(selectors.DefaultSelector):
    def __init__(self, loop):
        super().__init__()
        self.loop = loop

    def select(self, timeout=None):
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            return super().select(10)  # a thread is awaited
        self.loop.now += timeout
        return []
