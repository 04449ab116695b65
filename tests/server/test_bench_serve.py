"""`miniserve bench serve` as a user runs it: against a server that is there, one it starts, and none."""

import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from typer.testing import CliRunner

from miniserve.cli import app
from miniserve.errors import CorruptFileError, InvalidRequestError, MiniserveError, ModelNotFoundError

COMMAND = [sys.executable, "-m", "miniserve", "bench", "serve"]
SERVE = "--served-model-name tiny --dtype float32 --device cpu --backend torch --threads 1 --max-waiting 0"


def run(*arguments):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_against_a_server(start, tmp_path):
    with start("--max-num-seqs", "2", "--max-waiting", "0") as server:
        url = ("--url", f"{server.url}/v1", "--seed", "3", "--input-len", "5-20", "--output-len", "4-8")
        out = tmp_path / "results" / "serve.json"
        first = run(*url, "--vocab-size", "128", "--concurrency", "2", "--num-requests", "6", "--out", str(out))
        assert first.returncode == 0, first.stderr
        assert "TTFT" in first.stdout
        data = json.loads(out.read_text())["data"]
        assert (data["completed"], data["errors"]) == (6, {})
        assert 4 <= data["output_tokens"]["mean"] <= data["output_tokens"]["max"] <= 8
        assert 5 <= data["prompt_tokens"]["mean"] <= data["prompt_tokens"]["max"] <= 20
        assert 0 < data["ttft_s"]["p50"] <= data["e2e_s"]["p50"]
        assert server.metric("request_success_total") == 6 + 4  # and the warm-up
        # More at once than the server takes: refusals are counted, and not as answers.
        crowd = ("--endpoint", "chat", "--rate", "1000", "--cv", "0", "--num-requests", "30", "--output-len", "200")
        data = json.loads(run(*url, *crowd, "--warmup", "1", "--json").stdout)
        assert data["errors"].keys() == {"http_429"}, data["remarks"]
        assert data["completed"] + data["errors"]["http_429"] == 30
        assert data["load"]["rate_per_s"] == 1000


def test_a_server_of_its_own_and_ctrl_c(tiny_chat_model):
    options = ["--model", tiny_chat_model, "--serve-options", SERVE, "--concurrency", "2", "--output-len", "40"]
    command = [*COMMAND, *options, "--duration", "100", "--warmup", "0", "--json"]
    bench = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: len(servers(bench)) == 1)
        (server,) = servers(bench)
        until(lambda: answered(server) >= 1)
        bench.send_signal(signal.SIGINT)
        output, errors = bench.communicate(timeout=30)
    finally:
        bench.kill()
    assert bench.returncode == 0, errors
    data = json.loads(output)
    assert data["interrupted"]
    assert 1 <= data["unfinished"] <= 2, "one of them may have been between two requests"
    assert data["completed"] >= 1
    assert data["seconds"] < 60
    assert not server.is_running()


def servers(bench):
    children = psutil.Process(bench.pid).children()
    return [child for child in children if "--served-model-name" in child.cmdline()]


def answered(server):
    """How many requests a server has served, by its own count."""
    ports = [each.laddr.port for each in server.net_connections() if each.status == psutil.CONN_LISTEN]
    text = httpx.get(f"http://127.0.0.1:{ports[0]}/metrics").text if ports else ""
    return sum(float(line.split()[-1]) for line in text.splitlines() if "request_success_total{" in line)


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--url", "{url}"), MiniserveError, "names no model"),
        (("--url", "{url}", "--model", "x"), MiniserveError, "warm-up succeeded: refused"),
        (("--endpoint", "images"), InvalidRequestError, "endpoint 'images'"),
        (("--slo", "speed:3"), InvalidRequestError, "speed:3"),
        (("--rate", "0"), InvalidRequestError, "rate 0"),
        (("--rate", "1", "--concurrency", "2"), InvalidRequestError, "one of concurrency, rate and trace"),
        (("--trace", __file__, "--url", "{url}", "--model", "x"), CorruptFileError, "line 1: a trace begins with"),
        (("--extra-body", "[]"), InvalidRequestError, "extra_body"),
        (("--url", "{url}", "--serve-options", "x"), InvalidRequestError, "serve_options"),
        (("--endpoint", "chat", "--vocab-size", "5"), InvalidRequestError, "vocab_size"),
        (("--model", "no-such-model"), ModelNotFoundError, "no model called"),
        (("--model", "{model}", "--serve-options", "--port x"), MiniserveError, "did not start"),
    ],
)
def test_nonsense_is_named(arguments, error, message, tiny_chat_model):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    command = ["bench", "serve", *(argument.format(url=url, model=tiny_chat_model) for argument in arguments)]
    with ThreadPoolExecutor(1) as pool:  # a thread has no event loop yet
        result = pool.submit(CliRunner().invoke, app, command).result()
    assert type(result.exception) is error
    assert message in str(result.exception)
