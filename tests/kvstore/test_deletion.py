"""A tenant's KV is deleted: from the device, from memory, from disk; what is under way leaves nothing; others notice
nothing."""

import threading

import pytest
from typer.testing import CliRunner

from miniserve.cli import app
from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import MiniserveError
from miniserve.kvstore import backlog
from miniserve.kvstore.block_file import KEY_SUFFIX
from miniserve.kvstore.deletion import delete_owner
from miniserve.kvstore.disk import DiskTier
from miniserve.kvstore.encryption import MasterKey
from miniserve.kvstore.host import HostTier
from miniserve.kvstore.record import owner_of
from miniserve.llm import LLM
from miniserve.model.load import load_model
from miniserve.server.access import hash_key
from miniserve.server.keys_file import read_keys
from support.kv_records import DOMAIN, OWNER, SIZE, record

PROMPT, PARAMS = list(range(3, 40)), SamplingParams(max_tokens=8, ignore_eos=True)
OTHER = owner_of("other")
WAIT_S = 20


@pytest.fixture(scope="module")
def model(tiny_directory):
    return load_model(str(tiny_directory("qwen3")[0]), dtype="float32", device="cpu", backend="torch")


@pytest.fixture
def opened(model, tmp_path):
    key = tmp_path / "kv.key"
    key.write_text(bytes(range(32)).hex())
    key.chmod(0o600)

    def make(**options):
        sizes = {"max_model_len": 64, "block_size": 4, "kv_cache_memory": 2**20}
        tiers = {"kv_host_mib": 1, "kv_disk_dir": tmp_path / "kv", "kv_disk_key_file": key, "kv_load": "always"}
        return LLM(model, **{**sizes, **tiers, **options})

    return make


def ask(llm, salt):
    """A prompt's tokens, and how many of its own were not computed anew."""
    name = llm.add_request(PROMPT, PARAMS, cache_salt=salt)
    outputs = {}
    while llm.has_work:
        outputs |= {output.request_id: output for output in llm.step()}
    return outputs[name].token_ids, outputs[name].usage["cached_tokens"]


def of(folder, owner, pattern="*"):
    return [path for home in folder.glob(f"*/{owner.hex()}") for path in home.rglob(pattern)]


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_request_after_it_computes_everything_anew_and_others_do_not(opened, tmp_path, encrypted):
    with opened(**({} if encrypted else {"kv_disk_key_file": None})) as llm:
        truth, cached = ask(llm, "a")
        assert cached == 0
        assert ask(llm, "a") == (truth, 36)
        ask(llm, "b")
        assert llm.tiers.flush()
        assert len(of(tmp_path / "kv", owner_of("a"), "*.kv")) == 11
        done = llm.delete_kv("a").result(WAIT_S)
        assert done == {"device": 11, "host": 11, "disk": 11}
        assert not of(tmp_path / "kv", owner_of("a"))
        assert llm.engine.metrics.tiers["disk"].used_bytes == sum(
            path.stat().st_size for path in (tmp_path / "kv").rglob("*.kv")
        )
        assert ask(llm, "a") == (truth, 0)
        assert ask(llm, "a") == (truth, 36), "what is new is kept again"
        llm.delete_kv("a").result(WAIT_S)
        for forget in (False, True):
            if forget:
                llm.engine.scheduler.pool.clear_cache()
            assert ask(llm, "b") == (truth, 36), "on the device, and in the tiers"
        llm.engine.scheduler.check()
        assert llm.delete_kv("nobody").result(WAIT_S) == {"device": 0, "host": 0, "disk": 0}
    with opened(**({} if encrypted else {"kv_disk_key_file": None})) as llm:
        assert ask(llm, "a")[1] == 0, "nor does the disk give it to the next process"
        assert ask(llm, "b")[1] == 36


def test_a_request_that_runs_goes_on_and_leaves_nothing_behind(opened, tmp_path):
    with opened() as llm:
        truth, _ = ask(llm, "b")
        name, outputs = llm.add_request(PROMPT, PARAMS, cache_salt="a"), {}
        for _ in range(3):
            outputs |= {output.request_id: output for output in llm.step()}
        done = llm.delete_kv("a")
        while llm.has_work:
            outputs |= {output.request_id: output for output in llm.step()}
        assert outputs[name].token_ids == truth
        done.result(WAIT_S)
        assert llm.tiers.flush()
        assert not of(tmp_path / "kv", owner_of("a"))
        assert llm.engine.scheduler.forget("a") == 0
        llm.engine.scheduler.check()
        assert ask(llm, "a") == (truth, 0)


def test_without_tiers_the_device_forgets(opened):
    with opened(kv_host_mib=None, kv_disk_dir=None, kv_disk_key_file=None, kv_load="faster") as llm:
        ask(llm, "a")
        assert llm.delete_kv("a").result(0) == {"device": 11}
        assert ask(llm, "a")[1] == 0


