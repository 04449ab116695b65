"""What a tenant can find out about another one by timing. One server process; some 15 s of CPU."""

import random

import pytest

from miniserve.bench.isolation import Asker, attack, judge, long_prompt, long_schema
from miniserve.server.access import hash_key, new_key

PAIRS = 30
ALPHA = 1e-4  # how often a server that leaks nothing fails the test. Within a tenant 30 pairs can give 1.9e-9


@pytest.fixture(scope="module")
def server(start, tmp_path_factory):
    keys = [new_key(), new_key()]
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    path.write_text("".join(f'[t{at}]\nsha256 = "{hash_key(key)}"\n' for at, key in enumerate(keys)))
    with start("--api-keys-file", str(path), "--no-live-view") as server:
        yield f"{server.url}/v1", keys


@pytest.mark.parametrize("guess", [long_prompt(80), long_schema(400)], ids=["prompt", "schema"])
def test_a_neighbour_cannot_be_heard(server, guess):
    """The same attack from the victim's own key succeeds: it is the tenants that make the difference."""
    url, keys = server
    draw = random.Random(7)
    with (
        Asker(url, "tiny", keys[0]) as victim,
        Asker(url, "tiny", keys[0]) as itself,
        Asker(url, "tiny", keys[1]) as other,
    ):
        for asker in (victim, itself, other):
            asker.ask(guess(draw))  # warm
        pairs = [(attack(victim, itself, guess, draw), attack(victim, other, guess, draw)) for _ in range(PAIRS)]
    within, across = (judge(each) for each in zip(*pairs, strict=True))
    assert within.p_value < ALPHA, within
    assert within.share_sooner > 0.8, within
    assert across.p_value > ALPHA, across
    assert across.cached_tokens == 0
    assert abs(across.difference_s) < within.difference_s / 2
