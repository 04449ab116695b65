"""Fixtures every test may use. Tests run offline: only the default model is fetched, once, into the user's cache."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before any Hugging Face library is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line does: other work on the machine costs less

import pytest

from support.chromium import chromium


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whichever of the site's tests comes first waits until the book is built, which executes every chapter."""
    for item in items:
        if "site" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(1200))


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The default model's file, which `make test` has fetched. Elsewhere the test is skipped, saying how to get it."""
    from miniserve.errors import ModelNotFoundError
    from miniserve.model.sources.resolve import resolve

    try:
        return resolve("smollm2", progress=False).path
    except ModelNotFoundError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"run `miniserve models pull smollm2` first: {error}")


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory):
    """`tiny_directory(family)` -> (directory in Hugging Face layout, the transformers model saved there)."""
    from support import tiny_models  # transformers, which Dynamo's environment has not

    made = {}

    def get(family: str):
        if family not in made:
            directory = tmp_path_factory.mktemp(family)
            made[family] = directory, tiny_models.save(family, directory)
        return made[family]

    return get


@pytest.fixture(scope="session")
def browser():
    """A Chromium driven by playwright."""
    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def compiled() -> None:
    """The C++ kernels. Without a compiler their tests are skipped, saying why; on CI that is a failure."""
    from miniserve.kernels.cpu.binding import unavailable

    if reason := unavailable():
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
