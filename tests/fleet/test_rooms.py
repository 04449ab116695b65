"""What stands to be read, and that it does not stand for ever."""

from types import SimpleNamespace

import pytest
import torch

from miniserve.fleet import rooms as module
from miniserve.fleet.rooms import Rooms, Source, Tally


class Transfer:
    """Rooms of this process."""

    def __init__(self):
        self.open = []

    def room(self, num_bytes):
        room = SimpleNamespace(data=torch.zeros(num_bytes, dtype=torch.uint8), place=len(self.open), was_read=False)
        room.close = lambda: self.open.remove(room)
        self.open.append(room)
        return room

    def tidy(self):
        pass


@pytest.fixture
def made(monkeypatch):
    """Rooms of 100 bytes for 10 s, and their clock."""
    transfer, tally, clock = Transfer(), Tally(), SimpleNamespace(now=0.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock.now)
    return Rooms(transfer, "a form", tally, hold_s=10.0, capacity_bytes=100), transfer, tally, clock


def fill(rooms, name, num_bytes=40):
    assert rooms.promise(num_bytes)
    return rooms.fill(name, 7, num_bytes, lambda data: data.fill_(9))


def test_what_is_offered_stands(made):
    rooms, transfer, tally, clock = made
    clock.now = 3.0
    offer = fill(rooms, "a")
    assert offer == (7, 40, 13.0, Source("a form", 0))
    assert transfer.open[0].data.tolist() == [9] * 40
    assert (tally.now.num_left, tally.now.left_bytes, tally.now.held, tally.now.held_bytes) == (1, 40, 1, 40)


def test_no_more_is_promised_than_there_is(made):
    rooms, transfer, tally, _ = made
    fill(rooms, "a")
    fill(rooms, "b")
    assert not rooms.promise(21)
    rooms.close("a")
    rooms.close("a")
    rooms.close("nobody")
    assert (len(transfer.open), tally.now.held, tally.now.held_bytes) == (1, 1, 40)
    assert rooms.promise(60)
    assert not rooms.promise(1)
    rooms.close_all()
    assert (transfer.open, tally.now.held) == ([], 0)


def test_what_fails_promises_nothing(made):
    rooms, transfer, tally, _ = made
    assert rooms.promise(100)
    with pytest.raises(ZeroDivisionError):
        rooms.fill("a", 7, 100, lambda data: 1 / 0)
    assert (transfer.open, tally.now.num_left, tally.now.held) == ([], 0, 0)
    assert rooms.promise(100)


def test_what_was_read_goes_and_what_is_late(made):
    rooms, transfer, tally, clock = made
    fill(rooms, "read")
    clock.now = 5.0
    fill(rooms, "late")
    transfer.open[0].was_read = True
    rooms.tidy()
    assert [room.place for room in transfer.open] == [1]
    assert tally.now.expired == 0
    clock.now = 14.9
    rooms.tidy()
    assert tally.now.held == 1
    clock.now = 15.0
    rooms.tidy()
    assert (transfer.open, tally.now.held, tally.now.held_bytes, tally.now.expired) == ([], 0, 0, 1)
    assert rooms.promise(100)


def test_a_request_has_one_room(made):
    """It came back, and left again."""
    rooms, transfer, tally, _ = made
    fill(rooms, "a")
    assert fill(rooms, "a").source.place == 1
    assert ([room.place for room in transfer.open], tally.now.held) == ([1], 1)
    assert rooms.promise(60)
