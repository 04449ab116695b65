"""The planner of a deployment: the least at once, more when the load needs it, and one decision after another."""

import asyncio
import subprocess
import sys

import pytest

from miniserve.core.scaling import Capacity, Counts, Planner
from miniserve.dynamo.planner import plan, read_metrics
from miniserve.errors import InvalidRequestError
from support.asynchronous import run
from support.etcd import etcd

from .test_traffic import page


class Decisions:
    def __init__(self):
        self.said, self.done = [], True

    async def publish(self, counts):
        self.said.append(counts)

    async def is_done(self):
        return self.done


def planner(hold=2):
    return Planner(lambda _: Capacity(1000, 4, 0.05), Counts(1, 1), Counts(3, 2), hold=hold)


async def go(decisions, pages, policy=None):
    """Plan over these pages, a callable among them is called; until they are read."""
    left, read_all = list(pages), asyncio.Event()

    async def read():
        while left and callable(left[0]):
            left.pop(0)()
        if not left:
            read_all.set()
            await asyncio.sleep(60)
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    task = asyncio.create_task(plan(policy or planner(), decisions, read, 0.001))
    await asyncio.wait_for(read_all.wait(), 10)
    task.cancel()


def test_the_least_at_once_and_more_for_a_load():
    decisions = Decisions()
    # In a millisecond a prompt of two tokens: two thousand a second, twice what one worker computes.
    run(go(decisions, [page(), page(1, 2, outputs=1, output_tokens=10), page(2, 4, outputs=2, output_tokens=20)]))
    assert decisions.said[0] == Counts(1, 1)
    assert decisions.said[1].prefill == 2
    assert len(decisions.said) == 2  # the same load again changes nothing


def test_it_waits_for_what_was_said_last():
    decisions = Decisions()
    decisions.done = False
    load = [page(at, 3 * at, outputs=at, output_tokens=at) for at in range(1, 6)]
    run(go(decisions, [page(), *load[:3], lambda: setattr(decisions, "done", True), *load[3:]]))
    assert decisions.said == [Counts(1, 1), Counts(3, 2)]


def test_a_frontend_that_cannot_be_read_changes_nothing():
    decisions = Decisions()
    run(go(decisions, [page(), OSError("refused"), ValueError("what?"), page(1, 2, outputs=1, output_tokens=1)]))
    assert [counts.prefill for counts in decisions.said] == [1, 2]


def test_an_address_of_something_else_is_refused():
    with pytest.raises(InvalidRequestError, match="is no address such as"):
        read_metrics("file:///etc/passwd")


ROUND = """
import asyncio
from miniserve.core.scaling import Counts
from miniserve.dynamo.scaling import Follower, Publisher, runtime

async def main():
    connected = runtime()
    publisher, follower = Publisher(connected, "here"), Follower(connected, "here")
    await publisher.start()
    for counts in (Counts(1, 2), Counts(3, 1)):
        await publisher.publish(counts)
        assert await asyncio.wait_for(follower.wanted(), 10) == counts
        assert not await publisher.is_done()
        await follower.done()
        for _ in range(100):
            if await publisher.is_done():
                break
            await asyncio.sleep(0.05)
        assert await publisher.is_done()
    connected.shutdown()
    print("both")

asyncio.run(main())
"""


def test_what_is_published_is_heard_and_done(tmp_path):
    """With Dynamo's own connector, over etcd."""
    pytest.importorskip("dynamo._core", reason="NVIDIA Dynamo is not installed")
    with etcd(tmp_path) as environment:
        done = subprocess.run(
            [sys.executable, "-c", ROUND], capture_output=True, text=True, timeout=60, check=False, env=environment
        )
    assert done.stdout.endswith("both\n"), done.stdout + done.stderr
