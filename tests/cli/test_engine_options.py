"""The table of an engine's options: a command has them all, and the engine is opened as they say."""

from dataclasses import fields

import pytest
import typer
from typer.testing import CliRunner

from miniserve.cli import app, engine_options
from miniserve.cli.engine_options import EngineOptions
from miniserve.cli.loading import ModelOptions
from miniserve.cli.option_tables import with_tables
from miniserve.errors import InvalidRequestError


@pytest.fixture
def run():
    """`run(arguments)`: the result, and what a command with one option of its own was given."""
    given = []

    @with_tables(engine=EngineOptions)
    def command(own: str = "mine", *, engine: EngineOptions) -> None:
        """Of a test."""
        given.append((own, engine))

    app = typer.Typer()
    app.command()(command)

    def run(*arguments):
        return CliRunner().invoke(app, arguments), given

    return run


def test_without_options_the_table_is_as_it_stands(run):
    result, given = run()
    assert result.exit_code == 0, result.output
    assert given == [("mine", EngineOptions())]


def test_options_of_both_kinds_arrive(run):
    result, given = run(
        "--own", "x", "--kv-cache-mib", "7", "--no-prefix-caching", "--kv-disk", "/tmp/kv", "--dtype", "float16"
    )
    assert result.exit_code == 0, result.output
    ((own, engine),) = given
    assert (own, engine.kv_cache_mib, engine.prefix_caching, str(engine.kv_disk), engine.dtype) == (
        "x", 7, False, "/tmp/kv", "float16",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "counts"), [([], None), (["--count-experts"], True), (["--no-count-experts"], False)]
)
def test_experts_are_counted_as_the_engine_likes_unless_it_is_said(run, monkeypatch, arguments, counts):
    called = {}
    monkeypatch.setattr(engine_options, "open_llm", lambda model, how, **options: called.update(options))
    result, given = run(*arguments)
    assert result.exit_code == 0, result.output
    given[0][1].opener("m", moves=None)()
    assert called["count_experts"] is counts


def test_the_command_keeps_its_help_and_the_limits_hold(run):
    result, _ = run("--help")
    assert "Of a test." in result.output
    result, given = run("--kv-cache-mib", "0")
    assert result.exit_code == 2
    assert not given


def test_an_engine_is_opened_as_the_table_says(monkeypatch):
    called = {}
    monkeypatch.setattr(
        engine_options, "open_llm", lambda model, how, **options: called.update(model=model, how=how, **options)
    )
    table = {
        "kv_cache_mib": 3,
        "threads": 2,
        "max_num_seqs": 5,
        "speculation": "ngram",
        "kv_host_mib": 9,
        "device": "cpu",
    }
    EngineOptions(**table).opener("m", moves="nixl")()
    how = called["how"]
    assert (how.dtype, how.device, how.backend, how.quantization, how.threads) == ("auto", "cpu", "auto", "auto", 2)
    assert (called["model"], called["moves"], called["kv_cache_memory"]) == ("m", "nixl", 3 * 2**20)
    assert (called["max_num_seqs"], called["speculation"], called["kv_host_mib"]) == (5, "ngram", 9)
    names = {"kv_cache_mib": "kv_cache_memory", "kv_disk": "kv_disk_dir", "prefix_caching": "enable_prefix_caching"}
    told = called.keys() | ModelOptions.__annotations__.keys() | {"silence_seconds"}
    assert {names.get(field.name, field.name) for field in fields(EngineOptions)} <= told, "an option that nobody reads"


@pytest.mark.parametrize("command", [["bench", "throughput"], ["chat"], ["generate", "Hello."]])
def test_every_command_with_an_engine_can_take_it_apart(command, monkeypatch):
    told = {}

    def open_llm(model, how, **options):
        told.update(options)
        raise InvalidRequestError("seen")

    monkeypatch.setattr(engine_options, "open_llm", open_llm)
    result = CliRunner().invoke(app, [*command, "--model", "tiny-moe", "--afd", "1x2"])
    assert "seen" in str(result.exception)
    assert told["afd"] == "1x2"
