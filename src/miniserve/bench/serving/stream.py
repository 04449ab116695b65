"""The events of a streamed response: what of them a benchmark needs, read with little work for each.

Completions and chats are told apart by their choices alone: `text` here, `delta` there.
"""

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

LONGEST_LINE = 2**22  # bytes; a server that sends more in one line is not sending events


class RequestError(Exception):
    """A request failed. `kind` is one of a few words, to be counted; the message is what was said."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Delta(Struct):
    """The next part of a chat's message."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class Choice(Struct):
    """The next part of an output."""

    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None

    @property
    def says_something(self) -> bool:
        """Whether tokens came with it. The role that opens a chat is none."""
        delta = self.delta
        if delta is None:
            return bool(self.text)
        return bool(delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls)


class PromptDetails(Struct):
    """Of the prompt's tokens, those that a cache had."""

    cached_tokens: int | None = None


class Usage(Struct):
    """The server's count of tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None


class Chunk(Struct):
    """One event."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


class EventReader:
    """Turns the bytes of a response, cut anywhere, into chunks. `done` once the stream has said so."""

    def __init__(self) -> None:
        self.done = False
        self._decoder = msgspec.json.Decoder(Chunk)
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Chunk]:
        """The chunks that `data` completes.

        Raises:
            RequestError: "malformed", an event is not JSON, or not of this kind.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST_LINE:
            raise RequestError("malformed", f"a line of more than {LONGEST_LINE} bytes")
        for line in lines:
            if not line.startswith(b"data:"):
                continue  # a comment, an empty line, or another field of server-sent events
            payload = line[5:].strip()
            if payload == b"[DONE]":
                self.done = True
                continue
            try:
                yield self._decoder.decode(payload)
            except msgspec.MsgspecError as error:
                raise RequestError("malformed", str(error)) from error
