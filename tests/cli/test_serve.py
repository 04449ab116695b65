"""`miniserve serve`, as typed: what is refused before anything is loaded."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from miniserve.cli import app
from miniserve.cli.version_options import VersionOptions
from miniserve.errors import InvalidRequestError, ModelNotFoundError, RefusedModelError
from miniserve.registry.keys import make_keys

TIMEOUT_S = 120


def test_several_engines_are_told_how_much_memory_each_may_take():
    result = CliRunner().invoke(app, ["serve", "smollm2", "--prefill", "2"])
    assert isinstance(result.exception, InvalidRequestError)
    with pytest.raises(InvalidRequestError, match="3 engines share the memory: --kv-cache-mib must say"):
        raise result.exception


def test_a_router_that_is_not_there_is_named():
    result = CliRunner().invoke(app, ["serve", "x", "--decode", "2", "--kv-cache-mib", "9", "--router", "best"])
    assert isinstance(result.exception, InvalidRequestError)
    assert "router 'best' is not one of round-robin" in str(result.exception)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["x", "--models", "registry:shop"], "there is MODEL 'x' and --models 'registry:shop': it must be one of them"),
        (["--models", "registry:shop"], "versions share the memory: --kv-cache-mib must say"),
        (["--models", "shop", "--kv-cache-mib", "9"], "models 'shop' is not registry:NAME"),
        (["--models", "registry:shop@1", "--kv-cache-mib", "9"], "models 'registry:shop@1' is not registry:NAME"),
        (["x", "--warm", "2"], "--warm: for versions of a model, which --models registry:NAME serves"),
        (["x", "--smoke", "s", "--warm", "2"], "--warm and --smoke: for versions"),
    ],
)
def test_versions_are_asked_for_alone(options, message):
    result = CliRunner().invoke(app, ["serve", *options])
    assert isinstance(result.exception, InvalidRequestError)
    assert message in str(result.exception)


def test_a_model_that_is_not_registered_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MINISERVE_REGISTRY", str(tmp_path))
    with pytest.raises(ModelNotFoundError, match="no model called 'shop' in the registry"):
        VersionOptions(models="registry:shop").lineup("x", lambda _: None, served_as=None)


def test_an_unsigned_model_is_not_served(tmp_path):
    """The server and the engine's process, as typed: some 6 s of CPU."""
    make_keys(tmp_path / "key", tmp_path / "key.pub")
    command = [sys.executable, "-m", "miniserve", "serve", "tiny-moe", "--port", "0", "--backend", "torch"]
    done = subprocess.run(
        [*command, "--require-signed", str(tmp_path / "key.pub")],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == RefusedModelError.exit_code
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()  # said once, for people
    assert "not signed: there is no model.sig" in line
