"""`Instance`: one engine of a simulated cluster: the real `Engine` and `Scheduler` over a `SimulatedDevice`.

Its clock is set by whoever drives it: to the present when a request comes, and through a step to the step's end. A step
is computed when it begins, so the instance may know of things that have not happened yet, as far as that step goes.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from miniserve.core.block_pool import BlockPool
from miniserve.core.connector import KVConnector
from miniserve.core.engine import Engine
from miniserve.core.hashing import BlockHash
from miniserve.core.request import Request
from miniserve.core.routing import Load
from miniserve.core.scheduler import Output, Scheduler
from miniserve.simulate.deployment import Deployment
from miniserve.simulate.device import SimulatedDevice, VirtualClock
from miniserve.simulate.storage import Delivered
from miniserve.simulate.tiers import Tiered

Connector = Delivered | Tiered


class Instance:
    """One engine.

    Args:
        name: for reports.
        deployment: what it runs on.
        horizon: see `SimulatedDevice`; None: no leaps.
        prefix_caching: whether prompts may share blocks.
        make_connector: given the clock, where KV comes from besides; no connector: from nowhere.

    Attributes:
        free_s: when the step in progress ends.
        busy_s: how long it has computed, its last step to its end.
        live: its requests.
        state: of the last step, for a `Timeline`: who waits, who runs, the share of KV blocks in use, whether it
            computes.
        slowdown: of its steps, for what goes wrong.
    """

    def __init__(
        self,
        name: str,
        deployment: Deployment,
        *,
        horizon: Callable[[], float] | None = None,
        prefix_caching: bool = True,
        make_connector: Callable[[VirtualClock], Connector | None] = lambda _: None,
    ) -> None:
        self.name, self.deployment = name, deployment
        self._horizon, self._prefix_caching, self._make_connector = horizon, prefix_caching, make_connector
        self.busy_s = self._ends_s = 0.0
        self.step_time = deployment.step_time
        self.slowdown = 1.0
        self.start()

    def start(self) -> None:
        """A new engine, with nothing cached."""
        self.clock, limits = VirtualClock(), self.deployment
        self.connector = self._make_connector(self.clock)
        self.device = SimulatedDevice(
            self.step_time, self.clock, horizon=self._until if self._horizon else None,
            max_num_batched_tokens=limits.max_num_batched_tokens,
        )  # fmt: skip
        connector: KVConnector | None = self.connector
        scheduler = Scheduler(
            BlockPool(limits.num_blocks, limits.block_size),
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            max_model_len=limits.max_model_len,
            prefix_caching=self._prefix_caching,
            connector=connector,
            proposer=self.device,
        )
        self.device.running = scheduler.running
        self.engine = Engine(scheduler, self.device, self.clock)
        self.free_s = -math.inf
        self.state = (0.0, 0.0, 0.0, 0.0)
        self.live: dict[str, Request] = {}
        self._prompt_tokens = 0  # of live requests without a token yet

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return self.engine.has_work

    @property
    def load(self) -> Load:
        """Of `EngineView`."""
        pool = self.engine.scheduler.pool
        waiting = self.engine.scheduler.num_waiting
        used = pool.num_blocks - pool.num_free + (self._prompt_tokens // pool.block_size if waiting else 0)
        return Load(self._prompt_tokens, used, len(self.live))

    @property
    def _used(self) -> float:
        """Share of the KV blocks."""
        pool = self.engine.scheduler.pool
        return 1 - pool.num_free / pool.num_blocks

    def origins(self, request: Request) -> Mapping[str, int]:
        """How many tokens of a request have come from each tier, by name."""
        return self.connector.origins(request) if isinstance(self.connector, Tiered) else {}

    def cached_blocks(self, hashes: Sequence[BlockHash]) -> int:
        """Of `EngineView`: on the device, and what follows in tiers of its own; what all share tells none apart."""
        found = len(self.engine.scheduler.pool.find(hashes))
        return found + self.connector.held(hashes[found:]) if isinstance(self.connector, Tiered) else found

    def submit(self, request: Request, now_s: float) -> None:
        """Queue a request. Raises InvalidRequestError if it can never fit."""
        self.clock.now_s = now_s
        self.engine.add_request(request)
        self.live[request.request_id] = request
        self._prompt_tokens += request.num_prompt_tokens

    def busy_until(self, now_s: float) -> float:
        """How long it had computed then; its last step, which may go on, began before."""
        return self.busy_s - max(0.0, self._ends_s - now_s)

    def step(self, now_s: float) -> list[Output]:
        """Compute a step that begins now: what came of it, at `device.ends_s`, and `free_s` is set.

        Where there is nothing to compute until a load has ended, it waits for that.
        """
        self.clock.now_s = now_s
        self.device.slowdown = self.slowdown
        used, scheduler = self._used, self.engine.scheduler
        outputs = self.engine.step()
        self.free_s = self._ends_s = self.clock.now_s
        self.busy_s += self.free_s - now_s
        ran = len(scheduler.running) + sum(output.finish_reason is not None for output in outputs)
        # Blocks are taken when a step begins and given back at its end: the more of the two is what was in use.
        self.state = (scheduler.num_waiting, ran, max(used, self._used), float(self.free_s > now_s))
        if self.free_s == now_s and self.connector and self.connector.next_s < math.inf:
            self.free_s = max(now_s, self.connector.next_s)
        for request, tokens, reason in outputs:
            if tokens and request.num_output_tokens == len(tokens):
                self._prompt_tokens -= request.num_prompt_tokens
            if reason is not None:
                del self.live[request.request_id]
        return outputs

    def _until(self) -> float:
        assert self._horizon is not None, "there are leaps only with a horizon"
        return min(self._horizon(), self.connector.next_s if self.connector else math.inf)
