"""The client and the loops against a server whose every moment is known, in virtual time: figures are exact."""

import asyncio
import json

import pytest

from miniserve.bench.serving.client import Client
from miniserve.bench.serving.load import Load
from miniserve.bench.serving.prompts import token_prompts, word_prompts
from miniserve.bench.serving.run import run_load
from miniserve.bench.serving.spec import LoadSpec
from miniserve.bench.serving.stream import LONGEST_LINE, EventReader, RequestError
from miniserve.errors import CorruptFileError, InvalidRequestError, MiniserveError
from miniserve.workloads.arrivals import Arrival
from miniserve.workloads.service import SLO, Service
from support.asynchronous import run_in_virtual_time
from support.fake_api import End, FakeApi, Status


def ask(script, due_s=0.0, *, chat=False, **options):
    """One request to a server that follows the script: (what its user saw, what the client noted, the server)."""

    async def inside():
        endpoint = "chat" if chat else "completions"
        async with FakeApi(script, chat) as api, Client(api.url, endpoint=endpoint, **options) as client:
            return await client.send("hello", 7, due_s), client, api

    return run_in_virtual_time(inside())


def load(script, **spec):
    async def inside():
        async with FakeApi(script) as api, Client(api.url, model="fake") as client:
            return await run_load(client, LoadSpec(**spec), token_prompts(100, 0)), api

    return run_in_virtual_time(inside())


def three_tokens(body):
    yield from (0.5, "a", 0.1, "b", 0.3, "c", 0.2, End(prompt_tokens=4))


@pytest.mark.parametrize("chat", [False, True])
def test_times_are_the_servers_own(chat):
    service, client, api = ask(three_tokens, due_s=-1.0, chat=chat)
    assert service.error is None
    assert service.sent_s == 0.0
    assert service.ttft_s == pytest.approx(1.5)  # the role that opens a chat is no token; it was due a second before
    assert service.gaps_s == pytest.approx([0.1, 0.3])
    assert service.e2e_s == pytest.approx(2.1)
    assert (service.prompt_tokens, service.output_tokens) == (4, 3)
    assert client.model == "fake"
    (body,) = api.bodies
    assert (body["model"], body["max_tokens"], body["stream"]) == ("fake", 7, True)
    assert body.get("prompt", body.get("messages")) == ([{"role": "user", "content": "hello"}] if chat else "hello")


def test_tokens_are_the_servers_count_or_else_the_parts():
    assert ask(lambda _: ["a", "b", End(tokens=9)])[0].output_tokens == 9
    assert ask(lambda _: ["a", "b", End(usage=False)])[0].output_tokens == 2


def test_the_key_and_the_fields_are_sent():
    _, _, api = ask(three_tokens, api_key="secret", body={"temperature": 0, "max_tokens": 1})
    assert api.headers[0]["authorization"] == "bearer secret"
    assert (api.bodies[0]["temperature"], api.bodies[0]["max_tokens"]) == (0, 7)


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ([Status(429)], "http_429"),
        ([Status(500)], "http_500"),
        (["a", 0.1, "b"], "broken"),
        ([0.1], "broken"),
        (["a", b"data: [DONE]\n\n", 1.0], "broken"),
        (["a", b"data: {nonsense\n\n"], "malformed"),
        (["a", b'data: {"choices": 3}\n\n'], "malformed"),
        (["a", b'data: {"error": {"message": "it died"}}\n\n'], "error_event"),
        ([End()], "empty"),
        ([1000.0, "a", End()], "timeout"),
        (["a", 1000.0, End()], "timeout"),
    ],
)
def test_each_failure_has_its_kind(script, kind):
    service, client, _ = ask(lambda _: script, model="fake", timeout_s=60.0)
    assert service.error == kind
    assert list(client.first_errors) == [kind]
    assert service.ended_s >= 0


def test_a_stream_that_ends_too_early_is_truncated():
    """Well-formed HTTP, but no finish: what a proxy makes of a server that died."""

    async def inside():
        async def serve(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            data = b'data: {"choices": [{"text": "a"}]}\n\ndata: [DONE]\n\n'
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(data) + data)

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with Client(f"http://127.0.0.1:{port}/v1", model="x") as client:
                return await client.send("hello", 1, 0.0)

    assert run_in_virtual_time(inside()).error == "truncated"


