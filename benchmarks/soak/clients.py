"""`Clients`: those that ask the same questions over and over, and those that behave badly beside them."""

import asyncio
import json
import random
import re
import time
from collections.abc import Coroutine
from typing import Any

import httpx

from soak.notes import Notes

NUM_CLIENTS, NUM_QUESTIONS, TOKENS = 4, 24, 24
ANSWER_TIMEOUT_S = 60
TEXT = "The machine reads a book about machines and asks what the next page of it says. "


class Clients:
    """Of one server.

    Args:
        url: where it is.
        model: what requests call.
        notes: what comes of them.
        draw: all that is random.
    """

    def __init__(self, url: str, model: str, notes: Notes, draw: random.Random) -> None:
        self._url, self._model, self._notes, self._random = url, model, notes, draw
        self.http = httpx.AsyncClient(base_url=url, timeout=ANSWER_TIMEOUT_S, limits=httpx.Limits(max_connections=None))
        self._questions = [str(index) + TEXT * (4 + 4 * (index % 5)) for index in range(NUM_QUESTIONS)]
        self._answers: list[str] = []

    async def learn(self) -> None:
        """The right answers."""
        self._answers = [await self._ask(question) or "" for question in self._questions]
        assert all(self._answers), "the first answers failed"

    def jobs(self, end: float) -> list[Coroutine[Any, Any, None]]:
        """All of them at once, until that moment of the monotonic clock."""
        steady = [self._steady(end) for _ in range(NUM_CLIENTS)]
        return [*steady, self._leave(end), self._dawdle(end), self._damage(end)]

    def _body(self, question: str, **options: Any) -> dict[str, Any]:
        asked = {"model": self._model, "prompt": question, "max_tokens": TOKENS, "temperature": 0, "stream": True}
        return asked | options

    async def _ask(self, question: str) -> str | None:
        """The answer; None if an error told that there is none."""
        text, ended = "", False
        async with self.http.stream("POST", "/v1/completions", json=self._body(question)) as reply:
            if reply.status_code != 200:
                await reply.aread()
                self._notes.told(f"refused with {reply.status_code}", reply.text)
                return None
            async for line in reply.aiter_lines():
                if line == "data: [DONE]":
                    ended = True
                elif line.startswith("data: "):
                    event = json.loads(line[6:])
                    if "error" in event:
                        self._notes.told("told in the stream that the engine died", line)
                        return None
                    text += event["choices"][0]["text"]
        if not ended:
            self._notes.wrong.append("a stream ended without a word")
        return text

    async def _steady(self, end: float) -> None:
        while time.monotonic() < end:
            index = self._random.randrange(NUM_QUESTIONS)
            try:
                answer = await self._ask(self._questions[index])
            except httpx.HTTPError as error:
                self._notes.wrong.append(f"no answer: {error!r}")
                continue
            if answer is None:
                await asyncio.sleep(0.5)
            elif answer != self._answers[index]:
                self._notes.wrong.append(f"question {index}: {answer!r}, not {self._answers[index]!r}")
            else:
                self._notes.right()
            await asyncio.sleep(self._random.uniform(0.2, 1.0))

    async def _leave(self, end: float) -> None:
        """Clients that go in the middle of a long stream."""
        while time.monotonic() < end:
            body = self._body(TEXT, max_tokens=500, ignore_eos=True, n=self._random.choice((1, 2)))
            try:
                async with self.http.stream("POST", "/v1/completions", json=body) as reply:
                    lines = reply.aiter_lines()
                    for _ in range(self._random.randrange(1, 6)):
                        await anext(lines, None)
                self._notes.counts["left in the middle"] += 1
            except httpx.HTTPError as error:
                self._notes.wrong.append(f"while leaving: {error!r}")
            await asyncio.sleep(self._random.uniform(0.2, 1.2))

    async def _dawdle(self, end: float) -> None:
        """Half requests, never finished, and readers that never read."""
        host, port = re.findall(r"//(.*):(\d+)", self._url)[0]
        whole = json.dumps(self._body(TEXT, ignore_eos=True)).encode()
        lines = ("POST /v1/completions HTTP/1.1", "host: x", "content-type: application/json")
        head = "\r\n".join((*lines, f"content-length: {len(whole)}", "", ""))
        opened = []
        while time.monotonic() < end:
            said = head.encode() + whole
            part = self._random.choice((0, 10, len(head), len(head) + 20, len(said)))
            _, writer = await asyncio.open_connection(host, int(port), limit=2**12)
            writer.write(said[:part])
            opened.append(writer)
            self._notes.counts["half requests and readers that do not read"] += 1
            if len(opened) > 50:
                opened.pop(0).transport.abort()
            await asyncio.sleep(2)
        for writer in opened:
            writer.transport.abort()

    async def _damage(self, end: float) -> None:
        """Bodies with bytes that are not what they were."""
        while time.monotonic() < end:
            data = bytearray(json.dumps(self._body(TEXT)).encode())
            for _ in range(self._random.randint(1, 6)):
                data[self._random.randrange(len(data))] = self._random.randrange(256)
            try:
                headers = {"content-type": "application/json"}
                reply = await self.http.post("/v1/completions", content=bytes(data), headers=headers)
                if reply.status_code >= 500 and reply.status_code != 503 and "engine died" not in reply.text:
                    self._notes.wrong.append(f"{reply.status_code} for {bytes(data)!r}: {reply.text}")
                self._notes.counts["damaged bodies"] += 1
            except httpx.HTTPError as error:
                self._notes.wrong.append(f"a damaged body: {error!r}")
            await asyncio.sleep(0.7)
