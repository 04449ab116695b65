"""The application: its routes, and how errors leave it.

`make_app` builds it around an engine that has been started; nothing is global. Each route is short: `protocol` says
what is asked, `generate` has it done, `replies` says how it looks.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from miniserve._version import __version__
from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import MiniserveError
from miniserve.model.tokenizer.tool_prompt import for_template
from miniserve.server.access import Access
from miniserve.server.backend import Backend
from miniserve.server.chat_protocol import ChatRequest, Message, TokenizeRequest, turns
from miniserve.server.chat_replies import ChatForm
from miniserve.server.errors import APIError, invalid
from miniserve.server.exchange import Exchange
from miniserve.server.generate import Job, respond
from miniserve.server.metrics import exposition
from miniserve.server.openapi import CHAT_OUTPUT, ERRORS, KEY, PLAIN_TEXT, TEXT_OUTPUT, describe
from miniserve.server.protocol import CompletionRequest, DetokenizeRequest
from miniserve.server.replies import Form, TextForm
from miniserve.server.traces import Traced, span_of
from miniserve.server.view.pages import add_docs, add_view
from miniserve.server.view.watchers import Watchers

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

CHAT_TEMPLATE_NAMES = frozenset(("messages", "tools", "add_generation_prompt"))


@dataclass(frozen=True)
class ServerSettings:
    """What a server is told besides its engine.

    Attributes:
        model_name: the name that requests give.
        max_body_bytes: of a request.
        allow_origins: of other sites whose pages may use this server from a browser; "*": of any.
        traces: where OpenTelemetry's spans go; None: nowhere.
        live_view: whether there is a page that shows the engine at work.
    """

    model_name: str
    max_body_bytes: int = 16 * 2**20
    allow_origins: Sequence[str] = ()
    traces: "TracerProvider | None" = None
    live_view: bool = True


def make_app(engine: Backend, settings: ServerSettings, access: Access) -> FastAPI:
    """The application around an engine that has been started."""
    app = FastAPI(title="miniserve", version=__version__, docs_url=None, redoc_url=None, responses=ERRORS)
    # Each layer goes around those before it.
    app.add_middleware(Exchange, access=access, max_body_bytes=settings.max_body_bytes)
    if settings.traces:
        app.add_middleware(Traced, provider=settings.traces)
    if settings.allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allow_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    routes, started = Routes(engine, settings), int(time.time())

    @app.get("/v1/models", dependencies=[KEY])
    async def models() -> dict[str, Any]:
        """The model that is served."""
        model = {"id": settings.model_name, "object": "model", "created": started, "owned_by": "miniserve"}
        return {"object": "list", "data": [model | {"max_model_len": engine.facts.max_model_len}]}

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether this process answers."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """Whether requests are taken: 503 while the engine starts, or the server is about to end."""
        engine.check_ready()
        return {"status": "ready"}

    @app.get("/version")
    async def version() -> dict[str, str]:
        """Of this server."""
        return {"version": __version__}

    @app.get("/metrics", response_class=Response, responses=PLAIN_TEXT)
    async def metrics() -> Response:
        """For Prometheus."""
        body, media_type = exposition(await engine.reports(), settings.model_name)
        return Response(body, media_type=media_type)

    for path, route, outputs in (
        ("/v1/completions", routes.completions, TEXT_OUTPUT),
        ("/v1/chat/completions", routes.chat, CHAT_OUTPUT),
    ):
        app.post(path, response_model=None, dependencies=[KEY], responses=outputs)(route)
    app.post("/tokenize", dependencies=[KEY])(routes.tokenize)
    app.post("/detokenize", dependencies=[KEY])(routes.detokenize)
    add_docs(app)
    if settings.live_view:
        add_view(app, Watchers(engine, settings.model_name))
    _handle_errors(app)
    describe(app)
    return app


class Routes:
    """The endpoints that need the model."""

    def __init__(self, engine: Backend, settings: ServerSettings) -> None:
        self._engine, self._settings = engine, settings

    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        """Continue one prompt or several."""
        self._check_model(body.model)
        params, texts = body.params(), body.prompts
        prompts = [await self._ids(text) if isinstance(text, str) else text for text in texts]
        echoes = None
        if body.echo:
            shown = [await self._shown(text) for text in texts]
            echoes = [each for each in zip(shown, prompts, strict=True) for _ in range(params.n)]
        return await self._respond(body, params, prompts, TextForm(self._engine.tokenizer, echoes), request)

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Reply to a conversation."""
        self._check_model(body.model)
        params = body.params()
        if taken := CHAT_TEMPLATE_NAMES & body.chat_template_kwargs.keys():
            message = f"chat_template_kwargs has {min(taken)}, which is not a variable of its own"
            raise APIError(400, message, param="chat_template_kwargs")
        variables = {"add_generation_prompt": body.add_generation_prompt, **body.chat_template_kwargs}
        ids = await self._chat_ids(body.messages, body.shown_tools, **variables)
        form = ChatForm(self._engine.tokenizer, reads_calls=bool(body.shown_tools))
        return await self._respond(body, params, [ids], form, request)

    async def tokenize(self, body: TokenizeRequest) -> dict[str, Any]:
        """The tokens of a text, or of a conversation in the form the model gets it."""
        self._check_model(body.model or self._settings.model_name)
        if (body.prompt is None) == (body.messages is None):
            raise APIError(400, "give prompt or messages, one of them", param="prompt")
        if body.tools and body.messages is None:
            raise APIError(400, "tools are for messages: there are none", param="tools")
        if body.prompt is not None:
            ids = await self._ids(body.prompt, add_special_tokens=body.add_special_tokens)
        else:
            tools = [tool.for_template() for tool in body.tools]
            ids = await self._chat_ids(body.messages or [], tools, add_generation_prompt=body.add_generation_prompt)
        return {"count": len(ids), "max_model_len": self._engine.facts.max_model_len, "tokens": ids}

    async def detokenize(self, body: DetokenizeRequest) -> dict[str, str]:
        """The text of tokens."""
        self._check_model(body.model or self._settings.model_name)
        return {"prompt": await self._tokenizing("tokens", self._engine.tokenizer.decode, body.tokens)}

    def _check_model(self, name: str) -> None:
        if name != self._settings.model_name:
            message = f"there is no model {name!r} here, only {self._settings.model_name!r}"
            raise APIError(404, message, param="model", code="model_not_found")

    async def _respond(
        self,
        body: CompletionRequest | ChatRequest,
        params: SamplingParams,
        prompts: list[list[int]],
        form: Form,
        request: Request,
    ) -> Response:
        state = request.state
        state.user = body.user
        job = Job(body, params, prompts, form, state.request_id, state.tenant.cache_salt, span_of(request))
        return await respond(self._engine, job, request)

    async def _ids(self, text: str, **options: Any) -> list[int]:
        return list(await self._tokenizing("prompt", self._engine.tokenizer.encode, text, **options))

    async def _chat_ids(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], **variables: Any
    ) -> list[int]:
        return list(await self._tokenizing("messages", self._encode_chat, turns(messages), tools, variables))

    def _encode_chat(
        self, messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]], variables: dict[str, Any]
    ) -> list[int]:
        tokenizer = self._engine.tokenizer
        if tokenizer.chat_template is not None:
            told, shown = for_template(tokenizer.chat_template, messages, tools)
            return tokenizer.encode_chat(told, tools=shown, **variables)
        return tokenizer.encode_chat(messages, **variables)

    async def _shown(self, prompt: str | list[int]) -> str:
        if isinstance(prompt, str):
            return prompt
        return str(await self._tokenizing("prompt", self._engine.tokenizer.decode, prompt, skip_special_tokens=False))

    async def _tokenizing(self, param: str, work: Callable[..., Any], *given: Any, **options: Any) -> Any:
        """In a thread: a long text must not hold up everybody's streams."""
        try:
            return await asyncio.to_thread(work, *given, **options)
        except MiniserveError as error:
            raise APIError(400, str(error), param=param, code="invalid_value") from error


def _handle_errors(app: FastAPI) -> None:
    def handler(to_api_error: Callable[[Any], APIError]) -> Callable[[Request, Exception], Awaitable[Response]]:
        async def handle(request: Request, error: Exception) -> Response:  # noqa: ARG001
            known = to_api_error(error)
            return Response(known.body, known.status, known.headers, media_type="application/json")

        return handle

    app.add_exception_handler(APIError, handler(lambda error: error))
    app.add_exception_handler(RequestValidationError, handler(lambda error: invalid(error.errors())))
    app.add_exception_handler(HTTPException, handler(lambda error: APIError(error.status_code, str(error.detail))))
    app.add_exception_handler(
        Exception, handler(lambda error: APIError(500, f"an error of the server: {type(error).__name__}"))
    )