def test_nobody_there():
    async def inside():
        async with FakeApi(three_tokens) as api:
            pass
        async with Client(api.url, model="x") as client:
            assert (await client.send("hello", 1, 0.0)).error == "refused"
        with pytest.raises(MiniserveError, match="names no model"):
            async with Client(api.url):
                pass

    run_in_virtual_time(inside())


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_may_be_cut_anywhere(size):
    text = ': hi\r\n\r\nevent: x\ndata: {"choices":[{"text":"é"}]}\r\n\r\ndata:{"choices":[],"usage":null}\n\ndata: [DONE]\n\n'
    data, reader = text.encode(), EventReader()
    chunks = [chunk for at in range(0, len(data), size) for chunk in reader.feed(data[at : at + size])]
    assert [[choice.text for choice in chunk.choices] for chunk in chunks] == [["é"], []]
    assert reader.done


def test_a_line_without_end_is_refused():
    reader = EventReader()
    assert not list(reader.feed(b"x" * LONGEST_LINE))
    with pytest.raises(RequestError, match="a line of more"):
        list(reader.feed(b"x"))


def test_closed_loop_has_so_many_users():
    """Four users, each request 1.1 s: in 10 requests, waves of 4, 4 and 2."""
    data, api = load(three_tokens, concurrency=4, num_requests=10)
    assert data["seconds"] == pytest.approx(3.3)
    assert (data["requests"], data["completed"], data["errors"]) == (10, 10, {})
    assert data["requests_per_s"] == pytest.approx(10 / 3.3)
    assert data["output_tokens_per_s"] == pytest.approx(30 / 3.3)
    assert data["ttft_s"] == pytest.approx(dict.fromkeys(("mean", "p50", "p90", "p99", "max"), 0.5))
    assert data["itl_s"]["mean"] == pytest.approx(0.2)
    assert data["tpot_s"]["p50"] == pytest.approx(0.2)
    assert data["tokens_per_part"] == 1
    assert len({tuple(body["prompt"]) for body in api.bodies}) == 10


def test_open_loop_does_not_wait_for_a_slow_server():
    """Two a second for a server that serves one at a time, a second each: the n-th waits, and that counts."""

    async def inside():
        lock = asyncio.Lock()

        async def send(arrival, due_s):
            service = Service(due_s, asyncio.get_running_loop().time())
            async with lock:
                await asyncio.sleep(1.0)
            service.arrivals_s = [asyncio.get_running_loop().time()]
            return service

        services = []
        await Load(send, services.append).open(Arrival(index / 2, 1, 1) for index in range(6))
        return services

    services = run_in_virtual_time(inside())
    assert [service.sent_s for service in services] == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0, 2.5])
    assert [service.ttft_s for service in services] == pytest.approx([1.0, 1.5, 2.0, 2.5, 3.0, 3.5])


def test_a_sender_that_is_late_hides_nothing():
    """Something blocks the client for 3 s: the requests that were due meanwhile have waited, and the record says so."""

    async def inside():
        loop = asyncio.get_running_loop()

        async def send(arrival, due_s):
            if arrival.at_s == 1.0:
                loop.now += 3.0  # as a long computation would
            return Service(due_s, loop.time(), [loop.time()], 1, 1)

        services = []
        await Load(send, services.append).open(Arrival(at_s, 1, 1) for at_s in (0.0, 1.0, 2.0, 5.0))
        return services

    services = run_in_virtual_time(inside())
    assert [service.ttft_s for service in services] == pytest.approx([0.0, 3.0, 2.0, 0.0])


def test_duration_ends_the_sending_and_waits_for_the_rest():
    data, _ = load(three_tokens, rate_per_s=2.0, cv=0.0, duration_s=2.1)
    assert (data["requests"], data["completed"], data["unfinished"]) == (4, 4, 0)
    assert data["seconds"] == pytest.approx(2.0 + 1.1)
    data, _ = load(three_tokens, concurrency=2, duration_s=2.0)
    assert data["requests"] == 4


