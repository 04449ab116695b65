"""The encrypted disk tier: it gives what was written under the same key, or nothing; and no key is easy to lose.

A second process costs two seconds of CPU.
"""

import base64
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import InvalidRequestError, MiniserveError
from miniserve.kvstore.block_file import HEADER_BYTES, file_bytes, read_block, write_block
from miniserve.kvstore.disk import DiskTier
from miniserve.kvstore.encryption import HOW_TO_MAKE_ONE, KEY_FILE, Cipher, MasterKey
from miniserve.kvstore.options import TierOptions
from miniserve.kvstore.record import checksum_of, owner_of
from miniserve.llm import LLM
from miniserve.model.load import load_model
from support.kv_records import DOMAIN, OWNER, SIZE, record

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
FILE = file_bytes(SIZE, sealed=True)


def tier_in(folder, key=KEY, blocks=50):
    return DiskTier(folder, blocks * FILE, SIZE, DOMAIN, MasterKey(key) if key else None)


def files(folder):
    return sorted(folder.rglob("*.kv"))


def right(tier, number, owner=OWNER):
    got = tier.get(record(number, owner).key)
    if got is not None:
        assert np.array_equal(got.payload, record(number, owner).payload)
        assert got.checksum == record(number, owner).checksum
    return got is not None


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    path = tmp_path_factory.mktemp("sealed") / "block"
    write_block(path, DOMAIN, record(1), Cipher(KEY))
    return path, path.read_bytes()


@given(st.lists(st.integers(0, 8 * FILE - 1), min_size=1, max_size=4, unique=True))
@settings(deadline=None, derandomize=True, max_examples=100)
def test_any_flipped_bit_is_refused(sealed, bits):
    path, data = sealed
    flipped = bytearray(data)
    for bit in bits:
        flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    assert isinstance(read_block(path, DOMAIN, record(1).key, SIZE, Cipher(KEY)), str)


@given(st.binary(max_size=2 * FILE), st.integers(0, FILE))
@settings(deadline=None, derandomize=True, max_examples=100)
def test_any_other_content_is_refused(sealed, content, kept):
    path, data = sealed
    path.write_bytes(changed := data[:kept] + content)
    got = read_block(path, DOMAIN, record(1).key, SIZE, Cipher(KEY))
    assert isinstance(got, str) == (changed != data)


def test_a_header_that_says_what_is_wanted_does_not_make_it_so(tmp_path):
    """Somebody who may write there gives one block out for another; without a key nothing would be noticed."""
    path, forged = tmp_path / "block", record(2)._replace(key=record(1).key)
    forged = forged._replace(checksum=checksum_of(forged.key, forged.payload))
    write_block(path, DOMAIN, forged)
    assert np.array_equal(read_block(path, DOMAIN, record(1).key, SIZE).payload, record(2).payload)
    write_block(path, DOMAIN, record(2), Cipher(KEY))
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES - 32 : HEADER_BYTES] = record(1).key.content
    path.write_bytes(data)
    refused = read_block(path, DOMAIN, record(1).key, SIZE, Cipher(KEY))
    assert refused == "it was changed, or encrypted with another key"


def test_the_form_is_that_which_is_written_down(sealed):
    path, data = sealed
    nonce, body = data[HEADER_BYTES : HEADER_BYTES + 12], data[HEADER_BYTES + 12 :]
    plain = AESGCM(KEY).decrypt(nonce, body, data[:HEADER_BYTES])
    assert plain == record(1).checksum.to_bytes(8, "little") + record(1).payload.tobytes()
    assert len(data) == FILE
    assert record(1).payload.tobytes()[:8] not in data
    write_block(path, DOMAIN, record(1), Cipher(KEY))
    assert path.read_bytes()[HEADER_BYTES:][:12] != nonce, "a nonce is never used twice"


