"""`Answers`: requests that a worker computes, in its role, as the chunks that Dynamo's frontend takes. Without Dynamo.

Roles: aggregated workers ("agg") compute whole requests. A "prefill" worker computes a prompt and one token, and keeps
its KV until it has been fetched or its time is up; a "decode" worker fetches it and goes on behind that token. Where KV
cannot be had the decode worker computes it: that costs time and no token.

A request is open until its last chunk is out, or whoever takes the chunks has left.
"""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Any, Literal

from miniserve.core.sampling_params import SamplingParams
from miniserve.dynamo.handoff import Handoff
from miniserve.dynamo.replies import logprobs, usage
from miniserve.dynamo.requests import params_of
from miniserve.server.engine_client import EngineClient
from miniserve.server.reply import Reply

Role = Literal["agg", "prefill", "decode"]
Chunks = AsyncGenerator[dict[str, Any], None]


class Answers:
    """Of one worker.

    Args:
        client: of its engine.
        role: what is computed of a request.
    """

    def __init__(self, client: EngineClient, role: Role) -> None:
        self._client, self._role = client, role
        self._open: dict[str, Reply] = {}

    @property
    def are_open(self) -> bool:
        """Whether any request is."""
        return bool(self._open)

    def to(self, request: Mapping[str, Any], name: str, *, whole: bool = False) -> Chunks:
        """A request's chunks, as they come.

        Args:
            request: as Dynamo's frontend sends it.
            name: by which it can be aborted.
            whole: whatever the role: a check of the worker's health is.

        Raises:
            InvalidRequestError: here, or while they come: something in it is not supported.
            APIError: while they come: the engine cannot.
        """
        prompt, params = list(request["token_ids"]), params_of(request, self._client.tokenizer.eos_token_ids)
        if whole or self._role == "agg":
            return self._computed(prompt, params, name)
        if self._role == "prefill":
            return self._begun(prompt, params, name)
        before = Handoff.from_json((request.get("prefill_result") or {}).get("disaggregated_params"))
        return self._computed(prompt, params, name, before)

    def abort(self, name: str) -> None:
        """The client has gone."""
        if reply := self._open.get(name):
            reply.close()

    async def _computed(
        self, prompt: list[int], params: SamplingParams, name: str, before: Handoff | None = None
    ) -> Chunks:
        """All of a request, or what follows the token of a prefill worker."""
        prior, offer = ((before.token,), before.offer) if before else ((), None)
        count, cached = len(prior), before.num_cached if before else 0
        if before:
            yield {"token_ids": [before.token], "index": 0, **before.logprobs}
        with await self._client.submit([prompt], params, prior=prior, offer=offer) as reply:
            self._open[name] = reply
            try:
                async for piece in reply:
                    count += len(piece.tokens)
                    cached = cached if before else piece.num_cached
                    chunk: dict[str, Any] = {"token_ids": piece.tokens, "index": 0, **logprobs(piece)}
                    if reason := piece.finish_reason:
                        chunk["finish_reason"] = "cancelled" if reason == "abort" else reason
                        chunk["completion_usage"] = usage(prompt, count, cached)
                    yield chunk
            finally:
                del self._open[name]

    async def _begun(self, prompt: list[int], params: SamplingParams, name: str) -> Chunks:
        """A prompt and one token, in one chunk, as the frontend looks at one only.

        It asks for one token; a request that ends with it would leave nothing behind, so the engine is asked for more.
        """
        params = replace(params, max_tokens=2, min_tokens=min(params.min_tokens, 2))
        reply = self._open[name] = await self._client.submit([prompt], params, moves=True)
        try:
            token, told = -1, dict[str, Any]()
            async for piece in reply:
                if piece.tokens:
                    (token,), told = piece.tokens, logprobs(piece)
                if reason := piece.finish_reason:
                    chunk = {"token_ids": [token], "index": 0, "finish_reason": reason, **told}
                    if reason == "moved":
                        handoff = Handoff.of(token, piece.offer, piece.num_cached, told)
                        chunk |= {"finish_reason": "length", "disaggregated_params": handoff.to_json()}
                        reply.leave()
                    yield chunk | {"completion_usage": usage(prompt, 1, piece.num_cached)}
        finally:
            del self._open[name]
            reply.close()
