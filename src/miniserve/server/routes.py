"""`Routes`: the endpoints that need a model. Each is short: `protocol` says what is asked, the lineup who answers,
`generate` has it done, `replies` says how it looks.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import Request
from starlette.responses import Response

from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import MiniserveError
from miniserve.model.tokenizer.tokenizer import Tokenizer
from miniserve.model.tokenizer.tool_prompt import for_template
from miniserve.server.backend import Backend
from miniserve.server.chat_protocol import ChatRequest, Message, TokenizeRequest, turns
from miniserve.server.chat_replies import ChatForm
from miniserve.server.errors import APIError
from miniserve.server.generate import Job, respond
from miniserve.server.monitor.metered import meter_of
from miniserve.server.protocol import CompletionRequest, DetokenizeRequest
from miniserve.server.replies import Form, TextForm
from miniserve.server.rollout.lineup import Lineup
from miniserve.server.rollout.shadow import Copy, Shadow
from miniserve.server.traces import span_of

CHAT_TEMPLATE_NAMES = frozenset(("messages", "tools", "add_generation_prompt", "max_model_len"))
VERSION_HEADER = "x-model-version"

#: Gives what is asked as token ids, by an engine's tokenizer.
Prompts = Callable[[Backend], Awaitable[list[list[int]]]]


class Routes:
    """Around the versions of a model.

    Args:
        lineup: who answers.
        shadow: has copies made.
    """

    def __init__(self, lineup: Lineup, shadow: Shadow) -> None:
        self._lineup, self._shadow = lineup, shadow

    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        """Continue one prompt or several."""
        params, texts = body.params(), body.prompts

        async def prompts(engine: Backend) -> list[list[int]]:
            return [
                await _ids(engine, text) if isinstance(text, str) else _short("prompt", engine, text) for text in texts
            ]

        async def form(engine: Backend, ids: Sequence[list[int]]) -> TextForm:
            if not body.echo:
                return TextForm(engine.tokenizer, None)
            shown = [await _shown(engine.tokenizer, text) for text in texts]
            return TextForm(engine.tokenizer, [each for each in zip(shown, ids, strict=True) for _ in range(params.n)])

        return await self._respond(body, params, prompts, form, request)

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Reply to a conversation."""
        params = body.params()
        if taken := CHAT_TEMPLATE_NAMES & body.chat_template_kwargs.keys():
            message = f"chat_template_kwargs has {min(taken)}, which is not a variable of its own"
            raise APIError(400, message, param="chat_template_kwargs")
        variables = {"add_generation_prompt": body.add_generation_prompt, **body.chat_template_kwargs}

        async def prompts(engine: Backend) -> list[list[int]]:
            return [await _chat_ids(engine, body.messages, body.shown_tools, **variables)]

        async def form(engine: Backend, ids: Sequence[list[int]]) -> ChatForm:  # noqa: ARG001
            return ChatForm(engine.tokenizer, reads_calls=bool(body.shown_tools))

        return await self._respond(body, params, prompts, form, request)

    async def tokenize(self, body: TokenizeRequest, request: Request) -> dict[str, Any]:
        """The tokens of a text, or of a conversation in the form the model gets it."""
        with self._lineup.pick(body.model or self._lineup.model, *_placed(request)) as (_, engine):
            if (body.prompt is None) == (body.messages is None):
                raise APIError(400, "give prompt or messages, one of them", param="prompt")
            if body.tools and body.messages is None:
                raise APIError(400, "tools are for messages: there are none", param="tools")
            if body.prompt is not None:
                ids = await _ids(engine, body.prompt, add_special_tokens=body.add_special_tokens)
            else:
                tools = [tool.for_template() for tool in body.tools]
                messages = body.messages or []
                ids = await _chat_ids(engine, messages, tools, add_generation_prompt=body.add_generation_prompt)
            return {"count": len(ids), "max_model_len": engine.facts.max_model_len, "tokens": ids}

    async def detokenize(self, body: DetokenizeRequest, request: Request) -> dict[str, str]:
        """The text of tokens."""
        with self._lineup.pick(body.model or self._lineup.model, *_placed(request)) as (_, engine):
            tokens = _short("tokens", engine, body.tokens)
            return {"prompt": await _tokenizing("tokens", engine.tokenizer.decode, tokens)}

    async def _respond(
        self,
        body: CompletionRequest | ChatRequest,
        params: SamplingParams,
        prompts: Prompts,
        form: Callable[[Backend, Sequence[list[int]]], Awaitable[Form]],
        request: Request,
    ) -> Response:
        state = request.state
        state.user = body.user
        key, wanted = _placed(request, body.user)
        with self._lineup.pick(body.model, key, wanted) as (version, engine):
            state.version = version
            ids = await prompts(engine)
            of = span_of(request), meter_of(request)
            job = Job(body, params, ids, await form(engine, ids), state.request_id, state.tenant.cache_salt, *of)
            if (shadow := self._lineup.traffic.copies(key)) is not None and shadow != version:
                copy = Copy(prompts, params, job.cache_salt)
                job.on_end = copy.end
                self._shadow.begin(self._lineup.version(shadow), copy)
            try:
                return await respond(engine, job, request)
            except BaseException:  # refused, or nobody waits: the copy must not wait either
                if job.on_end:
                    job.on_end({})
                raise


def _placed(request: Request, user: str | None = None) -> tuple[str, str]:
    """A request's key among versions, and the version that it asks for.

    One user's requests have one key: their conversations stay where their prefixes are cached.
    """
    tenant = request.state.tenant.name
    key = f"{tenant}\0{user}" if user is not None else request.state.request_id
    return key, request.headers.get(VERSION_HEADER, "")


def _short(param: str, engine: Backend, ids: list[int]) -> list[int]:
    """Token ids, unless they are so many that no use could be made of them: before they are sent to the engine."""
    limit = engine.facts.max_model_len
    if len(ids) > limit:
        message = f"{param} has {len(ids)} tokens; max_model_len is {limit}"
        raise APIError(400, message, param=param, code="context_length_exceeded")
    return ids


async def _ids(engine: Backend, text: str, **options: Any) -> list[int]:
    options["max_model_len"] = engine.facts.max_model_len
    return list(await _tokenizing("prompt", engine.tokenizer.encode, text, **options))


async def _chat_ids(
    engine: Backend, messages: Sequence[Message], tools: Sequence[dict[str, Any]], **variables: Any
) -> list[int]:
    options = variables | {"max_model_len": engine.facts.max_model_len}
    return list(await _tokenizing("messages", _encode_chat, engine.tokenizer, turns(messages), tools, options))


def _encode_chat(
    tokenizer: Tokenizer,
    messages: list[dict[str, Any]],
    tools: Sequence[dict[str, Any]],
    variables: dict[str, Any],
) -> list[int]:
    if tokenizer.chat_template is not None:
        told, shown = for_template(tokenizer.chat_template, messages, tools)
        return tokenizer.encode_chat(told, tools=shown, **variables)
    return tokenizer.encode_chat(messages, **variables)


async def _shown(tokenizer: Tokenizer, prompt: str | list[int]) -> str:
    if isinstance(prompt, str):
        return prompt
    return str(await _tokenizing("prompt", tokenizer.decode, prompt, skip_special_tokens=False))


async def _tokenizing(param: str, work: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """In a thread: a long text must not hold up everybody's streams."""
    try:
        return await asyncio.to_thread(work, *given, **options)
    except MiniserveError as error:
        code = "context_length_exceeded" if "max_model_len" in str(error) else "invalid_value"
        raise APIError(400, str(error), param=param, code=code) from error