def test_neither_key_nor_plain_takes_the_others_files(tmp_path):
    """In one directory: each finds its own, nobody finds or deletes another's, and the limit is for all."""
    kinds = {"key": KEY, "other": OTHER, "plain": None}
    for at, key in enumerate(kinds.values()):
        tier_in(tmp_path, key).put(record(at))
    for at, key in enumerate(kinds.values()):
        tier = tier_in(tmp_path, key)
        assert [right(tier, number) for number in range(3)] == [number == at for number in range(3)]
        assert tier.counts.corrupt == 0, "not ours is not corrupt"
        assert tier.counts.used_bytes == sum(path.stat().st_size for path in files(tmp_path))
    assert len(files(tmp_path)) == 3


def test_a_file_put_where_it_does_not_belong_is_a_miss(tmp_path):
    """Plain where encrypted is wanted and the reverse, and under another key."""
    for at, (mine, theirs) in enumerate(((KEY, None), (None, KEY), (KEY, OTHER))):
        one, two = tier_in(tmp_path / f"{at} mine", mine), tier_in(tmp_path / f"{at} theirs", theirs)
        one.put(record(1))
        two.put(record(1))
        path, strange = one._directory.path(record(1).key), two._directory.path(record(1).key)
        path.write_bytes(strange.read_bytes())
        assert not right(one, 1)
        assert (one.counts.corrupt, path.exists()) == (1, False)
        one.put(record(1))
        assert right(one, 1)


def test_tenants_have_keys_of_their_own(tmp_path):
    tier, others = tier_in(tmp_path), owner_of("other")
    tier.put(record(1))
    tier.put(record(1, others))
    assert len(keys := list(tmp_path.rglob(KEY_FILE))) == 2
    assert all(path.stat().st_mode & 0o077 == 0 and path.stat().st_size == 60 for path in keys)
    first, second = (tier._directory.path(record(1, owner).key) for owner in (OWNER, others))
    data = first.read_bytes()
    second.write_bytes(data[: HEADER_BYTES - 48] + others + data[HEADER_BYTES - 32 :])
    assert not right(tier, 1, others)
    assert right(tier, 1)


@pytest.mark.parametrize("damage", ["gone", "short", "changed", "another tenant's"])
def test_a_tenants_key_that_is_gone_or_garbled_costs_its_blocks_and_nothing_else(tmp_path, damage):
    tier, others = tier_in(tmp_path), owner_of("other")
    for owner in (OWNER, others):
        tier.put(record(1, owner))
    mine, theirs = (tier._directory.home / owner.hex() / KEY_FILE for owner in (OWNER, others))
    data = mine.read_bytes()
    mine.unlink()  # what is replaced, is by a new file
    if damage != "gone":
        mine.write_bytes(
            {"short": data[:9], "changed": data[:-1] + bytes([data[-1] ^ 1])}.get(damage, theirs.read_bytes())
        )
    assert not right(tier, 1)
    assert tier.counts.corrupt == 1
    assert right(tier, 1, others)
    tier.put(record(1))
    assert right(tier, 1)
    assert right(tier_in(tmp_path), 1), "under a new key, which every process finds"


SECOND = """
import sys; from pathlib import Path
from miniserve.kvstore.disk import DiskTier
from miniserve.kvstore.encryption import MasterKey
from support.kv_records import DOMAIN, SIZE, record
tier = DiskTier(Path(sys.argv[1]), 10**6, SIZE, DOMAIN, MasterKey(bytes(range(32))))
for number in range(40):
    tier.put(record(number))
print(sum(tier.get(record(number).key) is not None for number in range(60)), tier.counts.corrupt, tier.counts.errors)
"""


