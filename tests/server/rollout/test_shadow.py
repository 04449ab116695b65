"""Copies: nobody waits for them, they are compared where they can be, and there are never too many."""

import asyncio

import pytest

from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import MiniserveError
from miniserve.server.errors import unavailable
from miniserve.server.rollout.shadow import MAX_COPIES, Copy, Counts, Shadow
from miniserve.server.rollout.version import Version
from support.asynchronous import run
from support.fake_backend import FakeBackend

GREEDY = SamplingParams(temperature=0.0, max_tokens=8)


async def prompts(engine):
    return [engine.tokenizer.encode("hello")]


async def ready(**how):
    version = Version("2", lambda: FakeBackend(**how))
    await version.load()
    return version


async def settled(shadow):
    while shadow._tasks:
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("original", "wanted"),
    [
        ([1, 2, 3], Counts(copies=1, alike=1, tokens=3, tokens_alike=3)),
        ([1, 2], Counts(copies=1, alike=1, tokens=2, tokens_alike=2)),  # its client had gone
        ([1, 9, 3], Counts(copies=1, different=1, tokens=3, tokens_alike=1)),
        ([1, 2, 3, 4], Counts(copies=1, different=1, tokens=4, tokens_alike=3)),
    ],
)
def test_a_copy_is_compared(original, wanted):
    async def story():
        shadow, version, copy = Shadow(), await ready(tokens=(1, 2, 3)), Copy(prompts, GREEDY, "salt")
        shadow.begin(version, copy)
        copy.end({0: original})
        copy.end({0: []})  # of no effect
        await settled(shadow)
        assert version.backend.asked == [([list(map(ord, "hello"))], GREEDY, "salt")]
        assert shadow.counts == {"2": wanted}
        assert version.num_open == 0

    run(story())


def test_what_is_drawn_at_random_is_not_compared():
    async def story():
        shadow, version = Shadow(), await ready()
        for params in (SamplingParams(temperature=1.0), SamplingParams(temperature=1.0, seed=5)):
            copy = Copy(prompts, params, "")
            shadow.begin(version, copy)
            copy.end({0: [1, 2, 3]})
        await settled(shadow)
        assert shadow.counts["2"] == Counts(copies=2, alike=1, tokens=3, tokens_alike=3)

    run(story())


def test_one_whose_original_was_refused_is_not_compared():
    async def story():
        shadow, version, copy = Shadow(), await ready(), Copy(prompts, GREEDY, "")
        shadow.begin(version, copy)
        copy.end({})
        await settled(shadow)
        assert shadow.counts["2"] == Counts(copies=1)

    run(story())


def test_too_many_and_those_nobody_can_make_are_skipped():
    async def story():
        shadow, version = Shadow(), await ready()
        version.backend.go.clear()
        copies = [Copy(prompts, GREEDY, "") for _ in range(MAX_COPIES + 3)]
        for copy in copies:
            shadow.begin(version, copy)
            copy.end({0: [1, 2, 3]})
        assert shadow.counts["2"].skipped == 3
        version.backend.go.set()
        await settled(shadow)
        assert (shadow.counts["2"].copies, shadow.counts["2"].skipped) == (MAX_COPIES, 3)
        await version.unload()
        shadow.begin(version, Copy(prompts, GREEDY, ""))
        await settled(shadow)
        assert shadow.counts["2"].skipped == 4

    run(story())


def test_one_that_fails_is_counted():
    async def story():
        shadow, version = Shadow(), await ready()
        version.backend.go.clear()
        shadow.begin(version, Copy(prompts, GREEDY, ""))
        while not version.backend.num_open:
            await asyncio.sleep(0)
        version.backend.fail_all(unavailable("it died"))
        await settled(shadow)
        assert shadow.counts["2"] == Counts(failed=1)

    run(story())


def test_a_version_that_fails_says_so():
    async def story():
        with pytest.raises(MiniserveError, match="broken"):
            await ready(fails=MiniserveError("broken"))

    run(story())
