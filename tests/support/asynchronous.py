"""Coroutines in tests.

Playwright's synchronous API, which other files of the same process may have used, leaves an event loop running in the
main thread, where `asyncio.run` is then an error; so tests' coroutines get a thread of their own.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor


def run(coroutine):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