def test_two_processes_that_begin_at_once_agree_on_a_key(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", SECOND, str(tmp_path)]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    ours = tier_in(tmp_path, blocks=100)
    while any(process.poll() is None for process in both):
        for number in range(20, 60):
            ours.put(record(number))
            right(ours, number)
    for process in both:
        found, corrupt, errors = map(int, process.communicate()[0].split())
        assert (found >= 40, corrupt, errors) == (True, 0, 0)
    assert all(ours.look(record(number).key) and right(ours, number) for number in range(60))
    assert len(list(tmp_path.rglob(KEY_FILE))) == 1
    assert (ours.counts.corrupt, ours.counts.errors) == (0, 0)


def key_file(folder, text, mode=0o600):
    path = folder / "kv.key"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_key_is_read_in_either_form(tmp_path):
    expected = MasterKey(KEY).derived(b"x")
    for text in (KEY.hex(), KEY.hex().upper() + "\n", base64.b64encode(KEY).decode() + "\n"):
        assert MasterKey.read(key_file(tmp_path, text)).derived(b"x") == expected


def test_the_command_that_makes_a_key_makes_one(tmp_path):
    path = tmp_path / "kv.key"
    subprocess.run(["/bin/sh", "-c", HOW_TO_MAKE_ONE.replace("FILE", str(path))], check=True)
    assert path.stat().st_mode & 0o077 == 0
    made = MasterKey.read(path)
    assert str(TierOptions(disk_dir=Path("/x"), disk_key=made)) == "10240 MiB in /x, encrypted"
    assert path.read_text().strip() not in repr(TierOptions(disk_key=made))


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        (KEY.hex()[:-2], 0o600, "must have 32 random bytes in base64 or hexadecimal"),
        (base64.b64encode(KEY[:16]).decode(), 0o600, "must have 32 random bytes"),
        ("a passphrase", 0o600, "must have 32 random bytes"),
        ("z" * 64, 0o600, "must have 32 random bytes"),
        ("\xe4", 0o600, "cannot be read: it is not text"),
        (KEY.hex(), 0o644, "anybody on this machine may read it: chmod o-r"),
    ],
)
def test_what_is_no_key_is_refused(tmp_path, text, mode, message):
    with pytest.raises(InvalidRequestError, match=message) as error:
        TierOptions.of(kv_disk_dir=tmp_path, kv_disk_key_file=key_file(tmp_path, text, mode))
    assert text not in str(error.value), "what may be half a key is not for logs"


def test_a_key_without_a_file_or_a_use_is_refused(tmp_path):
    with pytest.raises(InvalidRequestError, match=r"key file .*none cannot be read: No such file"):
        TierOptions.of(kv_disk_dir=tmp_path, kv_disk_key_file=tmp_path / "none")
    with pytest.raises(InvalidRequestError, match="kv_disk_key_file is x, but there is no kv_disk_dir"):
        TierOptions.of(kv_host_mib=1, kv_disk_key_file="x")


def test_without_the_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    path = key_file(tmp_path, KEY.hex())
    monkeypatch.delitem(sys.modules, "miniserve.kvstore.encryption")
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(MiniserveError, match=r"pip install 'miniserve\[encryption\]'"):
        TierOptions.of(kv_disk_dir=tmp_path, kv_disk_key_file=path)
    assert TierOptions.of(kv_disk_dir=tmp_path) is not None


def test_an_engine_gives_the_same_tokens_from_the_encrypted_tier(tiny_directory, tmp_path):
    model = load_model(str(tiny_directory("qwen3")[0]), dtype="float32", device="cpu", backend="torch")
    prompt, params = list(range(3, 40)), SamplingParams(max_tokens=8, ignore_eos=True)
    sizes = {"max_model_len": 64, "block_size": 4, "kv_cache_memory": 2**20}
    with LLM(model, **sizes) as llm:
        truth = llm.generate([prompt], params)[0].token_ids
    mine, plain = key_file(tmp_path, KEY.hex()), {"kv_disk_dir": tmp_path / "kv", "kv_load": "always"}
    encrypted = plain | {"kv_disk_key_file": mine}
    loaded = []
    for how in (encrypted, plain, encrypted, plain):
        with LLM(model, **sizes, **how) as llm:
            assert llm.generate([prompt], params)[0].token_ids == truth
            assert llm.engine.metrics.tiers["disk"].corrupt == 0
            loaded.append(llm.engine.metrics.num_loaded_tokens)
    assert loaded == [0, 0, 36, 36]
    names = [{path.stem for path in files(folder)} for folder in (tmp_path / "kv").iterdir() if folder.is_dir()]
    assert len(names) == 2
    assert not names[0] & names[1], "without the key nobody can tell from a name what the prompt was"
