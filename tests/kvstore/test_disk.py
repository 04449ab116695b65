"""The disk tier alone: whatever happens to its files, it gives what was written, or nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from miniserve.errors import InvalidRequestError
from miniserve.kvstore.block_file import HEADER_BYTES, PARTIAL, file_bytes, read_block, write_block
from miniserve.kvstore.directory import ABANDONED_S
from miniserve.kvstore.disk import DiskTier
from support.kv_records import DOMAIN, SIZE, record

FILE = file_bytes(SIZE, sealed=False)


def tier_in(folder, blocks=50, domain=DOMAIN):
    return DiskTier(folder, blocks * FILE, SIZE, domain)


def files(folder):
    return sorted(folder.rglob("*.kv"))


def right(tier, number):
    """Whether a block is there; if it is, it must be the one."""
    got = tier.get(record(number).key)
    if got is not None:
        assert np.array_equal(got.payload, record(number).payload)
        assert got.checksum == record(number).checksum
    return got is not None


def test_another_process_of_the_same_model_finds_what_was_written(tmp_path):
    first, beside = tier_in(tmp_path), tier_in(tmp_path)
    for number in range(5):
        first.put(record(number))
    assert all(right(first, number) for number in range(5))
    assert record(3).key not in beside
    assert beside.look(record(3).key)
    assert right(beside, 3)
    later = tier_in(tmp_path)
    assert all(record(number).key in later for number in range(5))
    assert later.counts.used_bytes == 5 * FILE
    later.put(record(3))
    assert later.counts.saves == 0, "it is there"


def test_only_the_owner_may_read(tmp_path):
    tier_in(tmp_path / "kv").put(record(1))
    assert (tmp_path / "kv").stat().st_mode & 0o077 == 0


def test_another_model_finds_nothing(tmp_path):
    tier_in(tmp_path).put(record(1))
    other = tier_in(tmp_path, domain=b"e" * 32)
    assert not other.look(record(1).key)
    assert other.get(record(1).key) is None
    assert other.counts.used_bytes == FILE, "its files count for the limit"


DAMAGES = {
    "truncated": lambda data: data[: len(data) // 2],
    "less than a header": lambda data: data[:20],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"x",
    "a bit of the payload": lambda data: data[:-7] + bytes([data[-7] ^ 1]) + data[-6:],
    "a bit of the checksum": lambda data: data[:HEADER_BYTES] + bytes([data[HEADER_BYTES] ^ 1]) + data[HEADER_BYTES + 1 :],
    "zeros where data was": lambda data: data[:HEADER_BYTES] + bytes(SIZE),
    "all zeros": lambda data: bytes(len(data)),
    "another version": lambda data: data[:8] + b"\1\0\0\0" + data[12:],
    "another model's": lambda data: data[:16] + b"e" * 32 + data[48:],
    "another tenant's": lambda data: data[:48] + b"t" * 16 + data[64:],
    "another block's": lambda data: data[:64] + record(2).key.content + data[96:],
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_a_miss_and_deleted(tmp_path, damage, caplog):
    tier = tier_in(tmp_path)
    tier.put(record(1))
    (path,) = files(tmp_path)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert tier.get(record(1).key) is None
    assert not path.exists()
    assert record(1).key not in tier
    assert (tier.counts.corrupt, tier.counts.used_bytes) == (1, 0)
    assert str(path) in caplog.text
    tier.put(record(1))
    assert right(tier, 1)


def test_every_single_bit_counts(tmp_path):
    path = tmp_path / "block"
    write_block(path, DOMAIN, record(1))
    data = path.read_bytes()
    for bit in range(0, 8 * len(data), 7):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert isinstance(read_block(path, DOMAIN, record(1).key, SIZE), str)


def test_a_file_that_somebody_deleted_is_a_miss(tmp_path):
    tier = tier_in(tmp_path)
    tier.put(record(1))
    files(tmp_path)[0].unlink()
    assert tier.get(record(1).key) is None
    assert record(1).key not in tier
    assert tier.counts.corrupt == 0


def test_the_least_recently_used_goes_first(tmp_path):
    tier = tier_in(tmp_path, blocks=4)
    for number in range(4):
        tier.put(record(number))
        os.utime(files(tmp_path)[-1])
    for age, number in enumerate((1, 3, 0, 2)):
        os.utime(tier._directory.path(record(number).key), (1e9 + age, 1e9 + age))
    assert right(tier, 1)  # used just now
    tier.put(record(4))
    assert [record(n).key in tier for n in range(5)] == [True, True, True, False, True]
    assert tier.counts.evictions == 1
    assert tier.counts.used_bytes == 4 * FILE == sum(path.stat().st_size for path in files(tmp_path))


def test_room_is_made_in_bulk_and_for_all_models_together(tmp_path):
    tier, other = tier_in(tmp_path, 40), tier_in(tmp_path, 40, b"e" * 32)
    for number in range(20):
        other.put(record(number))
    for number in range(100, 121):
        tier.put(record(number))
        assert len(files(tmp_path)) <= 41
    assert tier.counts.evictions == 0, "it knows nothing of the other's yet"
    again = tier_in(tmp_path, 40)
    assert again.counts.evictions == 5, "down to nine tenths"
    assert len(files(tmp_path)) == 36
    assert sum(right(other, number) for number in range(20)) == 15, "the oldest of all"


def test_a_limit_that_was_lowered_is_kept_at_once(tmp_path):
    tier = tier_in(tmp_path)
    for number in range(30):
        tier.put(record(number))
    assert len(files(tmp_path)) == 30
    tier_in(tmp_path, 5)
    assert len(files(tmp_path)) == 5


def test_what_a_dead_process_left_unfinished_goes_in_time(tmp_path):
    tier_in(tmp_path).put(record(1))
    new, old = (files(tmp_path)[0].with_name(f"{name}{PARTIAL}") for name in ("new", "old"))
    for path in (new, old):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - ABANDONED_S - 1,) * 2)
    assert right(tier_in(tmp_path), 1)
    assert (new.exists(), old.exists()) == (True, False)


def test_a_full_disk_is_counted_and_nothing_is_left_behind(tmp_path, monkeypatch, caplog):
    tier = tier_in(tmp_path)

    def full(self, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", full)
        tier.put(record(1))
        tier.put(record(2))
    assert record(1).key not in tier
    assert tier.counts.errors == 2
    assert caplog.text.count("No space left") == 1, "said once"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]
    tier.put(record(1))
    assert right(tier, 1)


def test_a_directory_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidRequestError, match="cannot use"):
        tier_in(tmp_path / "file")
    with pytest.raises(InvalidRequestError, match=f"10 bytes: a KV block of this model takes {FILE}"):
        DiskTier(tmp_path, 10, SIZE, DOMAIN)


WRITER = """
import sys; from pathlib import Path
from miniserve.kvstore.disk import DiskTier
from support.kv_records import DOMAIN, SIZE, record
tier = DiskTier(Path(sys.argv[1]), int(sys.argv[2]), SIZE, DOMAIN)
print("up", flush=True)
for round in range(10**6):
    for number in range(60):
        tier.put(record(number)); tier.get(record((number * 7) % 60).key)
