"""The examples do what their docstrings say, run as a stranger runs them: some 32 s of CPU, most of it torch's start."""

import ast
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from miniserve.model.sources.embedded import load_embedded
from miniserve.registry.stable import set_stable, stable_of
from miniserve.registry.store import Registry
from miniserve.registry.version import Provenance
from miniserve.server.access import hash_key, new_key

EXAMPLES = Path(__file__).parents[2] / "examples"
TESTED = {"offline_batch", "openai_client", "plan_deployment", "custom_router", "rollout"}


def command(name, *arguments):
    return [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]


def run(name, *arguments, **environment):
    done = subprocess.run(
        command(name, *arguments),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def served(*options, **environment):
    """The address of a `miniserve serve` process."""
    serve = [sys.executable, "-m", "miniserve", "serve", "--port", "0", "--threads", "1", "--no-live-view", *options]
    with subprocess.Popen(
        serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | environment
    ) as process:
        try:
            line = process.stdout.readline()
            found = re.search(r"http://\S+:\d+", line)
            assert found, f"no address in {line!r}"
            yield found.group()
        finally:
            process.terminate()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_it_is_short_says_how_it_is_run_and_is_tested(path):
    text = path.read_text(encoding="utf-8")
    assert sum(map(bool, text.splitlines())) <= 40
    assert f"python examples/{path.name}" in ast.get_docstring(ast.parse(text))
    assert path.stem in TESTED


def test_offline_batch(tmp_path):
    prompts = ["ROMEO. What light", "Enter HAMLET.", "ROMEO. What light"]
    (tmp_path / "prompts.txt").write_text("\n\n".join(prompts) + "\n")
    lines = run("offline_batch", tmp_path / "prompts.txt", "--model", "tiny-moe", "--max-tokens", 8).splitlines()
    answers = [json.loads(line) for line in lines]
    assert [answer["prompt"] for answer in answers] == prompts
    assert answers[0] == answers[2]  # its seed is the request's own
    assert {answer["finish_reason"] for answer in answers} == {"length"}


def test_openai_client():
    with served("tiny-moe", "--kv-cache-mib", "32") as url:
        *streamed, last = run("openai_client", f"{url}/v1").splitlines()
    assert "".join(streamed).strip()
    assert set(json.loads(last)) == {"answer", "sure"}


def test_plan_deployment():
    *ranked, below, above = run("plan_deployment").splitlines()
    rates = [float(re.search(r"([\d,]+) tokens/s", line)[1].replace(",", "")) for line in ranked]
    assert len(rates) == 3
    assert rates == sorted(rates, reverse=True)
    assert "100% within" in below
    assert "100% within" not in above


def test_custom_router():
    lines = run("custom_router").splitlines()
    cached = {line.split()[1]: int(re.search(r"(\d+)% of prompts", line)[1]) for line in lines}
    assert set(cached) == {"round-robin", "least-loaded", "kv-aware", "by-prefix"}
    assert cached["by-prefix"] > cached["least-loaded"]


def test_rollout_promotes_what_meets_the_objective(tmp_path):
    registry = Registry(tmp_path / "registry")
    for _ in range(2):
        registry.register(
            "shop", load_embedded()["tiny-moe"].path, card="Of a test.",
            provenance=Provenance(source="the package", by="a test", licence="Apache-2.0"),
        )  # fmt: skip
    set_stable(registry, "shop", "1")
    key = new_key()
    (tmp_path / "admins.toml").write_text(f'[ann]\nsha256 = "{hash_key(key)}"\n')
    options = ["--models", "registry:shop", "--admin-keys-file", str(tmp_path / "admins.toml")]
    options += ["--kv-cache-mib", "32", "--slo", "e2e:60000"]
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(served(*options, MINISERVE_REGISTRY=str(registry.root)))
        http = stack.enter_context(httpx.Client(base_url=url, timeout=60))
        driver = stack.enter_context(
            subprocess.Popen(
                command("rollout", url, "2"), stdout=subprocess.PIPE, text=True, env=os.environ | {"ADMIN": key}
            )
        )
        while driver.poll() is None:
            asked = {"model": "shop", "prompt": "Enter", "max_tokens": 1}
            assert http.post("/v1/completions", json=asked).status_code == 200
        said = driver.stdout.read()
    assert re.fullmatch(r"version 2: (\d+) of \1 met the objective: promoted\n", said), said
    assert stable_of(registry, "shop").version == "2"


class Slow(BaseHTTPRequestHandler):
    """A server whose canary answers one request in ten too late."""

    orders, judged = [], 0

    def do_GET(self):
        kind = type(self)
        kind.judged += 15
        lines = ["# of a test", f'miniserve:slo_requests_total{{model_name="shop",version="2"}} {kind.judged}.0']
        lines += [f'miniserve:slo_good_total{{model_name="shop",version="2"}} {kind.judged * 0.9}']
        lines += ['miniserve:slo_good_total{model_name="shop",version="1"} 1000.0']
        self._say("\n".join(lines).encode())

    def do_POST(self):
        type(self).orders.append(self.path)
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self._say(*((b"it did not pass", 409) if "broken" in self.path else (b"{}", 200)))

    do_PUT = do_POST  # noqa: N815

    def _say(self, body, status=200):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_rollout_takes_back_what_does_not():
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        said = run("rollout", url, "2", ADMIN="key")
        refused = subprocess.run(
            command("rollout", url, "broken"),
            env=os.environ | {"ADMIN": "key"},
            capture_output=True,
            text=True,
            check=False,
        )
        server.shutdown()
    assert (refused.returncode, refused.stderr) == (1, "it did not pass\n")
    assert said == "version 2: 27 of 30 met the objective: taken back\n"
    assert Slow.orders == ["/admin/versions/2/load", "/admin/traffic", "/admin/rollback", "/admin/versions/broken/load"]
