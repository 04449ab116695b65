"""`DynamoWorker`: the engine as a backend of NVIDIA Dynamo. The module that touches Dynamo.

Dynamo's frontend finds the worker, makes token ids of text and text of token ids, chooses among workers and goes on
elsewhere when one dies. The worker has an engine in a process of its own (`EngineClient`) and does three things with
it: it passes requests and tokens, in one of three roles; it tells the router what the engine has cached and how busy it
is; and it ends in order, when what it has left for peers has been fetched.

Roles: aggregated workers compute whole requests. A prefill worker computes a prompt and one token, and keeps its KV
until it has been fetched or its time is up; a decode worker fetches it and goes on behind that token. Where KV cannot
be had the decode worker computes it: that costs time and no token.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynamo.common.backend import EngineConfig, LLMEngine, LlmRegistration, WorkerConfig
from dynamo.common.backend.health_check import build_health_check_payload, is_probe
from dynamo.common.backend.publisher import ComponentSnapshot, PushSource
from dynamo.common.backend.worker import Worker
from dynamo.common.constants import DisaggregationMode
from dynamo.common.utils.namespace import get_worker_namespace
from dynamo.llm.exceptions import Disconnected, InvalidArgument

from miniserve.core.sampling_params import SamplingParams
from miniserve.dynamo.handoff import Handoff
from miniserve.dynamo.kv_events import CacheTeller
from miniserve.dynamo.replies import logprobs, usage
from miniserve.dynamo.requests import params_of
from miniserve.errors import InvalidRequestError
from miniserve.server.engine_client import EngineClient
from miniserve.server.errors import APIError
from miniserve.server.messages import Cached
from miniserve.server.reply import Reply

LOOK_S = 0.25  # between two looks at how busy the engine is
LEASE_S = 10.0  # a process that Dynamo does not hear of for so long is taken out of the deployment

logger = logging.getLogger(__name__)


class DynamoWorker(LLMEngine):  # type: ignore[misc]
    """Of one engine; Dynamo's `Worker` calls it.

    Args:
        client: the engine's process; not started yet.
        directory: what a frontend reads of the model.
        name: what requests call it.
        mode: the role.
    """

    def __init__(self, client: EngineClient, directory: Path, name: str, mode: DisaggregationMode) -> None:
        self._client, self._directory, self._name, self._mode = client, directory, name, mode
        self._open: dict[str, Reply] = {}
        self._teller: CacheTeller | None = None
        self._before: list[Cached] = []  # what the engine said before there was anybody to tell
        self._snapshots: Any = None
        self._looking: asyncio.Task[None] | None = None
        client.on_cached = self._note

    # The worker's life.

    @classmethod
    async def from_args(cls, argv: list[str] | None = None) -> tuple["DynamoWorker", WorkerConfig]:
        """Of `LLMEngine`: how Dynamo's own start would make one. Ours is `serve`, with the options of our commands."""
        raise InvalidRequestError(f"start the worker by python -m miniserve.dynamo, not with {argv}")

    async def start(self, worker_id: int) -> EngineConfig:  # noqa: ARG002
        """Of `LLMEngine`: load the model."""
        await self._client.start()
        self._looking = asyncio.create_task(self._look())
        facts = self._client.facts
        logger.info("miniserve is ready: %s", facts.description)
        return EngineConfig(
            model=str(self._directory),
            served_model_name=self._name,
            llm=LlmRegistration(
                context_length=facts.max_model_len,
                kv_cache_block_size=facts.block_size,
                total_kv_blocks=facts.num_blocks,
                max_num_seqs=facts.max_num_seqs,
                max_num_batched_tokens=facts.max_num_batched_tokens,
            ),
        )

    async def is_quiescent(self) -> bool:
        """Of `LLMEngine`: nothing is computed, and nothing waits to be fetched."""
        (state,) = await self._client.reports()
        moves = state.report.moves if state.report else None
        return not self._open and not (moves and moves.held)

    async def cleanup(self) -> None:
        """Of `LLMEngine`."""
        if self._looking:
            self._looking.cancel()
            self._looking = None
            await self._client.stop()

    # What the router hears.

    async def kv_event_sources(self) -> list[PushSource]:
        """Of `LLMEngine`."""
        return [PushSource(on_ready=self._tell_all, dp_rank=0)]

    def component_metrics_dp_ranks(self) -> list[int]:
        """Of `LLMEngine`."""
        return [0]

    def attach_snapshot_publisher(self, publisher: Any) -> None:
        """Of `LLMEngine`."""
        self._snapshots = publisher

    async def health_check_payload(self) -> dict[str, Any]:
        """Of `LLMEngine`: the shortest request there is."""
        token = min(self._client.tokenizer.eos_token_ids, default=0)
        payload: dict[str, Any] = build_health_check_payload(bos_token_id=token)
        return payload

    def _tell_all(self, publisher: Any) -> None:
        self._teller = CacheTeller(publisher)
        for cached in self._before:
            self._teller.tell(cached.events, from_nothing=cached.from_nothing)
        self._before.clear()

    def _note(self, cached: Cached) -> None:
        if self._teller:
            self._teller.tell(cached.events, from_nothing=cached.from_nothing)
        else:
            self._before.append(cached)

    async def _look(self) -> None:
        """Now and then say how busy the engine is.

        Who was stopped for longer than the lease has been forgotten, and is not taken in again: it ends, for whoever
        looks after it to start another.
        """
        heard_s = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_S)
            before_s, heard_s = heard_s, time.monotonic()
            if heard_s - before_s > LEASE_S:
                logger.error("the worker stood still for %.0f s, and ends: it has been forgotten", heard_s - before_s)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            (state,) = await self._client.reports()
            if self._snapshots and state.report:
                used = state.num_blocks - state.report.num_free_blocks
                self._snapshots.publish(
                    0,
                    ComponentSnapshot(
                        kv_used_blocks=used,
                        kv_total_blocks=state.num_blocks,
                        gpu_cache_usage=used / state.num_blocks,
                        dp_rank=0,
                        kv_cache_hit_rate=state.report.metrics.hit_rate,
                    ),
                )

    # Requests.

    async def generate(self, request: Mapping[str, Any], context: Any) -> AsyncGenerator[dict[str, Any], None]:
        """Of `LLMEngine`: the request's tokens as they come."""
        try:
            params = params_of(request, self._client.tokenizer.eos_token_ids)
            chunks = self._computed(list(request["token_ids"]), params, context.id())
            if not is_probe(request):
                if self._mode is DisaggregationMode.PREFILL:
                    chunks = self._begun(list(request["token_ids"]), params, context.id())
                elif self._mode is DisaggregationMode.DECODE:
                    result = (request.get("prefill_result") or {}).get("disaggregated_params")
                    before = Handoff.from_json(result)
                    chunks = self._computed(list(request["token_ids"]), params, context.id(), before)
            async for chunk in chunks:
                yield chunk
        except InvalidRequestError as error:
            raise InvalidArgument(str(error)) from error
        except APIError as error:
            raise Disconnected(str(error)) from error  # the frontend goes on with another worker

    async def abort(self, context: Any) -> None:
        """Of `LLMEngine`: the client has gone."""
        if reply := self._open.get(context.id()):
            reply.close()

    async def _computed(
        self, prompt: list[int], params: SamplingParams, name: str, before: Handoff | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
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

    async def _begun(
        self, prompt: list[int], params: SamplingParams, name: str
    ) -> AsyncGenerator[dict[str, Any], None]:
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


def serve(client: EngineClient, directory: Path, name: str, mode: str, **placement: Any) -> None:
    """Serve until a signal ends it.

    Args:
        client: not started yet.
        directory, name: of the model.
        mode: "agg", "prefill" or "decode".
        placement: what Dynamo's `WorkerConfig` takes of where the worker is found.
    """
    role = DisaggregationMode(mode)
    placement["namespace"] = get_worker_namespace(placement["namespace"])  # as an operator's environment has it
    placement["component"] = placement["component"] or ("prefill" if role is DisaggregationMode.PREFILL else "backend")
    config = WorkerConfig(
        model_name=str(directory), served_model_name=name, disaggregation_mode=role, endpoint="generate", **placement
    )
    asyncio.run(Worker(DynamoWorker(client, directory, name, role), config).run())
