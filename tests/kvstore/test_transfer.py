"""Rooms: read from another process, and not found once they are closed."""

import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from miniserve.errors import InvalidRequestError
from miniserve.kvstore import nixl
from miniserve.kvstore.nixl import Nixl
from miniserve.kvstore.shared_memory import SharedMemory
from miniserve.kvstore.transfer import TransferError

EXPECTED = (torch.arange(1000) % 251).to(torch.uint8)


def make_room(way, pipe):
    """In another process: a room of 1000 bytes, which stands until the process is killed."""
    room = way().room(1000)
    room.data.copy_(EXPECTED)
    pipe.send(room.place)
    pipe.recv()


class Maker:
    def __init__(self, way):
        # NIXL has threads, which a fork would lose; for shared memory it saves the start of another Python.
        context = multiprocessing.get_context("fork" if way is SharedMemory else "spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=make_room, args=(way, theirs), daemon=True)
        self.process.start()
        self.place = self.pipe.recv()

    def kill(self):
        self.process.kill()
        self.process.join()


@pytest.fixture(params=[SharedMemory, Nixl])
def way(request):
    if request.param is Nixl:
        pytest.importorskip("nixl", reason="nixl is not installed")
    way = request.param()
    yield way
    way.close()


def test_another_process_reads_it_until_its_maker_is_gone(way):
    maker = Maker(type(way))
    try:
        for _ in range(2):
            with way.read(maker.place, 1000) as data:
                assert torch.equal(data, EXPECTED)
    finally:
        maker.kill()
    with pytest.raises(TransferError), way.read(maker.place, 1000):
        pass


class Silent:
    """A NIXL agent whose transfer begins and never says that it is done."""

    def __init__(self):
        self.held = []

    def __getattr__(self, name):
        def call(*_):
            self.held.append(name)
            return "PROC"

        return call


def test_a_completion_that_is_lost_is_not_waited_for(monkeypatch):
    """Hazard 24: it ends, as a failure that names the peer, and gives back what it had registered."""
    monkeypatch.setattr(nixl, "READ_TIMEOUT_S", 0.02)
    way = Nixl.__new__(Nixl)  # without the package, which has an agent of its own
    way._agent = agent = Silent()
    began_s = time.monotonic()
    place = nixl.Place("theirs", b"", b"", 3)
    with pytest.raises(TransferError, match="agent theirs was not read within"), way.read(place, 10):
        raise AssertionError("nothing is there to be read")
    assert 0.02 <= time.monotonic() - began_s < 5
    assert agent.held.count("register_memory") == agent.held.count("deregister_memory") == 1
    assert agent.held[-3:] == ["release_xfer_handle", "remove_remote_agent", "deregister_memory"]


def test_its_maker_hears_that_it_was_read(way):
    room = way.room(1000)
    reader = type(way)()
    way.tidy()
    assert not room.was_read
    with reader.read(room.place, 1000):
        pass
    for _ in range(200):
        way.tidy()
        if room.was_read:
            break
        time.sleep(0.01)
    assert room.was_read
    room.close()
    reader.close()


def test_a_reader_that_fails_may_come_again():
    shared = SharedMemory()
    room = shared.room(1000)
    with pytest.raises(ZeroDivisionError), shared.read(room.place, 1000):
        _ = 1 / 0
    assert not room.was_read
    room.close()


def test_what_is_read_stays_when_the_maker_is_killed():
    maker = Maker(SharedMemory)
    with SharedMemory().read(maker.place, 1000) as data:
        maker.kill()
        assert torch.equal(data, EXPECTED)


def test_a_closed_room_is_not_found_even_if_its_number_is_used_again():
    shared = SharedMemory()
    room = shared.room(1000)
    room.close()
    with pytest.raises(TransferError, match="has gone, or its room has been closed"), shared.read(room.place, 1000):
        pass
    other = shared.room(1000)
    place = other.place._replace(secret=room.place.secret)
    with pytest.raises(TransferError, match="another one has its number"), shared.read(place, 1000):
        pass
    with pytest.raises(TransferError, match="another file has its number"), shared.read(other.place, 999):
        pass
    other.close()


def files():
    """That this process has open."""
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def test_a_room_leaves_nothing_behind():
    shared = SharedMemory()
    before = files()
    room = shared.room(2**20)
    with shared.read(room.place, 2**20) as data:
        assert len(data) == 2**20
    room.close()
    del data
    assert files() == before
    assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if "miniserve-kv" in line]


def test_places_of_other_kinds_are_refused(way):
    with pytest.raises(TransferError, match="this is no place"), way.read("/etc/passwd", 10):
        pass


def test_without_nixl_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "nixl._api", None)
    with pytest.raises(InvalidRequestError, match=r"pip install 'miniserve\[nixl\]'"):
        Nixl()


def test_nobody_spins_while_a_room_waits():
    """In a process of its own, whose other threads sleep."""
    pytest.importorskip("nixl", reason="nixl is not installed")
    told = subprocess.run([sys.executable, "-c", IDLE], capture_output=True, text=True, check=True)
    assert float(told.stdout) < 0.15, "its thread takes a core"


IDLE = """
import time
from miniserve.kvstore.nixl import Nixl
way = Nixl()
room = way.room(1000)
used_s = time.process_time()
time.sleep(1)
print(time.process_time() - used_s)
room.close()
way.close()
"""