def test_what_waits_to_be_written_is_not_written(opened, tmp_path, monkeypatch):
    """The disk hangs in the middle of the first block's write; the others of that tenant never get there."""
    began, go_on, put = threading.Event(), threading.Event(), DiskTier.put

    def slow(tier, what):
        began.set()
        assert go_on.wait(WAIT_S)
        put(tier, what)

    monkeypatch.setattr(DiskTier, "put", slow)
    with opened() as llm:
        ask(llm, "a")
        ask(llm, "b")
        assert began.wait(WAIT_S)
        done = llm.delete_kv("a")
        assert not done.done()
        assert ask(llm, "a")[1] == 0, "what is about to be deleted is not loaded"
        go_on.set()
        assert done.result(WAIT_S)["disk"] <= 1
        assert llm.tiers.flush()
        assert len(of(tmp_path / "kv", owner_of("b"), "*.kv")) == 11


def test_a_write_that_does_not_end_is_an_error_and_not_a_deletion(opened, tmp_path, monkeypatch):
    go_on, put = threading.Event(), DiskTier.put

    def slow(tier, what):
        assert go_on.wait(WAIT_S)
        put(tier, what)

    with monkeypatch.context() as patch, opened() as llm:
        patch.setattr(DiskTier, "put", slow)
        patch.setattr(backlog, "PATIENCE_S", 0.01)
        ask(llm, "a")
        with pytest.raises(TimeoutError, match=r"a block is being written since 0.01 s"):
            llm.delete_kv("a").result(WAIT_S)
        go_on.set()
        patch.setattr(backlog, "PATIENCE_S", 10.0)
        llm.delete_kv("a").result(WAIT_S)
        assert not of(tmp_path / "kv", owner_of("a"))


def test_a_tenants_files_of_every_model_go_with_their_keys(tmp_path):
    master = MasterKey(bytes(32))
    tiers = [DiskTier(tmp_path, 10**6, SIZE, domain, key) for domain in (DOMAIN, b"e" * 32) for key in (master, None)]
    for tier in tiers:
        for number in range(3):
            tier.put(record(number))
            tier.put(record(number, OTHER))
    assert tiers[0].delete(OWNER) == 12
    assert not of(tmp_path, OWNER)
    assert len(of(tmp_path, OTHER, "*.kv")) == 12
    for tier in tiers:
        assert tier.get(record(1).key) is None
        assert tier.counts.corrupt == 0
        assert tier.get(record(1, OTHER).key) is not None
        tier.put(record(1))
        assert tier.get(record(1).key) is not None
    assert len(of(tmp_path, OWNER, f"*{KEY_SUFFIX}")) == 2


def test_what_another_process_deleted_is_not_read_with_the_old_key(tmp_path):
    """A file that was kept, by a backup say, and put back, is noise."""
    ours, theirs = (DiskTier(tmp_path, 10**6, SIZE, DOMAIN, MasterKey(bytes(32))) for _ in range(2))
    ours.put(record(1))
    path = ours._directory.path(record(1).key)
    kept = path.read_bytes()
    assert theirs.delete(OWNER) == 1
    for new in (False, True):
        if new:
            ours.put(record(2))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(kept)
        assert ours.get(record(1).key) is None
        assert not path.exists()


def test_what_the_system_refuses_is_an_error_and_the_rest_is_deleted(tmp_path, monkeypatch):
    tier = DiskTier(tmp_path, 10**6, SIZE, DOMAIN)
    for number in range(3):
        tier.put(record(number))
    held, unlink = tier._directory.path(record(1).key), type(tmp_path).unlink

    def refuses(path, missing_ok=False):
        if path == held:
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "unlink", refuses)
        with pytest.raises(PermissionError, match=held.name):
            tier.delete(OWNER)
    assert of(tmp_path, OWNER, "*.kv") == [held]
    assert delete_owner(tmp_path, OWNER) == 1


def test_host_memory_is_overwritten(tmp_path):
    tier = HostTier(10 * SIZE, SIZE)
    for number in range(3):
        tier.put(record(number))
        tier.put(record(number, OTHER))
    slots = [tier._places[record(number).key][0] for number in range(3)]
    assert tier.delete(OWNER) == 3
    tier.check()
    assert not tier._slots[slots].any()
    assert (len(tier), tier.counts.used_bytes) == (3, 3 * SIZE)
    assert tier.get(record(1).key) is None
    assert tier.get(record(1, OTHER).key) is not None


def test_the_command_deletes_by_the_tenants_name(tmp_path):
    keys, kv = tmp_path / "keys.toml", tmp_path / "kv"
    keys.write_text("".join(f'[{name}]\nsha256 = "{hash_key(name * 20)}"\n' for name in ("ann", "bob")))
    owners = [owner_of(tenant.cache_salt) for tenant in read_keys(keys)]
    tier = DiskTier(kv, 10**6, SIZE, DOMAIN)
    for owner in owners:
        tier.put(record(1, owner))
    command = ["kv", "delete", "--kv-disk", str(kv), "--api-keys-file", str(keys), "--tenant"]
    done = CliRunner().invoke(app, [*command, "ann"])
    assert (done.exit_code, done.stdout) == (0, "1 blocks of ann deleted\n")
    assert not of(kv, owners[0])
    assert of(kv, owners[1], "*.kv")
    refused = CliRunner().invoke(app, [*command, "eve"]).exception
    assert isinstance(refused, MiniserveError)
    assert "has no tenant 'eve'" in str(refused)
