"""The stable version: none at first, then what was promoted last, whatever is registered later."""

import pytest

from miniserve.errors import ModelNotFoundError
from miniserve.registry.stable import set_stable, stable_of
from miniserve.registry.store import Registry
from miniserve.registry.version import Provenance


@pytest.fixture
def registry(tmp_path):
    made = Registry(tmp_path / "registry")
    source = tmp_path / "model.gguf"
    source.write_bytes(b"GGUF")
    for _ in range(2):
        made.register(
            "shop", source, card="Of a test.", provenance=Provenance(source="here", by="a test", licence="Apache-2.0")
        )
    return made


def test_it_is_what_was_promoted_last(registry):
    assert stable_of(registry, "shop") is None
    set_stable(registry, "shop", "1")
    assert stable_of(registry, "shop").version == "1"
    set_stable(registry, "shop", "2")
    assert stable_of(registry, "shop").version == "2"
    assert [each.version for each in registry.versions("shop")] == ["1", "2"]


def test_it_must_be_there(registry):
    with pytest.raises(ModelNotFoundError, match="no version 7 of 'shop'"):
        set_stable(registry, "shop", "7")
    assert stable_of(registry, "shop") is None
    with pytest.raises(ModelNotFoundError, match="no model called 'other'"):
        stable_of(registry, "other")
