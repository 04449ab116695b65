"""What a worker answers in each role, over an engine that says what the test has it say. Without Dynamo."""

import asyncio
from types import SimpleNamespace

import pytest

from miniserve.core.offer import Offer
from miniserve.core.request import TokenLogprob
from miniserve.dynamo.answers import Answers
from miniserve.errors import InvalidRequestError
from miniserve.fleet.rooms import Source
from miniserve.kvstore.shared_memory import Place
from miniserve.server.messages import Piece
from miniserve.server.reply import Reply
from support.asynchronous import run

LIKELY = [TokenLogprob(5, -0.5, 1, ())]


class Engine:
    """`EngineClient`'s part that is used: it answers each submission with `pieces`, and keeps how it was asked."""

    tokenizer = SimpleNamespace(eos_token_ids=frozenset({0}))

    def __init__(self, *pieces):
        self.pieces, self.asked, self.closed = pieces, [], 0

    async def submit(self, prompts, params, **how):
        self.asked.append((prompts, params, how))
        reply = Reply(1, 1, self._close)
        for piece in self.pieces:
            reply.put(piece)
        return reply

    def _close(self):
        self.closed += 1


def request(**more):
    return {"token_ids": [1, 2, 3], "stop_conditions": {"max_tokens": 4}, "sampling_options": {}, **more}


def all_of(answers, asked, **how):
    async def collect():
        return [chunk async for chunk in answers.to(asked, "a", **how)]

    return run(collect())


def test_a_whole_request_ends_with_what_it_used():
    engine = Engine(Piece(0, "", [5, 6], num_cached=2), Piece(0, "", [7], None, "length", num_cached=2))
    answers = Answers(engine, "agg")
    (chunk,) = all_of(answers, request())  # not taken meanwhile: the pieces are joined
    assert (chunk["token_ids"], chunk["finish_reason"]) == ([5, 6, 7], "length")
    assert chunk["completion_usage"]["completion_tokens"] == 3
    assert chunk["completion_usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert engine.asked[0][2] == {"prior": (), "offer": None}
    assert not answers.are_open
    assert engine.closed == 1


def test_a_prompt_here_and_the_rest_there():
    """The token, how likely it was, and where its KV is: all arrive with the worker that goes on."""
    offer = Offer(2, 64, 1e12, Source("{}", Place(1, 2, b"token")))
    first = Engine(Piece(0, "", [5], LIKELY, num_cached=2), Piece(0, "", [], [], "moved", num_cached=2, offer=offer))
    (begun,) = all_of(Answers(first, "prefill"), request())
    assert (begun["token_ids"], begun["finish_reason"]) == ([5], "length")
    assert begun["completion_usage"]["completion_tokens"] == 1
    assert first.asked[0][1].max_tokens == 2, "one that ends with its token leaves nothing behind"
    assert first.asked[0][2] == {"moves": True}

    second = Engine(Piece(0, "", [6], None, "stop"))
    result = {"disaggregated_params": begun["disaggregated_params"]}
    head, tail = all_of(Answers(second, "decode"), request(prefill_result=result))
    assert (head["token_ids"], head["log_probs"]) == ([5], [-0.5])
    assert tail["completion_usage"]["completion_tokens"] == 2
    assert tail["completion_usage"]["prompt_tokens_details"] == {"cached_tokens": 2}, "as the first worker found it"
    assert second.asked[0][2]["prior"] == (5,)
    assert second.asked[0][2]["offer"].source.place == offer.source.place


def test_an_output_that_ends_with_its_first_token_is_not_gone_on_with():
    (chunk,) = all_of(Answers(Engine(Piece(0, "", [0], None, "stop")), "prefill"), request())
    assert chunk["finish_reason"] == "stop"
    assert "disaggregated_params" not in chunk


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_check_of_its_health_is_a_whole_request_in_any_role(role):
    engine = Engine(Piece(0, "", [5], None, "length"))
    assert all_of(Answers(engine, role), request(), whole=True)[-1]["finish_reason"] == "length"
    assert engine.asked[0][2] == {"prior": (), "offer": None}


def test_a_decode_worker_without_the_other_ones_result_refuses():
    with pytest.raises(InvalidRequestError, match="a prefill worker's result cannot be read"):
        Answers(Engine(), "decode").to(request(), "a")


@pytest.mark.parametrize("role", ["agg", "prefill"])
def test_who_leaves_or_aborts_leaves_nothing_open(role):
    async def leave():
        engine = Engine()
        answers = Answers(engine, role)
        waiting = asyncio.create_task(anext(answers.to(request(), "a")))
        await asyncio.sleep(0)
        assert answers.are_open
        answers.abort("nobody")
        assert engine.closed == 0
        answers.abort("a")
        assert engine.closed == 1
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert not answers.are_open

    run(leave())
