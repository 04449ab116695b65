"""The host tier alone: room, order of use, soundness."""

import numpy as np
import pytest

from miniserve.errors import InvalidRequestError
from miniserve.kvstore.host import HostTier
from support.kv_records import record


def test_room_for_one_block_at_least():
    with pytest.raises(InvalidRequestError, match="99 bytes: a KV block of this model takes 100"):
        HostTier(99, 100)


def test_the_least_recently_used_goes_first():
    tier = HostTier(3 * 100 + 50, 100)
    for number in (1, 2, 3):
        tier.put(record(number))
    assert tier.get(record(1).key) is not None
    tier.put(record(4))
    assert [record(n).key in tier for n in (1, 2, 3, 4)] == [True, False, True, True]
    assert (tier.counts.evictions, tier.counts.used_bytes, tier.counts.capacity_bytes) == (1, 300, 300)
    tier.check()


def test_what_comes_back_is_what_was_put_and_a_copy():
    tier, wanted = HostTier(300, 100), record(1)
    lent = wanted._replace(payload=wanted.payload.copy())
    tier.put(lent)
    lent.payload[:] = 0
    got = tier.get(wanted.key)
    assert np.array_equal(got.payload, wanted.payload)
    assert got.is_sound


def test_a_flipped_bit_is_a_miss_and_forgotten():
    tier = HostTier(300, 100)
    tier.put(record(1))
    tier.get(record(1).key).payload[57] ^= 4
    assert tier.get(record(1).key) is None
    assert record(1).key not in tier
    assert tier.counts.corrupt == 1
    tier.check()
    tier.put(record(1))
    assert tier.get(record(1).key) is not None


def test_a_payload_under_another_key_is_not_sound():
    assert not record(1)._replace(key=record(2).key).is_sound
