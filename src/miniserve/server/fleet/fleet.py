"""`Fleet`: several engine processes behind one API, some for prompts, some for what follows.

A long prompt is computed by a prefill engine, which also chooses the first token, so that this is shown at once. Then
the request moves: its KV goes to the decode engine that is to go on, engine to engine, while both compute. Short
prompts, and those that are mostly cached where they will be decoded, stay there (`Disaggregation`). Which engine of a
kind takes a request a `Router` says.

An output needs nothing but its tokens to go on elsewhere: its seed is fixed here, and whatever else decides its next
token (penalties, grammar, stop strings, limits) follows from what has come. So an engine that dies costs its outputs
time, not tokens: each goes on in another engine, computed again from its tokens, or in the same one once it is back.
An engine of either kind can do the other's work, and does while the other kind is down.

It lives in the server's process: that holds the clients' connections, and when it ends its pipes close, whereupon every
engine ends. A router beside it would be one more process whose death has to be thought of, and save nothing: its work
is a few microseconds a token.

Invariants: a token is passed on once, in order; a reply that is closed ends everything that was done for it, in every
engine. Single-threaded, on one event loop.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count

from miniserve.core.disaggregation import Disaggregation
from miniserve.core.routing import KVAware, Router
from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import InvalidRequestError
from miniserve.model.tokenizer.tokenizer import Tokenizer
from miniserve.server.backend import EngineReport, check_room, delete_everywhere
from miniserve.server.engine_client import EngineClient
from miniserve.server.errors import APIError, unavailable
from miniserve.server.fleet.journey import Journey
from miniserve.server.fleet.launcher import Launcher
from miniserve.server.fleet.member import Member
from miniserve.server.fleet.output import Output
from miniserve.server.fleet.pools import Pools
from miniserve.server.messages import Facts
from miniserve.server.reply import Reply
from miniserve.server.view.records import EngineState, Update


class Fleet:
    """A `Backend` of prefill and decode engines.

    Args:
        prefill, decode: their processes, not started; at least one that decodes.
        max_waiting: how many outputs may wait beyond those that decode engines compute at once.
        rule: which prompts are computed apart.
        prefill_router, decode_router: choose among engines of a kind.
        launcher: has engines come and go; None: they are as many as they are.
    """

    def __init__(
        self,
        prefill: Sequence[EngineClient],
        decode: Sequence[EngineClient],
        *,
        max_waiting: int,
        rule: Disaggregation | None = None,
        prefill_router: Router | None = None,
        decode_router: Router | None = None,
        launcher: Launcher | None = None,
    ) -> None:
        if not decode:
            raise InvalidRequestError("a fleet has no engine that decodes: it needs one at least")
        self._pools = Pools(
            [Member(f"prefill {index}", client) for index, client in enumerate(prefill)],
            [Member(f"decode {index}", client) for index, client in enumerate(decode)],
            rule or Disaggregation(), prefill_router or KVAware(), decode_router or KVAware(),
        )  # fmt: skip
        self._max_waiting, self._launcher, self._watched = max_waiting, launcher, False
        self._launching: asyncio.Task[None] | None = None
        self.draining = False
        self.on_update: Callable[[Update], None] = lambda _: None
        self._replies: dict[Reply, list[asyncio.Task[None]]] = {}
        self._keys = count()
        for member in self.members:
            member.client.on_update = partial(self._note_update, member.name)

    @property
    def members(self) -> list[Member]:
        """All engines, those for prompts first."""
        return [*self._pools.prefill, *self._pools.decode]

    @property
    def facts(self) -> Facts:
        """Of one engine, as all are alike; only the line for people is the fleet's."""
        pools, facts = self._pools, self._pools.decode[0].client.facts
        kinds = f"engines for prefill: {len(pools.prefill)}, for decode: {len(pools.decode)}"
        return facts._replace(description=f"{facts.description}; {kinds}")

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self._pools.decode[0].client.tokenizer

    @property
    def ready(self) -> bool:
        """Whether requests are taken: by one engine at least."""
        return not self.draining and any(member.client.ready for member in self.members)

    @property
    def num_open(self) -> int:
        """Outputs that have not ended."""
        return sum(reply.num_open for reply in self._replies)

    @property
    def num_restarts(self) -> int:
        """Of all engines together."""
        return sum(member.client.num_restarts for member in self.members)

    @property
    def states(self) -> list[EngineState]:
        """How each engine is, as those who watch are told."""
        return [EngineState(each.name, each.client.ready, each.client.num_restarts) for each in self.members]

    def check_ready(self) -> None:
        """Raise an APIError of 503 unless requests are taken."""
        if not self.ready:
            raise unavailable("the server is shutting down" if self.draining else "every engine is starting")

    async def start(self) -> None:
        """Start all engines, at the same time. Raises MiniserveError: one could not be."""
        for outcome in await asyncio.gather(
            *(member.client.start() for member in self.members), return_exceptions=True
        ):
            if outcome is not None:
                raise outcome
        if self._launcher:
            self._launching = asyncio.create_task(self._launcher.run(self._pools, self._join))

    async def _join(self, member: Member, pool: list[Member]) -> None:
        """Start one more engine; it is among the others when it takes requests. Raises MiniserveError."""
        member.client.on_update = partial(self._note_update, member.name)
        member.client.watch(self._watched)
        await member.client.start()
        pool.append(member)

    async def stop(self) -> None:
        """End all engines; what is still open fails."""
        self.draining = True
        self.fail_all(unavailable("the server is shutting down"))
        if self._launcher and self._launching:
            self._launching.cancel()
            await self._launcher.stop()
        await asyncio.gather(*(member.client.stop() for member in self.members))

    async def submit(self, prompts: Sequence[Sequence[int]], params: SamplingParams, *, cache_salt: str = "") -> Reply:
        """Have prompts continued; returns once engines have accepted all of them. See `EngineClient.submit`.

        The other outputs of a prompt begin when its first is where it is decoded: they find its KV there.
        """
        self.check_ready()
        limit = sum(member.client.facts.max_num_seqs for member in self._pools.decode) + self._max_waiting
        choices = check_room(len(prompts), params.n, self.num_open, limit)
        reply = Reply(next(self._keys), choices, lambda: self._forget(reply))
        left = len(prompts)

        def accepted() -> None:
            nonlocal left
            left -= 1
            if not left:
                reply.accept()

        self._replies[reply] = [
            asyncio.create_task(
                self._travel(
                    _outputs(f"{reply.key}.{index}", prompt, params, cache_salt, index * params.n), reply, accepted
                )
            )
            for index, prompt in enumerate(prompts)
        ]
        try:
            await reply.accepted
        except BaseException:
            reply.close()
            raise
        return reply

    def fail_all(self, error: APIError) -> None:
        """End everything that is open with an error."""
        for reply, tasks in self._replies.items():
            reply.fail(error)
            for task in tasks:
                task.cancel()

    async def reports(self) -> list[EngineReport]:
        """How each engine is."""
        members = self.members  # engines may come and go meanwhile
        several = await asyncio.gather(*(member.client.reports() for member in members))
        return [report._replace(name=member.name) for member, (report,) in zip(members, several, strict=True)]

    async def delete_kv(self, cache_salt: str) -> dict[str, int]:
        """Have every engine forget a tenant's KV. A request that is on its way to another is a new one there."""
        return await delete_everywhere((member.client for member in self.members), cache_salt)

    def watch(self, on: bool) -> None:
        """Have every engine send updates, or no more."""
        self._watched = on
        for member in self.members:
            member.client.watch(on)

    def _note_update(self, name: str, update: Update) -> None:
        update.engine = name
        self.on_update(update)

    def _forget(self, reply: Reply) -> None:
        """A reply is closed."""
        for task in self._replies.pop(reply, ()):
            task.cancel()

    async def _travel(self, outputs: Sequence[Output], reply: Reply, on_accepted: Callable[[], None]) -> None:
        """Compute the outputs of one prompt: the first, then, beside it, the others."""
        first, *others = outputs
        journey = Journey(first, self._pools, reply, on_accepted)
        async with asyncio.TaskGroup() as group:
            group.create_task(journey.run())
            await journey.has_settled.wait()
            for output in others:
                group.create_task(Journey(output, self._pools, reply, lambda: None).run())


def _outputs(name: str, prompt: Sequence[int], params: SamplingParams, cache_salt: str, first: int) -> list[Output]:
    """Of one prompt, named after it and counted from `first`; what is drawn in them is settled here."""
    if params.seed is None:
        params = replace(params, seed=secrets.randbits(63))
    names = [name] if params.n == 1 else [f"{name}/{index}" for index in range(params.n)]
    return [
        Output(names[index], first + index, list(prompt), replace(params, n=1, seed=params.seed_of(index)), cache_salt)
        for index in range(params.n)
    ]
