"""A deployment on one machine, without Dynamo: what its processes are told, and how they are ended."""

import socket
import sys
import time
from importlib.metadata import PackageNotFoundError

import pytest

from miniserve.dynamo import local_deployment
from miniserve.dynamo.local_deployment import LocalDeployment, environment, free_port
from miniserve.errors import MiniserveError


@pytest.fixture
def installed(monkeypatch):
    """`installed(version)`: as if Dynamo's runtime were."""
    return lambda version: monkeypatch.setattr(local_deployment, "version", lambda _: version)


@pytest.mark.parametrize(("version", "host"), [("1.4.2", "lo"), ("1.6.1", "127.0.0.1"), ("1.10.0", "127.0.0.1")])
def test_processes_stay_on_this_machine(tmp_path, installed, version, host):
    installed(version)
    told = environment(tmp_path)
    assert told["DYN_TCP_RESPONSE_STREAM_HOST"] == host
    assert {told[f"DYN_{name}_HOST"] for name in ("TCP_RPC", "EVENT_PLANE", "SYSTEM")} == {"127.0.0.1"}
    assert told["DYN_FILE_KV"].startswith(str(tmp_path))


def test_without_dynamo_it_says_how_to_install_it(tmp_path, monkeypatch):
    def none(_):
        raise PackageNotFoundError

    monkeypatch.setattr(local_deployment, "version", none)
    with pytest.raises(MiniserveError, match="pip install"):
        environment(tmp_path)


def test_a_free_port_can_be_had_and_fits_what_dynamo_reads():
    port = free_port()
    assert port < 2**15
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))


def test_its_processes_end_with_it_and_who_ends_sooner_is_told(tmp_path, installed, monkeypatch):
    """With another program in Python's place: it says what it was given, and ends if it is of one kind."""
    installed("1.6.1")
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\nimport os, sys, time\nprint(os.environ.get('DYN_SYSTEM_PORT'), *sys.argv[1:], "
                       "flush=True)\ntime.sleep(0 if 'decode' in sys.argv else 60)\n")  # fmt: skip
    program.chmod(0o755)
    monkeypatch.setattr(local_deployment.sys, "executable", str(program))
    with LocalDeployment(tmp_path / "deployment", "m", ["--threads", "1"]) as deployment:
        frontend = deployment.start_frontend(8000, "kv")
        prefill, decode = deployment.start_worker("prefill"), deployment.start_worker("decode")
        assert len({frontend, prefill, decode}) == 3
        processes = dict(deployment.processes)
        processes[decode].wait(30)
        assert deployment.dead() == [decode]
        assert deployment.dead() == []
        until = time.monotonic() + 30
        while not deployment.log(prefill).read_text() and time.monotonic() < until:
            time.sleep(0.01)
        port, *arguments = deployment.log(prefill).read_text().split()
        assert deployment.metrics_url(prefill) == f"http://127.0.0.1:{port}/metrics"
        assert arguments == [
            "-m",
            "miniserve.dynamo",
            "--model",
            "m",
            "--disaggregation-mode",
            "prefill",
            "--threads",
            "1",
        ]
    assert all(process.poll() is not None for process in processes.values())


def test_as_many_as_are_wanted(tmp_path, installed, monkeypatch):
    """The newest go first; who goes is not among those that are followed by another."""
    installed("1.6.1")
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    program.chmod(0o755)
    monkeypatch.setattr(local_deployment.sys, "executable", str(program))
    with LocalDeployment(tmp_path / "deployment", "m") as deployment:
        deployment.start_worker("prefill")
        deployment.scale("prefill", 3)
        deployment.scale("decode", 1)
        assert list(deployment.processes) == ["prefill-1", "prefill-2", "prefill-3", "decode-4"]
        going = [deployment.processes[name] for name in ("prefill-2", "prefill-3")]
        deployment.scale("prefill", 1)
        assert list(deployment.processes) == ["prefill-1", "decode-4"]
        for process in going:
            process.wait(30)
        assert deployment.is_settled
        assert deployment.dead() == []
        deployment.scale("prefill", 0)
        last = deployment._leaving[-1]
    assert last.poll() is not None
