"""Keys, tenants and their limits, by a clock of our own."""

import pytest

from miniserve.errors import CorruptFileError, InvalidRequestError, MiniserveError
from miniserve.server.access import Access, Tenant, hash_key, new_key, tenant_of
from miniserve.server.errors import APIError
from miniserve.server.keys_file import read_keys

ALICE, BOB = new_key(), new_key()


def enter(access, key):
    return access.enter(access.find(f"Bearer {key}"))


def test_only_known_keys_enter():
    access = Access([tenant_of("alice", ALICE), tenant_of("bob", BOB)])
    alice, bob = (access.find(f"Bearer {key}") for key in (ALICE, BOB))
    assert (alice.name, bob.name) == ("alice", "bob")
    assert len({alice.cache_salt, bob.cache_salt, ""}) == 3
    assert ALICE not in repr(alice)
    for header in (None, "", ALICE, f"Basic {ALICE}", "Bearer ", f"Bearer {ALICE[:-1]}", f"Bearer {hash_key(ALICE)}"):
        with pytest.raises(APIError) as caught:
            access.find(header)
        assert caught.value.status == 401
    assert Access().find(None).cache_salt == ""


def test_who_may_see_everybody_s_requests():
    access = Access([tenant_of("alice", ALICE), Tenant("bob", hash_key(BOB))])
    assert Access().lets_watch(None), "where everybody may ask, everybody may watch"
    assert [access.lets_watch(header) for header in (None, f"Bearer {ALICE}", f"Bearer {BOB}")] == [False, True, False]
    with pytest.raises(APIError):
        access.lets_watch("Bearer of-no-key-that-is-known")


def test_concurrency_is_counted_per_key_and_given_back():
    access = Access([Tenant("alice", hash_key(ALICE), max_concurrent=1), tenant_of("bob", BOB)])
    with enter(access, ALICE):
        with pytest.raises(APIError) as caught, enter(access, ALICE):
            pass
        assert caught.value.status == 429
        with enter(access, BOB):
            pass
    with pytest.raises(KeyError), enter(access, ALICE):
        raise KeyError
    with enter(access, ALICE):
        pass


def test_rate_is_a_bucket_that_refills():
    now = 1000.0
    access = Access([Tenant("alice", hash_key(ALICE), requests_per_minute=3)], clock=lambda: now)

    def allowed():
        try:
            with enter(access, ALICE):
                return 0
        except APIError as error:
            return int(error.headers["retry-after"])

    assert [allowed() for _ in range(4)] == [0, 0, 0, 20]
    now += 19
    assert allowed() == 1
    now += 1
    assert [allowed(), allowed()] == [0, 20]
    now += 3600
    assert [allowed() for _ in range(4)] == [0, 0, 0, 20]


def test_files_of_keys(tmp_path):
    path = tmp_path / "keys.toml"
    path.write_text(f'[alice]\nsha256 = "{hash_key(ALICE)}"\nmax_concurrent = 2\n[bob]\nsha256 = "{hash_key(BOB)}"\n')
    alice, bob = read_keys(path)
    assert (alice.name, alice.max_concurrent, bob.requests_per_minute) == ("alice", 2, None)
    for text, says in [
        ("", "no keys"), ("[alice", "keys.toml"), ("alice = 3", "[alice] is no table"),
        ('[alice]\nsha256 = "abc"', "64 hexadecimal"), (f'[a]\nsha256 = "{"0" * 64}"\ncolour = 1', "unknown key 'colour'"),
        (f'[a]\nsha256 = "{"0" * 64}"\nmax_concurrent = 0', "max_concurrent is 0"),
        (f'[a]\nsha256 = "{"0" * 64}"\n[b]\nsha256 = "{"0" * 64}"', "[a] and [b] have one key"),
    ]:  # fmt: skip
        path.write_text(text)
        with pytest.raises(MiniserveError, match=r"keys\.toml") as caught:
            read_keys(path)
        assert says in str(caught.value)
    with pytest.raises(CorruptFileError, match=r"none\.toml: No such file"):
        read_keys(tmp_path / "none.toml")
    with pytest.raises(InvalidRequestError, match="at least 20"):
        tenant_of("weak", "password")


def test_keys_are_replaced_and_what_is_used_of_limits_is_not():
    access = Access([Tenant("alice", hash_key(ALICE), max_concurrent=2), tenant_of("bob", BOB)])
    bob = access.find(f"Bearer {BOB}")
    with enter(access, ALICE), enter(access, BOB):
        access.replace([Tenant("alicia", hash_key(ALICE), max_concurrent=1)])
        for key, status in ((ALICE, 429), (BOB, 401)):
            with pytest.raises(APIError) as caught, enter(access, key):
                pass
            assert caught.value.status == status
        assert bob.num_running == 1  # what has entered goes on
    alice = access.find(f"Bearer {ALICE}")
    with enter(access, ALICE):
        assert (alice.name, alice.num_running) == ("alicia", 1)
    with pytest.raises(InvalidRequestError, match="no key is left"):
        access.replace([])
    with enter(access, ALICE):
        pass


def test_a_tenant_is_found_by_its_name():
    access = Access([tenant_of("alice", ALICE), tenant_of("bob", BOB)])
    assert access.named("bob") is access.find(f"Bearer {BOB}")
    assert Access().named("everybody").cache_salt == ""
    for name in ("eve", "everybody"):
        with pytest.raises(APIError, match=f"there is no tenant '{name}'") as caught:
            access.named(name)
        assert caught.value.status == 404
