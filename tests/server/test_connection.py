"""Clients that are slow on purpose, against the real protocol with short times."""

import contextlib
import socket
import threading
import time

import pytest
import uvicorn

from miniserve.server.connection import Connection
from miniserve.server.exchange import MAX_HEADER_BYTES

PATIENCE_S = 0.5


class Impatient(Connection):
    request_timeout_s = PATIENCE_S
    write_timeout_s = PATIENCE_S


@pytest.fixture(scope="module")
def server():
    seen = {"cut": threading.Event()}

    async def app(scope, receive, send):
        if scope["path"] == "/flood":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(2000):  # 64 MB, far beyond what the kernel buffers
                await send({"type": "http.response.body", "body": b"x" * 32768, "more_body": True})
                if seen["cut"].is_set():
                    break
            return
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            more = message.get("more_body", False)
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http=Impatient, lifespan="off", log_config=None, timeout_keep_alive=30,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listener.getsockname(), server.server_state, seen
    server.should_exit = server.force_exit = True
    thread.join()


@contextlib.contextmanager
def connect(server):
    with socket.create_connection(server[0], timeout=10) as client:
        yield client


def received(client):
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := client.recv(65536):
            data += part
    return data


def answer(client, count=1):
    data = b""
    while data.count(b"ok") < count:
        part = client.recv(1000)
        assert part, data
        data += part


GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"


@pytest.mark.parametrize("said", [b"", b"GET / HT", GET[:-2], POST, POST + b"x" * 999])
def test_half_a_request_is_given_up(server, said):
    started = time.monotonic()
    with connect(server) as client:
        client.sendall(said)
        assert received(client).startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - started >= PATIENCE_S


def test_a_byte_now_and_then_does_not_help(server):
    with connect(server) as client:
        with contextlib.suppress(ConnectionError):
            for byte in POST * 2:
                client.send(bytes([byte]))
                time.sleep(0.02)
            pytest.fail("it went on for ever")
        assert b"200" not in received(client)


def test_a_connection_that_has_had_an_answer_may_be_quiet(server):
    with connect(server) as client:
        for _ in range(2):
            client.sendall(GET)
            answer(client)
            time.sleep(2 * PATIENCE_S)
        client.sendall(GET[:10])  # but a second half request is as bad as a first
        assert received(client).startswith(b"HTTP/1.1 408 ")


def test_two_requests_in_a_row_are_both_answered(server):
    with connect(server) as client:
        client.sendall(GET + GET)
        answer(client, count=2)


def test_a_client_that_takes_nothing_is_cut_off(server):
    _, state, seen = server
    with connect(server) as client:
        client.sendall(b"GET /flood HTTP/1.1\r\nhost: x\r\n\r\n")
        deadline = time.monotonic() + 20
        while state.connections:
            assert time.monotonic() < deadline, "its connection is still open"
            time.sleep(0.05)
        seen["cut"].set()


@pytest.mark.parametrize(
    ("said", "status", "says"),
    [
        (GET[:-2] + b"a: b\r\n" * 11_000, b"431 Request Header Fields Too Large", b"at most 65536 bytes"),
        (GET[:-2] + b"a: " + b"b" * 66_000, b"431 Request Header Fields Too Large", b"at most 65536 bytes"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400 Bad Request", b"no HTTP request"),  # TLS
    ],
    ids=["many headers", "a long header", "no HTTP"],
)
def test_a_head_that_cannot_be_read_is_refused(server, said, status, says):
    with connect(server) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(said)
        head, _, body = received(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert b"x-content-type-options: nosniff" in head
    assert says in body
