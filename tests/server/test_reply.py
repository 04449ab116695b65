"""A reply between an engine that is fast and a reader that is slow, or gone."""

import pytest

from miniserve.core.request import TokenLogprob
from miniserve.server.errors import APIError, unavailable
from miniserve.server.messages import Piece
from miniserve.server.reply import Reply
from support import asynchronous


def test_what_is_not_read_is_joined_one_piece_a_choice():
    async def run():
        reply = Reply(0, 2, lambda: None)
        for step in range(1000):
            for choice in range(2):
                entry = TokenLogprob(step, -1.0, 1)
                reason = "length" if step == 999 else None
                reply.put(Piece(choice, f"{step},", [step], [entry], reason))
        return [piece async for piece in reply]

    pieces = asynchronous.run(run())
    assert [piece.choice for piece in pieces] == [0, 1]
    for piece in pieces:
        assert piece.text == "".join(f"{step}," for step in range(1000))
        assert piece.tokens == [entry.token_id for entry in piece.logprobs] == list(range(1000))
        assert piece.finish_reason == "length"


def test_prompt_logprobs_survive_joining():
    first = Piece(0, "a", [1], prompt_logprobs=[None], spent_s=0.5)
    second = Piece(0, "b", [2], finish_reason="stop", num_cached=3, spent_s=0.25)
    assert first.then(second) == Piece(0, "ab", [1, 2], None, "stop", None, 3, [None], spent_s=0.75)


def test_a_failure_reaches_the_reader_and_closing_is_told_once():
    closed = []

    async def run():
        reply = Reply(0, 1, lambda: closed.append(1))
        reply.put(Piece(0, "a", [1]))
        pieces = aiter(reply)
        assert (await anext(pieces)).text == "a"
        reply.fail(unavailable("gone"))
        with pytest.raises(APIError, match="gone"):
            await anext(pieces)
        reply.close()
        reply.close()
        done = Reply(0, 1, lambda: None)
        done.put(Piece(0, "b", [1], finish_reason="stop"))
        done.fail(unavailable("gone"))  # too late to matter
        assert [piece.text async for piece in done] == ["b"]

    asynchronous.run(run())
    assert closed == [1]
