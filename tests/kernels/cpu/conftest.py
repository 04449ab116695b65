"""The C++ kernels' tests need a compiler. Elsewhere they are skipped, saying why; on CI that is a failure."""

import os

import pytest


@pytest.fixture(scope="session")
def compiled():
    from miniserve.kernels.cpu.binding import unavailable

    if reason := unavailable():
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
