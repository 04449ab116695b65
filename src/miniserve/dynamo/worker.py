"""`DynamoWorker`: the engine as a backend of NVIDIA Dynamo. The module that touches Dynamo.

Dynamo's frontend finds the worker, makes token ids of text and text of token ids, chooses among workers and goes on
elsewhere when one dies. The worker has an engine in a process of its own (`EngineClient`) and does three things with
it: it passes requests and tokens (answers.py); it tells the router what the engine has cached and how busy it
is; and it ends in order, when what it has left for peers has been fetched.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from dynamo.common.backend import EngineConfig, LLMEngine, LlmRegistration, WorkerConfig
from dynamo.common.backend.health_check import build_health_check_payload, is_probe
from dynamo.common.backend.publisher import ComponentSnapshot, PushSource
from dynamo.common.backend.worker import Worker
from dynamo.common.constants import DisaggregationMode
from dynamo.common.utils.namespace import get_worker_namespace
from dynamo.llm.exceptions import Disconnected, InvalidArgument

from miniserve.dynamo.answers import Answers, Role
from miniserve.dynamo.kv_events import CacheTeller
from miniserve.errors import InvalidRequestError
from miniserve.server.engine_client import EngineClient
from miniserve.server.errors import APIError
from miniserve.server.messages import Cached

LOOK_S = 0.25  # between two looks at how busy the engine is
LEASE_S = 10.0  # a process that Dynamo does not hear of for so long is taken out of the deployment

logger = logging.getLogger(__name__)


class DynamoWorker(LLMEngine):  # type: ignore[misc]
    """Of one engine; Dynamo's `Worker` calls it.

    Args:
        client: the engine's process; not started yet.
        directory: what a frontend reads of the model.
        name: what requests call it.
        role: what it computes of a request.
    """

    def __init__(self, client: EngineClient, directory: Path, name: str, role: Role) -> None:
        self._client, self._directory, self._name = client, directory, name
        self._answers = Answers(client, role)
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
        return not self._answers.are_open and not (moves and moves.held)

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
            async for chunk in self._answers.to(request, context.id(), whole=is_probe(request)):
                yield chunk
        except InvalidRequestError as error:
            raise InvalidArgument(str(error)) from error
        except APIError as error:
            raise Disconnected(str(error)) from error  # the frontend goes on with another worker

    async def abort(self, context: Any) -> None:
        """Of `LLMEngine`: the client has gone."""
        self._answers.abort(context.id())


def serve(client: EngineClient, directory: Path, name: str, role: Role, **placement: Any) -> None:
    """Serve until a signal ends it.

    Args:
        client: not started yet.
        directory, name: of the model.
        role: what it computes of a request.
        placement: what Dynamo's `WorkerConfig` takes of where the worker is found.
    """
    mode = DisaggregationMode(role)
    placement["namespace"] = get_worker_namespace(placement["namespace"])  # as an operator's environment has it
    placement["component"] = placement["component"] or ("prefill" if role == "prefill" else "backend")
    config = WorkerConfig(
        model_name=str(directory), served_model_name=name, disaggregation_mode=mode, endpoint="generate", **placement
    )
    asyncio.run(Worker(DynamoWorker(client, directory, name, role), config).run())
