"""A request between two workers: everything arrives, through JSON; what is something else is refused."""

import json
import time

import pytest

from miniserve.core.offer import Offer
from miniserve.dynamo.handoff import Handoff
from miniserve.errors import InvalidRequestError
from miniserve.fleet.rooms import Source
from miniserve.kvstore import nixl, shared_memory

PLACES = [
    shared_memory.Place(12, 3, b"\x00\xff secret bytes!!"),
    nixl.Place("agent", b"\x80\x81", b"\x00memory", 3),
]


@pytest.mark.parametrize("place", PLACES, ids=["shared memory", "nixl"])
def test_an_offer_survives_json(place):
    offer = Offer(400, 2**20, time.monotonic() + 30, Source('{"layout": 1}', place))
    sent = json.dumps(Handoff.of(7, offer, 16, {"log_probs": [-0.5]}).to_json())
    found = Handoff.from_json(json.loads(sent))
    assert (found.token, found.num_cached, found.logprobs) == (7, 16, {"log_probs": [-0.5]})
    assert found.offer is not None
    assert found.offer[:2] == offer[:2]
    assert found.offer.source == offer.source
    assert type(found.offer.source.place) is type(place)
    assert found.offer.expires_s == pytest.approx(offer.expires_s, abs=1)


def test_without_room_the_token_is_left():
    found = Handoff.from_json(Handoff.of(7, None, 0, {}).to_json())
    assert (found.token, found.offer) == (7, None)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "cannot be read"),
        ({}, "token"),
        ({"token": "7"}, "Expected `int`"),
        ({"token": 7, "more": 1}, "unknown field `more`"),
        ({"token": 7, "version": 2}, "version 2, not 1"),
        ({"token": 7, "where": {"num_tokens": 1}}, "num_bytes"),
    ],
)
def test_what_is_none_is_refused(value, says):
    with pytest.raises(InvalidRequestError, match=says):
        Handoff.from_json(value)
