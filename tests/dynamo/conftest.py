"""What the tests of real processes share: deployments, which take as long to start as many tests to run; and a record.

With `--record FILE` what was tested, how it ended, how long it took and what it measured is written there, in the form
of `results/`. `make test-fleet` does that.
"""

import os
from importlib.metadata import version
from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption("--record", type=Path, help="write what was tested and measured to this file")


def pytest_configure(config):
    if path := config.getoption("--record", None):
        config.pluginmanager.register(Record(path))


class Record:
    """Writes the file when all is done."""

    def __init__(self, path):
        self.path, self.tests, self.load = path, [], os.getloadavg()[0]

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            self.tests.append(
                {
                    "test": report.nodeid,
                    "outcome": report.outcome,
                    "seconds": round(report.duration, 2),
                    **dict(report.user_properties),
                }
            )

    def pytest_sessionfinish(self):
        from miniserve.bench.record import write_record

        data = {
            "ai_dynamo": version("ai-dynamo"),
            "nixl": version("nixl"),
            "load_average": [self.load, os.getloadavg()[0]],
            "tests": self.tests,
        }
        write_record(self.path, data, "make test-fleet", "cpu")


@pytest.fixture(scope="session")
def expected(smollm2_gguf):
    """`expected(prompt, tokens)`: what the engine says without Dynamo."""
    from miniserve import LLM, SamplingParams

    with LLM("smollm2", kv_cache_memory=200 * 2**20) as llm:
        yield lambda prompt, tokens: llm.generate([prompt], SamplingParams(max_tokens=tokens, ignore_eos=True))[0].text


@pytest.fixture(scope="session")
def whole(tmp_path_factory, smollm2_gguf):
    """Two workers for whole requests."""
    from support.deployment import Deployment

    with Deployment(tmp_path_factory.mktemp("whole"), ["agg", "agg"]) as deployment:
        yield deployment


@pytest.fixture(scope="session")
def apart(tmp_path_factory, smollm2_gguf):
    """Two workers for prompts, and two that go on behind them."""
    from support.deployment import Deployment

    with Deployment(tmp_path_factory.mktemp("apart"), ["prefill", "prefill", "decode", "decode"]) as deployment:
        yield deployment
