"""Nothing that a client sends gets into the log, or into spans. One server process, some 5 s of CPU."""

import io
import itertools
import json
import logging

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from miniserve.server.access import Access
from miniserve.server.app import ServerSettings, make_app
from miniserve.server.logs import JSONFormatter
from miniserve.server.rollout.lineup import Lineup
from miniserve.server.rollout.version import Version
from support.asynchronous import run
from support.fake_backend import FakeBackend

MARK = "Zanzibar"  # in everything that is sent; those who run the server must not read it

BASE = {"model": "tiny", "prompt": f"about {MARK}", "max_tokens": 2}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": MARK}], "max_tokens": 2}
SCHEMA = {"type": "object", "properties": {MARK: {"const": MARK}}, "required": [MARK]}


def named(schema):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": MARK, "schema": schema}}}


BODIES = [
    BASE,
    BASE | {"stop": [MARK], "stream": True},
    BASE | {"echo": True, "logprobs": 2},
    BASE | {"temperature": MARK},
    BASE | {"stop": [MARK * 1000]},
    BASE | {"logit_bias": {MARK: 1}},
    BASE | {MARK: MARK},
    BASE | {"prompt": {MARK: MARK}},
    BASE | {"prompt": [MARK, [1, 2], MARK]},
    BASE | {"prompt": f"{MARK} \ud800"},
    BASE | {"prompt": MARK * 9999},
    BASE | {"model": MARK},
    BASE | named(SCHEMA),
    BASE | named({MARK: MARK}),
    BASE | named({"type": "string", "pattern": f"({MARK}"}),
    BASE | named({"$ref": f"#/{MARK}"}),
    CHAT,
    CHAT | {"messages": [{"role": MARK, "content": MARK}]},
    CHAT | {"messages": [{"role": "user", "content": [{"type": MARK, MARK: MARK}]}]},
    CHAT | {"chat_template_kwargs": {"messages": MARK}},
    CHAT | {"tools": [{"type": "function", "function": {"name": MARK, "description": MARK, "parameters": SCHEMA}}]},
    CHAT | {"tools": [{"type": "function", "function": {"name": f"{MARK} !", "parameters": SCHEMA}}]},
]  # fmt: skip


def test_no_line_says_what_was_sent(start):
    with start("--log-level", "debug", "--max-model-len", "512") as server:
        seen = set()
        headers = {"content-type": "application/json", "authorization": f"Bearer {MARK}", "x-mark": MARK}
        for body in BODIES:
            path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
            reply = server.http.post(f"{path}?{MARK}={MARK}", content=json.dumps(body), headers=headers)
            seen.add(reply.status_code)
        for path, data in itertools.product(
            ("/v1/completions", "/tokenize", "/detokenize"),
            (
                f'{{"prompt": "{MARK}',
                f'"{MARK}"',
                f'{{"{MARK}": NaN}}',
                f'{{"tokens": ["{MARK}"], "prompt": ["{MARK}"]}}',
            ),
        ):
            seen.add(server.http.post(path, content=data, headers=headers).status_code)
        assert seen == {200, 400, 404}
        code, _ = server.end()
        lines = server._written()
    assert code == 0
    assert len([line for line in lines if '"request"' in line]) == len(BODIES) + 12
    assert not [line for line in lines if MARK in line]


class Clumsy(FakeBackend):
    """Quotes what it is asked in an error that nobody expects."""

    async def submit(self, prompts, params, *, cache_salt=""):
        try:
            raise ValueError(f"inside: {params.stop}")
        except ValueError as error:
            raise KeyError(str(params.stop)) from error


def test_an_error_of_the_server_is_told_by_kind_and_place():
    """To the log, to whoever asked, and to a collector of spans."""

    async def ask():
        lineup = Lineup("tiny", [Version("", Clumsy)])
        await lineup.start()
        app = make_app(lineup, ServerSettings(traces=provider), Access())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post("/v1/completions", json=BASE | {"stop": MARK})

    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(JSONFormatter())
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        reply = run(ask())
    finally:
        root.removeHandler(handler)
    assert reply.status_code == 500
    assert reply.json()["error"]["message"] == "an error of the server: KeyError"
    assert reply.headers["x-content-type-options"] == "nosniff"
    log = handler.stream.getvalue()
    (entry,) = [entry for entry in map(json.loads, log.splitlines()) if "traceback" in entry]
    assert entry["request_id"] == reply.headers["x-request-id"]
    assert "ValueError" in entry["traceback"]
    assert "KeyError" in entry["traceback"]
    assert "in submit" in entry["traceback"]
    (span,) = spans.get_finished_spans()
    assert span.attributes["http.response.status_code"] == 500
    assert MARK not in log + span.to_json() + reply.text


@pytest.mark.parametrize(
    ("error", "says"), [(OSError(28, "No space left"), "No space left"), (RuntimeError("CUDA error"), "CUDA error")]
)
def test_the_machines_troubles_are_told_whole(error, says):
    record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", None, (type(error), error, None))
    assert says in json.loads(JSONFormatter().format(record))["traceback"]
