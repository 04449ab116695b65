"""Fetching an alias with the real pip from a small package index on loopback: every way it can go wrong, and right."""

import contextlib
import dataclasses
import hashlib
import http.server
import io
import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import threading
import zipfile

import pytest

from miniserve.cache_dir import cache_dir
from miniserve.errors import ChecksumError, DownloadError, ModelNotFoundError
from miniserve.model.sources.aliases import Alias, load_aliases
from miniserve.model.sources.download import fetch
from miniserve.model.sources.files import ModelFiles
from miniserve.model.sources.verify import verify

TIMEOUT_S = 30
EMPTY_GGUF = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)  # version 3, no tensors, no metadata
PAYLOAD = EMPTY_GGUF + random.Random(0).randbytes(300_000)
FETCH = """
import json, sys
from miniserve.model.sources.aliases import Alias
from miniserve.model.sources.download import fetch
print(fetch(Alias(**json.loads(sys.argv[1]))))
"""


def make_wheel(payload: bytes) -> bytes:
    """A wheel that pip accepts, with one model in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_model/tiny.gguf", payload)
        info = "tiny_model-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return file.getvalue()


def make_alias(wheel: bytes, payload: bytes) -> Alias:
    return Alias(
        name="tiny",
        title="Tiny",
        description="A model of noise.",
        origin="nobody/tiny",
        licence="CC0-1.0",
        package="tiny-model",
        version="1.0",
        wheel="tiny_model-1.0-py3-none-any.whl",
        wheel_size_bytes=len(wheel),
        wheel_sha256=hashlib.sha256(wheel).hexdigest(),
        member="tiny_model/tiny.gguf",
        size_bytes=len(payload),
        sha256=hashlib.sha256(payload).hexdigest(),
    )


class Index(http.server.ThreadingHTTPServer):
    """A package index with one wheel. `mode` is how the wheel is served: whole, cut, or stall (until `resume`)."""

    daemon_threads = True

    def __init__(self, wheel: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.wheel, self.mode, self.downloads, self.requests = wheel, "whole", 0, 0
        self.stalled, self.resume, self.hung_up = threading.Event(), threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/simple"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Index

    def do_GET(self):
        self.server.requests += 1
        if self.path == "/simple/tiny-model/":
            name = "tiny_model-1.0-py3-none-any.whl"
            self.reply(f'<!DOCTYPE html><a href="/files/{name}">{name}</a>'.encode(), "text/html")
        elif self.path.startswith("/files/"):
            self.server.downloads += 1
            self.reply(self.server.wheel, "application/octet-stream", self.server.mode)
        else:
            self.send_error(404)

    def reply(self, body: bytes, kind: str, mode: str = "whole") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        half = len(body) // 2
        self.wfile.write(body[:half])
        if mode == "cut":
            return
        if mode == "stall" and not self.wait_for_resume():
            self.server.hung_up.set()
            return
        self.wfile.write(body[half:])

    def wait_for_resume(self) -> bool:
        """Whether the client is still there when the server's `resume` is set."""
        self.server.stalled.set()
        while not self.server.resume.wait(0.02):
            readable, _, _ = select.select([self.connection], [], [], 0)
            if readable:  # a client that has asked and waits sends nothing: this is the end of its connection
                return False
        return True

    def log_message(self, *args):
        pass