"""


def start_writer(folder, capacity):
    path = os.pathsep.join(filter(None, sys.path))
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(capacity)], env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == "up\n"
    return process


def test_processes_that_are_killed_while_they_write_leave_nothing_wrong(tmp_path):
    """Three write, evict and read in one directory; each is killed in the middle of it."""
    writers = [start_writer(tmp_path, 30 * FILE) for _ in range(3)]
    ours = tier_in(tmp_path, 30)
    seen = 0
    for writer in writers:
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            seen += sum(right(ours, number) for number in range(60))
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    assert seen > 60
    assert ours.counts.corrupt == 0
    after = tier_in(tmp_path, 30)
    for number in range(60):
        after.put(record(number))
        assert right(after, number)
    assert len(files(tmp_path)) <= 31, "the lock of one that died holds nobody up"


class TwoProcesses(RuleBasedStateMachine):
    """Two tiers on one directory, restarts, and hands that tamper with files: a block is right, or missing."""

    numbers = st.integers(0, 15)
    which = st.integers(0, 1)

    @initialize(blocks=st.integers(1, 12))
    def start(self, blocks):
        self.folder = TemporaryDirectory()
        self.path, self.blocks = Path(self.folder.name), blocks
        self.tiers = [tier_in(self.path, blocks) for _ in range(2)]
        self.written = set()

    @rule(which=which, number=numbers)
    def put(self, which, number):
        self.tiers[which].put(record(number))
        self.written.add(number)
        assert record(number).key in self.tiers[which]

    @rule(which=which, number=numbers)
    def get(self, which, number):
        known = self.tiers[which].look(record(number).key)
        found = right(self.tiers[which], number)
        assert number in self.written or not found
        assert known or not found

    @rule(which=which)
    def restart(self, which):
        self.tiers[which] = tier_in(self.path, self.blocks)

    @rule(index=st.integers(0, 100), damage=st.sampled_from(sorted(DAMAGES)))
    def tamper(self, index, damage):
        if found := [path for path in files(self.path) if path.stat().st_size >= FILE]:
            path = found[index % len(found)]
            path.write_bytes(DAMAGES[damage](path.read_bytes()))

    @rule(index=st.integers(0, 100))
    def delete(self, index):
        if found := files(self.path):
            found[index % len(found)].unlink()

    @invariant()
    def limits(self):
        total = sum(path.stat().st_size for path in files(self.path))
        assert total <= 2 * (self.blocks + 1) * FILE + 50, "each keeps the limit by its own estimate"
        assert all(tier.counts.used_bytes <= tier.counts.capacity_bytes for tier in self.tiers)
        assert not list(self.path.rglob("*" + PARTIAL))

    def teardown(self):
        if hasattr(self, "folder"):
            self.folder.cleanup()


TestTwoProcesses = TwoProcesses.TestCase
TestTwoProcesses.settings = settings(derandomize=True, deadline=None, max_examples=15, stateful_step_count=25)
