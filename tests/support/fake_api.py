"""A server of the OpenAI API whose every moment is known: it streams what a script says, when it says.

A script is given a request's body and yields steps: a number sleeps so many seconds, a string is a token, bytes go out
as they are, `End` finishes the stream properly, and a script that ends without it drops the connection.
"""

import asyncio
import contextlib
import json


class End:
    """Finish the stream: `tokens` is what the usage says."""

    def __init__(self, prompt_tokens=5, tokens=None, usage=True):
        self.prompt_tokens, self.tokens, self.usage = prompt_tokens, tokens, usage


class Status:
    """Answer with this instead of a stream."""

    def __init__(self, number):
        self.number = number


class FakeApi:
    """`async with FakeApi(script) as api`: `api.url`, and `api.bodies` of the requests so far."""

    def __init__(self, script, chat=False):
        self.script, self.chat, self.bodies, self.headers = script, chat, [], []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_):
        self.server.close()

    async def serve(self, reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET /v1/models "):
                    await self.reply(writer, 200, {"data": [{"id": "fake"}]})
                    continue
                fields = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:] if line)
                body = json.loads(await reader.readexactly(int(fields["content-length"])))
                self.bodies.append(body)
                self.headers.append(fields)
                if not await self.stream(writer, body):
                    break
        writer.close()

    async def reply(self, writer, status, body):
        data = json.dumps(body).encode()
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n" % (status, len(data)) + data)
        await writer.drain()

    async def stream(self, writer, body):
        begun, tokens = False, 0
        for step in self.script(body):
            if isinstance(step, Status):
                await self.reply(writer, step.number, {"error": {"message": "no"}})
                return True
            if isinstance(step, float | int):
                await asyncio.sleep(step)
                continue
            if not begun:
                begun = True
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                )
                if self.chat:
                    self.event(writer, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
            if isinstance(step, End):
                self.event(writer, {"choices": [self.choice("") | {"finish_reason": "length"}]})
                usage = {"prompt_tokens": step.prompt_tokens, "completion_tokens": step.tokens or tokens}
                if step.usage:
                    self.event(writer, {"choices": [], "usage": usage})
                self.chunk(writer, b"data: [DONE]\n\n")
                writer.write(b"0\r\n\r\n")
                await writer.drain()
                return True
            if isinstance(step, bytes):
                self.chunk(writer, step)
            else:
                tokens += 1
                self.event(writer, {"choices": [self.choice(step)]})
            await writer.drain()
        return False

    def choice(self, text):
        return {"delta": {"content": text}} if self.chat else {"text": text}

    def event(self, writer, value):
        self.chunk(writer, b"data: " + json.dumps(value).encode() + b"\n\n")

    def chunk(self, writer, data):
        writer.write(b"%x\r\n" % len(data) + data + b"\r\n")
