"""`miniserve serve`, as typed: what is refused before anything is loaded."""

import pytest
from typer.testing import CliRunner

from miniserve.cli import app
from miniserve.errors import InvalidRequestError


def test_several_engines_are_told_how_much_memory_each_may_take():
    result = CliRunner().invoke(app, ["serve", "smollm2", "--prefill", "2"])
    assert isinstance(result.exception, InvalidRequestError)
    with pytest.raises(InvalidRequestError, match="3 engines share the memory: --kv-cache-mib must say"):
        raise result.exception


def test_a_router_that_is_not_there_is_named():
    result = CliRunner().invoke(app, ["serve", "x", "--decode", "2", "--kv-cache-mib", "9", "--router", "best"])
    assert isinstance(result.exception, InvalidRequestError)
    assert "router 'best' is not one of round-robin" in str(result.exception)
