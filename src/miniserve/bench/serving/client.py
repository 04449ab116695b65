"""`Client`: sends one streamed request and notes when what came.

A request never raises for what the server does: each way to fail has a name, which ends up in `Service.error`. Time
stamps are the event loop's, taken when bytes reach the coroutine; how late that is under load, `meter` tells.
"""

import asyncio
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from miniserve.bench.serving.stream import Chunk, EventReader, RequestError
from miniserve.errors import MiniserveError
from miniserve.workloads.service import Service

PATHS = {"completions": "/completions", "chat": "/chat/completions"}
CONNECT_TIMEOUT_S = 10.0
KEEP_ALIVE_S = 4.0  # of an idle connection: many servers close one after 5, perhaps just when it is used again
MESSAGE_SIZE = 300


class Client:
    """Connections to one server, as many as there are requests at once. Use it as an asynchronous context manager.

    Args:
        url: of the API, with its `/v1`.
        endpoint: "completions" or "chat".
        model: the name that requests give; None: the first that the server lists.
        body: fields of each request besides that, the prompt, the limit and what streaming needs.
        api_key: sent with each request; None: none is.
        timeout_s: of a whole request, after which it has failed.

    Raises:
        MiniserveError: on entering: the server does not answer, or lists no model.

    Attributes:
        model: see above; asked for on entering.
        first_errors: of each kind of failure the first one's message.
    """

    def __init__(
        self,
        url: str,
        *,
        endpoint: str = "completions",
        model: str | None = None,
        body: Mapping[str, Any] = MappingProxyType({}),
        api_key: str | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        self._url, self.model = url.rstrip("/"), model
        self._path, self._chat, self._body = self._url + PATHS[endpoint], endpoint == "chat", dict(body)
        self._headers = {"content-type": "application/json"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._timeout_s = timeout_s
        self.first_errors: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
        timeout = aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._headers)
        if self.model is None:
            try:
                self.model = await self._first_model()
            except BaseException:
                await self._session.close()
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def send(self, prompt: str | list[int], max_tokens: int, due_s: float) -> Service:
        """Have one prompt continued.

        Args:
            prompt: a text or token ids; a chat's message is a text.
            max_tokens: of output.
            due_s: when this should have been sent, on the event loop's clock.
        """
        asked = {"messages": [{"role": "user", "content": prompt}]} if self._chat else {"prompt": prompt}
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        data = msgspec.json.encode({"model": self.model} | self._body | asked | stream | {"max_tokens": max_tokens})
        clock = asyncio.get_running_loop().time
        service = Service(due_s, clock())
        try:
            async with self._session.post(self._path, data=data) as response:
                if response.status != 200:
                    raise RequestError(
                        f"http_{response.status}", (await response.text(errors="replace"))[:MESSAGE_SIZE]
                    )
                await _read(response, service)
        except (RequestError, aiohttp.ClientError, TimeoutError, OSError) as error:
            service.error = _kind(error)
            self.first_errors.setdefault(service.error, str(error) or type(error).__name__)
        service.ended_s = clock()
        return service

    async def _first_model(self) -> str:
        address = f"{self._url}/models"
        try:
            async with self._session.get(address) as response:
                if response.status != 200:
                    raise MiniserveError(f"{address}: HTTP {response.status}: {(await response.text())[:MESSAGE_SIZE]}")
                return str((await response.json(content_type=None))["data"][0]["id"])
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError) as error:
            raise MiniserveError(f"{address} names no model: {error or type(error).__name__}") from error


def _kind(error: Exception) -> str:
    if isinstance(error, RequestError):
        return error.kind
    if isinstance(error, aiohttp.ClientConnectorError):
        return "refused"
    return "timeout" if isinstance(error, TimeoutError) else "broken"


async def _read(response: aiohttp.ClientResponse, service: Service) -> None:
    """Note in `service` what comes.

    Raises:
        RequestError: it is not a whole response.
    """
    reader, finished, clock = EventReader(), False, asyncio.get_running_loop().time
    async for data in response.content.iter_any():
        now_s = clock()
        for chunk in reader.feed(data):
            if chunk.error is not None:
                raise RequestError("error_event", str(chunk.error)[:MESSAGE_SIZE])
            finished |= _note(chunk, service, now_s)
    if not (finished and reader.done):
        raise RequestError("truncated", "the stream ended before the output was complete")
    if not service.arrivals_s:
        raise RequestError("empty", "no token came")
    service.output_tokens = service.output_tokens or len(service.arrivals_s)  # of a server that does not count


def _note(chunk: Chunk, service: Service, now_s: float) -> bool:
    """Whether it is the output's last."""
    finished = False
    for choice in chunk.choices:
        if choice.says_something:
            service.arrivals_s.append(now_s)
        finished |= choice.finish_reason is not None
    if chunk.usage is not None:
        service.prompt_tokens, service.output_tokens = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
        details = chunk.usage.prompt_tokens_details
        service.cached_tokens = (details and details.cached_tokens) or 0
    return finished