@pytest.fixture
def index():
    with Index(make_wheel(PAYLOAD)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.resume.set()
        server.shutdown()
        thread.join(TIMEOUT_S)


@pytest.fixture
def alias(index, tmp_path, monkeypatch) -> Alias:
    """The tiny alias, in a world whose only index is ours and whose cache is empty."""
    for key in [k for k in os.environ if k.startswith("PIP_") or k.lower().endswith("_proxy")]:
        monkeypatch.delenv(key)
    settings = {"PIP_INDEX_URL": index.url, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "0", "PIP_RETRIES": "0"}
    for key, value in (settings | {"MINISERVE_CACHE": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(key, value)
    for key in ("MINISERVE_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(key, raising=False)
    return make_alias(index.wheel, PAYLOAD)


def start(alias: Alias, **options) -> subprocess.Popen:
    """Fetch in a process of its own."""
    command = [sys.executable, "-c", FETCH, json.dumps(dataclasses.asdict(alias))]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen(command, **options)


def kept(alias: Alias) -> set[str]:
    """What a fetch left in the model's directory, the lock file apart."""
    return {p.name for p in alias.path.parent.iterdir()} - {".lock"}


def test_a_model_is_fetched_once_and_said_on_stderr_alone(alias, index, capfd):
    assert fetch(alias).read_bytes() == PAYLOAD
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "tiny-model==1.0" in said.err
    assert kept(alias) == {"tiny.gguf"}
    seen = index.requests
    assert fetch(alias, offline=True) == alias.path
    assert (index.requests, index.downloads) == (seen, 1)
    assert capfd.readouterr() == ("", "")


def test_without_progress_nothing_is_said(alias, capfd):
    fetch(alias, progress=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_on_a_terminal_the_bar_goes_to_stderr(alias):
    ours, theirs = os.openpty()
    with start(alias, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other end was closed
            while chunk := os.read(ours, 4096):
                shown += chunk
        out, _ = process.communicate(timeout=TIMEOUT_S)
    os.close(ours)
    assert out.strip() == str(alias.path)
    assert b"fetch tiny-model==1.0" in shown


@pytest.mark.parametrize(
    ("field", "wrong", "named"),
    [
        ("wheel_sha256", "0" * 64, "tiny_model-1.0-py3-none-any.whl"),
        ("wheel_size_bytes", 7, "tiny_model-1.0-py3-none-any.whl"),
        ("sha256", "0" * 64, "tiny_model/tiny.gguf"),
    ],
)
def test_a_file_that_is_not_the_recorded_one_is_refused_and_not_kept(alias, field, wrong, named):
    got = {
        "wheel_sha256": alias.wheel_sha256,
        "wheel_size_bytes": f"{alias.wheel_size_bytes:,}",
        "sha256": alias.sha256,
    }
    with pytest.raises(ChecksumError) as caught:
        fetch(dataclasses.replace(alias, **{field: wrong}))
    assert named in str(caught.value)
    assert str(wrong) in str(caught.value)
    assert got[field] in str(caught.value)
    assert kept(alias) == set()


def test_a_connection_cut_midway_is_an_error_and_a_retry_succeeds(alias, index):
    index.mode = "cut"
    with pytest.raises(DownloadError, match="Trying again is safe"):
        fetch(alias)
    assert kept(alias) == set()
    index.mode = "whole"
    assert fetch(alias).read_bytes() == PAYLOAD


def test_a_truncated_wheel_is_refused(alias, index):
    index.wheel = index.wheel[:-5000]
    with pytest.raises((DownloadError, ChecksumError), match="tiny"):
        fetch(alias)
    assert kept(alias) == set()


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_at_any_moment_leaves_no_half_file_no_pip_and_the_next_run_succeeds(alias, index, number):
    index.mode = "stall"
    with start(alias) as process:
        assert index.stalled.wait(TIMEOUT_S)
        process.send_signal(number)
        process.communicate(timeout=TIMEOUT_S)
    assert process.returncode != 0
    assert index.hung_up.wait(TIMEOUT_S), "pip outlived us"
    assert "tiny.gguf" not in kept(alias)
    index.mode = "whole"
    assert fetch(alias).read_bytes() == PAYLOAD
    assert kept(alias) == {"tiny.gguf"}


def test_two_processes_download_once(alias, index):
    index.mode = "stall"
    with start(alias) as first:
        assert index.stalled.wait(TIMEOUT_S)
        with start(alias) as second:
            assert "waiting" in second.stderr.readline()
            index.resume.set()
            for process in (first, second):
                out, _ = process.communicate(timeout=TIMEOUT_S)
                assert out.strip() == str(alias.path)
    assert index.downloads == 1


@pytest.mark.parametrize("variable", ["MINISERVE_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_says_what_to_fetch(alias, index, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ModelNotFoundError, match=r"miniserve models pull tiny.*tiny-model==1\.0.*\.gguf"):
        fetch(alias)
    assert index.requests == 0


def test_no_network_shows_what_pip_said(alias, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: nobody listens
    with pytest.raises(DownloadError, match=r"(?s)tiny-model==1\.0.*No matching distribution.*By hand"):
        fetch(alias)
    assert kept(alias) == set()


def test_without_pip_and_uv_the_error_says_so(alias, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DownloadError, match=r"needs pip.*uv"):
        fetch(alias)


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_without_pip_uv_provides_it(alias, tmp_path, monkeypatch):
    """A stand-in for uv that runs what follows `python` in its arguments: our use of it, not uv, is under test."""
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(f'#!/bin/sh\nwhile [ "$1" != python ]; do shift; done\nshift\nexec {sys.executable} "$@"\n')
    uv.chmod(0o755)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", f"{uv.parent}:/usr/bin:/bin")
    assert fetch(alias).read_bytes() == PAYLOAD


def test_a_cache_that_cannot_be_written_is_named(alias, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINISERVE_CACHE", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match=r"cannot write.*file/models"):
        fetch(alias)


def test_too_little_space_is_found_before_the_transfer(alias, index):
    with pytest.raises(DownloadError, match="MB free"):
        fetch(dataclasses.replace(alias, size_bytes=10**18))
    assert index.requests == 0


@pytest.mark.skipif(os.name != "posix", reason="needs resource limits")
def test_a_write_that_fails_midway_leaves_nothing(alias, index):
    import resource

    payload = bytes(4_000_000)  # compresses to nothing: the wheel fits under the limit, the model does not
    index.wheel = make_wheel(payload)
    big = make_alias(index.wheel, payload)
    limit = (1_000_000, 1_000_000)
    with start(big, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)) as process:
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert "DownloadError" in err
    assert str(big.path.parent) in err
    assert kept(big) == set()


def test_a_damaged_cached_file_is_fetched_again(alias, capfd):
    alias.path.parent.mkdir(parents=True)
    alias.path.write_bytes(PAYLOAD[:10])
    assert fetch(alias).read_bytes() == PAYLOAD
    assert "10 bytes" in capfd.readouterr().err


def test_the_shipped_aliases_are_well_formed():
    aliases = load_aliases()
    assert "smollm2" in aliases
    for alias in aliases.values():
        assert alias.member.endswith(".gguf")
        assert len(bytes.fromhex(alias.sha256)) == len(bytes.fromhex(alias.wheel_sha256)) == 32
        assert alias.path.is_relative_to(cache_dir())


def test_verify_recomputes_the_hash_of_an_alias(alias, capfd):
    fetch(alias, progress=False)
    files = ModelFiles("tiny", "gguf", alias.path, "test")
    (check,) = verify(files, aliases={"tiny": alias})
    assert (check.sha256, check.expected_sha256, check.size_bytes) == (alias.sha256, alias.sha256, len(PAYLOAD))
    alias.path.write_bytes(PAYLOAD[:-1] + bytes([PAYLOAD[-1] ^ 1]))
    with pytest.raises(ChecksumError, match=alias.sha256):
        verify(files, aliases={"tiny": alias})
    assert capfd.readouterr() == ("", "")
