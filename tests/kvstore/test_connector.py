"""Tiers beside a KV cache: saved when full, loaded when wanted, and whatever goes wrong a miss, in time."""

import threading
import time
from array import array

import pytest
import torch

from miniserve.core.request import Request
from miniserve.core.sampling_params import Limits
from miniserve.kvstore import connector as module
from miniserve.kvstore.blocks import BlockCopier
from miniserve.kvstore.connector import TieredKV
from miniserve.kvstore.disk import DiskTier
from miniserve.kvstore.host import HostTier
from miniserve.kvstore.layout import KVLayout
from miniserve.kvstore.packing import choose_packing
from miniserve.kvstore.record import BlockKey, owner_of
from miniserve.model.config import ModelConfig, Rope
from miniserve.runtime.kv_cache import KVCache

CONFIG = ModelConfig("llama", 100, 64, 3, 4, 2, 16, 96, 100, 1e-5, Rope(10000.0))
LAYOUT = KVLayout(weights="w", computed="c", num_layers=3, num_kv_heads=2, head_dim=16, block_size=4, dtype="float32")
BLOCKS = 80


class Device:
    """A KV cache, and requests whose blocks are said to be computed."""

    def __init__(self, tiers, *, compress="none", recompute_s=None):
        self.cache = KVCache(CONFIG, BLOCKS, 4, dtype=torch.float32, device=torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        for tensor in self.tensors:
            tensor.normal_(generator=generator)
        packing = choose_packing(compress, LAYOUT)
        self.tiers = [make(packing.stored.block_bytes) for make in tiers]
        copier = BlockCopier(self.cache, LAYOUT)
        self.kv = TieredKV(
            copier,
            packing,
            self.tiers,
            identity=packing.stored.digest.hex(),
            num_blocks=BLOCKS,
            recompute_s=recompute_s,
        )

    @property
    def tensors(self):
        return self.cache.keys + self.cache.values

    def content(self, blocks):
        return [tensor[list(blocks)].clone() for tensor in self.tensors]

    def request(self, tokens, blocks, name="r", salt=""):
        request = Request(name, tokens, Limits(4), cache_keys=("model", salt))
        request.block_table = array("i", blocks)
        return request

    def save(self, request, num_blocks):
        request.num_registered = num_blocks
        held = list(self.kv.computed(request, 0))
        assert sorted(self.until("released", len(held))) == sorted(held)
        return held

    def load(self, request, start=0):
        found = self.kv.lookup(request, start)
        if found:
            self.kv.load(request, start, found)
            ((ended, loaded),) = self.until("loaded", 1)
            assert ended is request
            return loaded
        return 0

    def until(self, what, count):
        """Poll until so many have come."""
        came, end = [], time.monotonic() + 20
        while len(came) < count:
            came += getattr(self.kv.poll(wait=True), what)
            assert time.monotonic() < end, "it takes too long"
        return came


def host(blocks=100):
    return lambda size: HostTier(blocks * size, size)


def disk(folder, blocks=100):
    return lambda size: DiskTier(folder, blocks * (size + 200), size, b"d" * 32)


@pytest.fixture
def device():
    made = []

    def make(*tiers, **options):
        made.append(Device(tiers, **options))
        return made[-1]

    yield make
    for each in made:
        each.kv.close()


TOKENS = list(range(70, 137))  # sixteen blocks, and a token
SOURCE, TARGET = list(range(17)), list(range(40, 57))


@pytest.mark.parametrize("kind", ["host", "disk", "both"])
def test_what_was_saved_comes_back_into_other_blocks(device, tmp_path, kind):
    made = device(*([host()] if kind != "disk" else []), *([disk(tmp_path)] if kind != "host" else []))
    held = made.save(made.request(TOKENS, SOURCE), 16)
    assert held == SOURCE[:16]
    assert made.kv.flush()
    before = made.content(SOURCE[:16])
    again = made.request(TOKENS, TARGET)
    assert made.load(again) == 64
    for mine, theirs in zip(before, made.content(TARGET[:16]), strict=True):
        assert torch.equal(mine, theirs)
    assert all(counts.corrupt == counts.errors == 0 for counts in made.kv.counts.values())
    assert made.kv.counts[made.tiers[0].name].hits == 16
    assert all(counts.misses == 16 for counts in made.kv.counts.values()), "a prompt's, computed"
    assert not made.kv.poll(wait=False).released
    assert made.save(again, 16) == [], "a tier has them"


def test_the_rest_behind_what_the_device_has(device):
    made = device(host())
    made.save(made.request(TOKENS, SOURCE), 16)
    assert made.load(made.request(TOKENS, TARGET), start=20) == 44
    assert torch.equal(made.cache.keys[1][SOURCE[5:16]], made.cache.keys[1][TARGET[5:16]])
    assert not torch.equal(made.cache.keys[1][SOURCE[4]], made.cache.keys[1][TARGET[4]])


def test_one_token_is_left_to_compute(device):
    made = device(host())
    made.save(made.request(TOKENS, SOURCE), 16)
    assert made.kv.lookup(made.request(TOKENS[:64], TARGET), 0) == 60
    assert made.kv.lookup(made.request(TOKENS[:65], TARGET), 64) == 0


def test_another_tenants_salt_finds_nothing(device):
    made = device(host())
    made.save(made.request(TOKENS, SOURCE, salt="a"), 16)
    assert made.kv.lookup(made.request(TOKENS, TARGET, salt="b"), 0) == 0
    assert made.kv.lookup(made.request(TOKENS, TARGET, salt="a"), 0) == 64


def test_tenants_share_no_file(device, tmp_path):
    """Of the same tokens: names on disk say whose a block is only to those who know the salt."""
    made = device(lambda size: DiskTier(tmp_path, 10**7, size, b"d" * 32))
    for salt in ("a", "b"):
        made.save(made.request(TOKENS, SOURCE, salt=salt), 16)
        assert made.kv.flush()
    names = {path.stem for path in tmp_path.rglob("*.kv")}
    theirs = [{each.hex() for each in made.request(TOKENS, SOURCE, salt=salt).block_hashes(4, 16)} for salt in "ab"]
    assert not theirs[0] & theirs[1]
    assert names == theirs[0] | theirs[1]


def test_up_to_a_block_that_is_not_sound(device):
    made = device(host())
    made.save(made.request(TOKENS, SOURCE), 16)
    key = BlockKey(owner_of(""), made.request(TOKENS, SOURCE).block_hashes(4, 16)[9])
    made.tiers[0].get(key).payload[5] ^= 1
    again = made.request(TOKENS, TARGET)
    assert made.load(again) == 36
    assert torch.equal(made.cache.values[2][SOURCE[:9]], made.cache.values[2][TARGET[:9]])
    assert made.kv.counts["host"].corrupt == 1
    assert made.kv.lookup(again, 0) == 36


def test_a_block_that_host_memory_dropped_is_on_disk_and_comes_up_again(device, tmp_path):
    made = device(host(4), disk(tmp_path))
    made.save(made.request(TOKENS, SOURCE), 16)
    assert made.kv.flush()
    assert made.kv.counts["host"].evictions == 12
    again = made.request(TOKENS, TARGET)
    assert made.load(again) == 64
    assert torch.equal(made.cache.keys[0][SOURCE[:16]], made.cache.keys[0][TARGET[:16]])
    keys = [BlockKey(owner_of(""), content) for content in again.block_hashes(4, 16)]
    assert sum(key in made.tiers[0] for key in keys) == 4
    assert made.load(made.request(TOKENS, TARGET)) == 64
    made.tiers[0].check()


def test_a_new_process_finds_what_the_old_one_wrote(device, tmp_path):
    old = device(disk(tmp_path))
    old.save(old.request(TOKENS, SOURCE), 16)
    old.kv.close()
    new = device(disk(tmp_path))
    new.cache.keys[0].zero_()
    assert new.load(new.request(TOKENS, TARGET)) == 64
    assert torch.equal(old.cache.keys[0][SOURCE[:16]], new.cache.keys[0][TARGET[:16]])


def test_in_fp8_it_is_near_and_another_kind_of_block(device):
    made = device(host(), compress="fp8")
    assert made.kv.identity != device(host()).kv.identity
    made.save(made.request(TOKENS, SOURCE), 16)
    before = made.content(SOURCE[:16])
    assert made.load(made.request(TOKENS, TARGET)) == 64
    for mine, theirs in zip(before, made.content(TARGET[:16]), strict=True):
        assert not torch.equal(mine, theirs)
        largest = mine.abs().amax(-1, keepdim=True)
        assert ((mine - theirs).abs() <= mine.abs() / 16 + largest / 448 / 512).all(), "half a step of three bits"
    assert made.kv.counts["host"].saved_bytes * 3 < 16 * LAYOUT.block_bytes


def test_what_is_faster_to_compute_is_not_loaded(device):
    made = device(host(), recompute_s=lambda start, tokens: tokens * 1e-12)
    made.save(made.request(TOKENS, SOURCE), 16)
    first = made.request(TOKENS, TARGET, "first")
    assert made.load(first) == 64, "to see how fast it is"
    second = made.request(TOKENS, TARGET, "second")
    for _ in range(5):
        assert made.kv.lookup(second, 0) == 0
    assert made.kv.counts["host"].declined == 16, "a request counts once, however often it is asked for"
    for number in range(100):
        made.kv.lookup(made.request(TOKENS, TARGET, str(number)), 0)
    assert made.load(made.request(TOKENS, TARGET, "third")) == 64, "now and then it is tried again"


class Hanging(HostTier):
    """Does not answer until it is let."""

    def __init__(self, size):
        super().__init__(100 * size, size)
        self.may = threading.Event()

    def get(self, key):
        assert self.may.wait(20)
        return super().get(key)


def test_a_tier_that_hangs_holds_up_no_request_and_writes_nothing_later(device, monkeypatch):
    monkeypatch.setattr(module, "LOAD_S", 0.1)
    made = device(Hanging)
    made.save(made.request(TOKENS, SOURCE), 16)
    before = made.content(TARGET)
    began = time.monotonic()
    assert made.load(made.request(TOKENS, TARGET)) == 0
    assert 0.1 <= time.monotonic() - began < 5
    made.tiers[0].may.set()
    assert made.kv.flush()
    for mine, theirs in zip(before, made.content(TARGET), strict=True):
        assert torch.equal(mine, theirs), "the blocks are somebody else's by now"
    assert made.load(made.request(TOKENS, TARGET)) == 64


def test_saves_that_cannot_be_made_give_their_blocks_back(device, monkeypatch):
    monkeypatch.setattr(module, "SAVE_S", 0.1)
    monkeypatch.setattr(module, "LOAD_S", 0.1)
    made = device(Hanging)
    made.save(made.request(TOKENS, SOURCE), 16)
    made.kv.load(made.request(TOKENS, TARGET), 0, 64)  # the thread is in there now
    other = made.request(TOKENS[::-1], SOURCE)
    assert made.save(other, 16) == SOURCE[:16]
    made.tiers[0].may.set()
    assert made.kv.flush()
    assert made.kv.lookup(made.request(TOKENS[::-1], TARGET), 0) == 0, "what may be overwritten is not saved any more"


def test_no_more_than_a_share_of_the_pool_is_held(device, monkeypatch):
    made = device(Hanging)
    made.save(made.request(TOKENS, SOURCE), 16)
    made.kv.load(made.request(TOKENS, TARGET), 0, 64)
    held = []
    for number in range(4):
        request = made.request([number, *TOKENS], SOURCE)
        request.num_registered = 16
        held += made.kv.computed(request, 0)
    assert len(held) == BLOCKS // 2
    assert made.kv.counts["host"].skipped == 24
    made.tiers[0].may.set()
    assert len(made.until("released", 40)) == 40


def test_a_failing_copy_ends_the_load_with_nothing(device, monkeypatch, caplog):
    made = device(host())
    made.save(made.request(TOKENS, SOURCE), 16)
    with monkeypatch.context() as patch:
        patch.setattr(BlockCopier, "scatter", lambda *_: 1 / 0)
        assert made.load(made.request(TOKENS, TARGET)) == 0
    assert "division" in caplog.text
    assert made.load(made.request(TOKENS, TARGET)) == 64


def test_a_disk_that_cannot_keep_up_is_not_waited_for(device, tmp_path, monkeypatch):
    may = threading.Event()
    put = DiskTier.put
    monkeypatch.setattr(DiskTier, "put", lambda self, record: may.wait(20) and put(self, record))
    made = device(disk(tmp_path))
    made.kv._worker._backlog._longest = 10
    made.save(made.request(TOKENS, SOURCE), 16)
    assert made.kv.counts["disk"].skipped == 6
    may.set()
    assert made.kv.flush()
    assert made.load(made.request(TOKENS, TARGET)) == 40


def test_the_threads_end_with_the_connector(tmp_path):
    def threads():
        return {thread for thread in threading.enumerate() if thread.name.startswith("miniserve-kv")}

    before = threads()
    made = Device([host(), disk(tmp_path)])
    started = threads() - before
    assert len(started) == 2
    del made.kv  # forgotten, not closed
    assert not any(thread.is_alive() for thread in started)
