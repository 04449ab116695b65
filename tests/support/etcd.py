"""An etcd of a test's own."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from miniserve.dynamo.local_deployment import free_port


@contextmanager
def etcd(directory: Path) -> Iterator[dict[str, str]]:
    """Run one; the environment in which Dynamo's runtime finds it. Skips the test where etcd is not installed."""
    if not shutil.which("etcd"):
        pytest.skip("etcd is not installed")
    address, peers = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    command = [
        "etcd", "--data-dir", str(directory / "etcd"), "--listen-client-urls", address,
        "--advertise-client-urls", address, "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers,
        "--initial-cluster", f"default={peers}",
    ]  # fmt: skip
    with (directory / "etcd.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield {**os.environ, "ETCD_ENDPOINTS": address}
        finally:
            process.terminate()
