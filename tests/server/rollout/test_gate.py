"""What a version must pass, and what is said of one that does not."""

import math

import pytest

from miniserve.errors import CorruptFileError, MiniserveError
from miniserve.server.rollout.gate import ALWAYS, Gate, GateError, Reply, Text, read_gate
from support.asynchronous import run
from support.fake_backend import FakeBackend

TOKENS = tuple(map(ord, "abcdefghijkl"))


def check(gate, **how):
    async def story():
        backend = FakeBackend(**{"tokens": TOKENS} | how)
        await backend.start()
        await gate.check(backend)
        return backend

    return run(story())


def test_what_is_always_checked():
    backend = check(ALWAYS)
    assert len(backend.asked) == 2
    with pytest.raises(GateError, match=r"log-probabilities behind 'Once upon a time there was' are \[nan"):
        check(ALWAYS, nats=math.nan)
    with pytest.raises(GateError, match="log-probabilities behind"):
        check(ALWAYS, tokens=TOKENS[:3])


def test_a_text_must_not_surprise():
    gate = Gate((Text("some text", 1.5),))
    check(gate, nats=1.5)
    for nats in (1.6, math.nan):
        with pytest.raises(GateError):
            check(gate, nats=nats)
    with pytest.raises(GateError, match=r"'some text' surprises by 1.600 nats a token: at most 1.5"):
        check(gate, nats=1.6)
    with pytest.raises(GateError, match="has 1 tokens: it needs 2"):
        check(Gate((Text("x", 1.5),)))


def test_a_reply_must_match():
    check(Gate(replies=(Reply("p", "^abc", 3),)))
    with pytest.raises(GateError, match="'p' goes on with 'abc', without 'abcd'"):
        check(Gate(replies=(Reply("p", "abcd", 3),)))


def test_one_that_is_not_there_does_not_pass():
    async def story():
        await ALWAYS.check(FakeBackend())

    with pytest.raises(GateError, match="it is not ready"):
        run(story())


def test_a_file(tmp_path):
    path = tmp_path / "smoke.toml"
    path.write_text('[[texts]]\ntext = "a b"\nmax_nats = 4\n[[replies]]\nprompt = "p"\npattern = "x+"\n')
    assert read_gate(path) == Gate((Text("a b", 4.0),), (Reply("p", "x+"),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"has no checks: it needs \[\[texts\]\] or \[\[replies\]\]"),
        ("[[", "smoke.toml cannot be read as TOML: "),
        ('[[text]]\ntext = "a"', "unknown key 'text'; did you mean 'texts'"),
        ('[[texts]]\ntext = "a"', "max_nats' is missing"),
        ("[[texts]]\ntext = 3\nmax_nats = 1", "is 3: it must be a text"),
        ('[[replies]]\nprompt = "p"\npattern = "("', r"smoke.toml: pattern '\('"),
    ],
)
def test_a_file_that_says_something_else(content, message, tmp_path):
    path = tmp_path / "smoke.toml"
    path.write_text(content)
    with pytest.raises(MiniserveError, match=message):
        read_gate(path)
    with pytest.raises(CorruptFileError, match=r"none\.toml"):
        read_gate(tmp_path / "none.toml")
