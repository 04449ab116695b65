"""From a submission to an HTTP response: whole, or as a stream of server-sent events.

Whichever way the client leaves, by disconnecting, too, what it asked for is aborted at once: both responses watch the
connection while they wait for the engine.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from msgspec import UNSET, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import InvalidRequestError
from miniserve.server.backend import Backend
from miniserve.server.errors import APIError
from miniserve.server.messages import Piece
from miniserve.server.monitor.meter import CLIENT_LEFT, Meter
from miniserve.server.protocol import GenerationRequest
from miniserve.server.replies import Body, Form, PromptDetails, Usage, encode
from miniserve.server.reply import Reply
from miniserve.server.traces import NoSpan, Span

T = TypeVar("T")


@dataclass
class Job:
    """One request on its way.

    Attributes:
        asked: its body.
        params: what is asked of the engine.
        prompts: token ids.
        form: how its choices are written.
        request_id: part of the response's id.
        cache_salt: of its tenant.
        span: what traces are told of it.
        meter: counts it.
        on_end: told each choice's tokens when there will be no more; None: nobody is, and they are not kept.
    """

    asked: GenerationRequest
    params: SamplingParams
    prompts: Sequence[Sequence[int]]
    form: Form
    request_id: str
    cache_salt: str = ""
    span: Span = field(default_factory=NoSpan)
    meter: Meter = field(default_factory=Meter)
    on_end: Callable[[Mapping[int, Sequence[int]]], None] | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    num_tokens: int = 0
    cached: dict[int, int] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    outputs: dict[int, list[int]] = field(default_factory=dict)

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Tell the span that it has been accepted, and with the block's end, however that comes, what became of it."""
        self.span.event("accepted")
        self.span.set({
            "gen_ai.operation.name": self.form.operation,
            "gen_ai.request.model": self.asked.model,
            "gen_ai.request.max_tokens": self.params.max_tokens,
            "gen_ai.request.temperature": self.params.temperature,
            "gen_ai.request.top_p": self.params.top_p,
            "gen_ai.request.seed": self.params.seed,
        })  # fmt: skip
        try:
            yield
        finally:
            if self.on_end:
                self.on_end(self.outputs)
            self.meter.usage = self.usage
            self.span.set({
                "gen_ai.usage.input_tokens": self.usage.prompt_tokens,
                "gen_ai.usage.output_tokens": self.num_tokens,
                "gen_ai.response.id": self.form.id_prefix + self.request_id,
                "gen_ai.response.finish_reasons": self.reasons,
            })  # fmt: skip

    def count(self, piece: Piece) -> None:
        """Take note of a piece for `usage`, the meter and the span."""
        self.meter.count(piece)
        if piece.tokens and not self.num_tokens:
            self.span.event("first output")
        self.num_tokens += len(piece.tokens)
        if self.on_end:
            self.outputs.setdefault(piece.choice, []).extend(piece.tokens)
        self.cached[piece.choice // self.params.n] = piece.num_cached
        if piece.finish_reason:
            self.reasons.append(piece.finish_reason)

    def body(self, kind: str, choices: list[Struct]) -> Body[Struct]:
        """The response object around choices."""
        return Body(self.form.id_prefix + self.request_id, kind, self.created, self.asked.model, choices)

    @property
    def usage(self) -> Usage:
        """Of what has been counted."""
        prompt = sum(len(ids) for ids in self.prompts)
        details = PromptDetails(sum(self.cached.values()))
        return Usage(prompt, self.num_tokens, prompt + self.num_tokens, details)


async def respond(engine: Backend, job: Job, request: Request) -> Response:
    """Have a job done.

    Raises:
        APIError: it is refused, or the engine is busy, away, or dies.
    """
    try:
        reply = await unless_gone(request, engine.submit(job.prompts, job.params, cache_salt=job.cache_salt))
    except InvalidRequestError as error:
        raise job.asked.blame(error) from error
    if job.asked.stream:
        return EventStream(job, reply)
    with reply, job.told():
        return await unless_gone(request, _whole(job, reply))


async def _counted(job: Job, reply: Reply) -> AsyncIterator[Piece]:
    try:
        async for came in reply:
            piece = came.without_output() if job.asked.wants_no_output else came
            job.count(piece)
            yield piece
    except APIError as error:
        job.span.fail(error.message)
        job.meter.failure = error.status
        raise


async def _whole(job: Job, reply: Reply) -> Response:
    joined: dict[int, Piece] = {}
    async for piece in _counted(job, reply):
        earlier = joined.get(piece.choice)
        joined[piece.choice] = earlier.then(piece) if earlier else piece
    body = job.body(job.form.whole_object, [job.form.whole(joined[index]) for index in sorted(joined)])
    body.usage = job.usage
    return Response(encode(body), media_type="application/json")


async def _events(job: Job, reply: Reply) -> AsyncIterator[bytes]:
    options = job.asked.stream_options
    wants_usage = options.include_usage
    async for piece in _counted(job, reply):
        if (choice := job.form.chunk(piece)) is None:
            continue
        body = job.body(job.form.chunk_object, [choice])
        body.usage = job.usage if options.continuous_usage_stats else None if wants_usage else UNSET
        yield b"data: " + encode(body) + b"\n\n"
    if wants_usage:
        body = job.body(job.form.chunk_object, [])
        body.usage = job.usage
        yield b"data: " + encode(body) + b"\n\n"
    yield b"data: [DONE]\n\n"


class EventStream(Response):
    """A stream of server-sent events, given up when the client disconnects. An error is the last event."""

    media_type = "text/event-stream"

    def __init__(self, job: Job, reply: Reply) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no", "x-engine-request": str(reply.key)}
        super().__init__(headers=headers)
        del self.headers["content-length"]
        self._job, self._reply = job, reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Of ASGI."""
        with self._reply, self._job.told():
            try:
                await _unless(_disconnected(receive), self._send_all(send))
            except ClientGoneError as error:
                self._job.meter.failure = error.status

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for event in _events(self._job, self._reply):
                await send({"type": "http.response.body", "body": event, "more_body": True})
        except APIError as error:
            await send({"type": "http.response.body", "body": b"data: " + error.body + b"\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class ClientGoneError(APIError):
    """Nobody is there to read the response. Its status is for the log alone."""

    def __init__(self) -> None:
        super().__init__(CLIENT_LEFT, "the client has disconnected")


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Await `work`, cancelling it when the client disconnects.

    Raises:
        ClientGoneError: it did.
    """
    return await _unless(_disconnected(request.receive), work)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unless(gone: Awaitable[None], work: Awaitable[T]) -> T:
    watcher, worker = asyncio.ensure_future(gone), asyncio.ensure_future(work)
    try:
        await asyncio.wait((watcher, worker), return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            raise ClientGoneError
        return worker.result()
    finally:
        for task in (watcher, worker):
            task.cancel()
        await asyncio.gather(watcher, worker, return_exceptions=True)