def test_a_trace_is_sent_as_recorded_with_what_its_prompts_share(tmp_path):
    trace = tmp_path / "trace.jsonl"
    rows = [(0, 600, [1, 2]), (1000, 700, [1, 3]), (1500, 3, [])]
    trace.write_text(
        "\n".join(
            json.dumps({"timestamp": at, "input_length": size, "output_length": 7, "hash_ids": blocks})
            for at, size, blocks in rows
        )
    )
    data, api = load(three_tokens, trace=trace, speed=2.0)
    first, second, third = (body["prompt"] for body in api.bodies)
    assert (len(first), len(second), len(third)) == (600, 700, 3)
    assert first[:512] == second[:512]
    assert first[512:600] != second[512:600]
    assert data["seconds"] == pytest.approx(0.75 + 1.1)
    assert data["load"]["trace"]["file"] == "trace.jsonl"
    trace.write_text(trace.read_text() + "\n{}\n")
    with pytest.raises(CorruptFileError, match="line 4"):
        load(three_tokens, trace=trace)


def test_failures_are_counted_beside_what_went_well():
    turns = iter(range(8))

    def script(body):
        turn = next(turns)
        yield from [Status(429)] if turn % 4 == 1 else ["a", 0.1] if turn % 4 == 2 else three_tokens(body)

    data, _ = load(script, concurrency=1, num_requests=8, slo=SLO.parse("ttft:500.1"))
    assert data["errors"] == {"http_429": 2, "broken": 2}
    assert data["completed"] == 4
    assert data["slo_attainment"] == 0.5
    assert data["ttft_s"]["p50"] == pytest.approx(0.5)
    assert data["seconds"] == pytest.approx(4 * 1.1 + 2 * 0.1 + 4 * 0.1)  # a user who got an error pauses
    assert any("http_429" in remark for remark in data["remarks"])


def test_warm_ups_are_not_counted_and_must_not_all_fail():
    data, api = load(three_tokens, concurrency=2, num_requests=3, warmup=2)
    assert (data["requests"], len(api.bodies)) == (3, 5)
    assert len({tuple(body["prompt"]) for body in api.bodies}) == 5
    with pytest.raises(MiniserveError, match="http_503"):
        load(lambda _: [Status(503)], concurrency=2, num_requests=3, warmup=2)


def test_an_interrupt_reports_what_is_done():
    async def inside():
        async with FakeApi(three_tokens) as api, Client(api.url, model="fake") as client:
            spec = LoadSpec(concurrency=3, num_requests=100)
            task = asyncio.create_task(run_load(client, spec, word_prompts(0)))
            await asyncio.sleep(2.5)
            task.cancel()  # as asyncio does on Ctrl-C
            return await task

    data = run_in_virtual_time(inside())
    assert (data["requests"], data["completed"], data["unfinished"]) == (6, 6, 3)
    assert data["interrupted"]
    assert data["seconds"] == pytest.approx(2.5)
    assert any("3 requests had not ended" in remark for remark in data["remarks"])


def test_a_client_that_falls_behind_says_so():
    async def inside():
        loop = asyncio.get_running_loop()

        def script(body):
            loop.now += 0.5  # the machine is busy with something else
            yield from three_tokens(body)

        async with FakeApi(script) as api, Client(api.url, model="fake") as client:
            return await run_load(client, LoadSpec(rate_per_s=4.0, num_requests=8), word_prompts(0))

    data = run_in_virtual_time(inside())
    assert data["client"]["sent_late_s"]["max"] >= 0.5 - 1e-9
    assert any("fell behind" in remark for remark in data["remarks"])


@pytest.mark.parametrize(
    "spec", [{}, {"concurrency": 1, "rate_per_s": 1.0}, {"concurrency": 1}, {"concurrency": 1, "duration_s": 0.0}]
)
def test_loads_that_are_none_are_refused(spec):
    with pytest.raises(InvalidRequestError):
        LoadSpec(**spec)


def test_prompts_have_their_length_and_depend_on_the_seed():
    arrival = Arrival(0.0, 40, 1)
    assert len(word_prompts(0)(arrival).split()) == 40
    assert word_prompts(0)(arrival) == word_prompts(0)(arrival) != word_prompts(1)(arrival)
    make = token_prompts(1000, 0)
    assert make(arrival) != make(arrival)
    shared = Arrival(0.0, 5, 1, (9,), 512)
    assert make(shared) == make(shared) == token_prompts(1000, 0)(shared)
