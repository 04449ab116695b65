"""Spans as a collector gets them: a real one's protocol, over a real socket."""

import http.server
import threading

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from miniserve.server.access import new_key, tenant_of
from miniserve.server.traces import Traced
from support.asynchronous import run

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def collector():
    """Its address, and the spans that have come."""
    spans = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            request = ExportTraceServiceRequest()
            request.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
            for resource in request.resource_spans:
                names = {each.key: each.value.string_value for each in resource.resource.attributes}
                assert names["service.name"] == "miniserve"
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", spans
        server.shutdown()
        thread.join()


def attributes(span):
    found = {}
    for each in span.attributes:
        kind = each.value.WhichOneof("value")
        value = getattr(each.value, kind)
        found[each.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return found


def test_each_request_for_output_is_a_span(start, collector):
    address, spans = collector
    with start("--max-model-len", "512", OTEL_EXPORTER_OTLP_ENDPOINT=address) as server:
        asked = {"model": "tiny", "prompt": "secret words", "max_tokens": 3, "temperature": 0.5, "ignore_eos": True}
        headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "x-request-id": "mine"}
        assert server.http.post("/v1/completions", json=asked, headers=headers).status_code == 200
        with server.http.stream("POST", "/v1/completions", json=asked | {"stream": True}) as reply:
            assert "[DONE]" in reply.read().decode()
        gone = asked | {"stream": True, "max_tokens": 400}
        with server.http.stream("POST", "/v1/completions", json=gone) as reply:
            next(reply.iter_lines())
        assert server.http.post("/v1/completions", json=asked | {"temperature": -1}).status_code == 400
        server.http.get("/v1/models")
        assert server.end()[0] == 0  # which sends what is left
    # In the order of their ends: when the server sees that a client has left, nobody knows.
    refused = next(span for span in spans if attributes(span)["http.response.status_code"] == 400)
    whole, streamed, left = (span for span in spans if span is not refused)
    assert {span.name for span in spans} == {"POST /v1/completions"}
    assert whole.trace_id.hex() == TRACE
    assert streamed.trace_id.hex() != TRACE
    for span in (whole, streamed):
        assert [event.name for event in span.events] == ["accepted", "first output"]
        said = attributes(span)
        assert said["gen_ai.operation.name"] == "text_completion"
        assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (12, 3)
        assert said["gen_ai.response.finish_reasons"] == ["length"]
        assert (said["gen_ai.request.temperature"], said["http.response.status_code"]) == (0.5, 200)
    assert attributes(whole)["miniserve.request_id"] == "mine"
    assert attributes(whole)["gen_ai.response.id"] == "cmpl-mine"
    assert {attributes(span)["miniserve.tenant"] for span in spans} == {"everybody"}
    assert not any("miniserve.version" in attributes(span) for span in spans), "the model has none"
    assert attributes(left)["gen_ai.usage.output_tokens"] < 400
    assert attributes(left)["gen_ai.response.finish_reasons"] == []
    assert "secret" not in str(spans)


def test_who_asked_and_which_version_answered():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def answer(scope, receive, send):
        scope.setdefault("state", {}).update(
            {"request_id": "mine", "tenant": tenant_of("alice", new_key()), "version": "2"}
        )
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask():
        transport = httpx.ASGITransport(Traced(answer, provider))
        async with httpx.AsyncClient(transport=transport, base_url="http://any") as client:
            await client.post("/v1/completions")
            await client.post("/tokenize")

    run(ask())
    (span,) = exporter.get_finished_spans()
    assert {name: value for name, value in span.attributes.items() if name.startswith("miniserve.")} == {
        "miniserve.request_id": "mine", "miniserve.tenant": "alice", "miniserve.version": "2",
    }  # fmt: skip


def test_a_collector_that_is_away_disturbs_nobody(start):
    with start("--max-model-len", "512", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1") as server:
        reply = server.http.post("/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 1})
        assert reply.status_code == 200
        with httpx.Client(base_url=server.url) as client:
            assert client.get("/health").status_code == 200
