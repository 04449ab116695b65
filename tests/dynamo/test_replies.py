"""What a worker says besides tokens."""

from miniserve.core.request import TokenLogprob
from miniserve.dynamo.replies import logprobs, usage
from miniserve.server.messages import Piece


def test_usage_adds_up():
    told = usage([1, 2, 3], 4, 2)
    assert told["total_tokens"] == told["prompt_tokens"] + told["completion_tokens"] == 7
    assert told["prompt_tokens_details"] == {"cached_tokens": 2}


def test_the_likeliest_come_first_by_rank():
    piece = Piece(0, "a", [5], [TokenLogprob(5, -0.5, 1, ((5, -0.5), (7, -2.0)))])
    assert logprobs(piece) == {
        "log_probs": [-0.5],
        "top_logprobs": [[{"rank": 1, "token_id": 5, "logprob": -0.5}, {"rank": 2, "token_id": 7, "logprob": -2.0}]],
    }


def test_who_did_not_ask_hears_nothing():
    assert logprobs(Piece(0, "a", [5])) == {}
