"""What is said of several engines to `miniserve serve`: how many, of what kind, and who chooses among them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from miniserve.cli.engine_options import EngineOptions
from miniserve.core.disaggregation import MIN_TOKENS, Disaggregation
from miniserve.core.routing import ROUTERS
from miniserve.core.scaling import Counts, Planner
from miniserve.errors import InvalidRequestError

if TYPE_CHECKING:
    from miniserve.server.backend import Backend


@dataclass(frozen=True, kw_only=True)
class FleetOptions:
    """The table."""

    prefill: Annotated[
        str, typer.Option(help="Engines that compute prompts alone, apart from those that decode: N, or LOW-HIGH.")
    ] = "0"
    decode: Annotated[str, typer.Option(help="Engines that decode, N or LOW-HIGH; with --prefill 0 they do all.")] = "1"
    capacity: Annotated[
        str | None,
        typer.Option(help="Of one engine, for LOW-HIGH: prompt tokens/s, outputs at once, ms a token: 2000:8:40."),
    ] = None
    plan_seconds: Annotated[
        float, typer.Option(help="How often it is planned how many of LOW-HIGH engines run.", min=0.1)
    ] = 30.0
    prefill_from: Annotated[
        int, typer.Option(help="A prompt with fewer tokens to compute stays where it is decoded.", min=0)
    ] = MIN_TOKENS
    router: Annotated[
        str, typer.Option(help="Who of several engines gets a request: round-robin, least-loaded or kv-aware.")
    ] = "kv-aware"
    transfer: Annotated[str, typer.Option(help="How KV moves: shared-memory or nixl.")] = "shared-memory"

    def maker(self, engine: EngineOptions, max_waiting: int) -> "Callable[[str], Backend]":
        """What makes the engine of a model, or the fleet, not started.

        Args:
            engine: each of them.
            max_waiting: outputs that may wait.

        Raises:
            InvalidRequestError: the table says something that cannot be.
        """
        from miniserve.hardware.this_machine import num_cores
        from miniserve.server.engine_client import EngineClient
        from miniserve.server.fleet.fleet import Fleet
        from miniserve.server.fleet.launcher import Launcher, parse_capacity, parse_range

        if self.router not in ROUTERS:
            raise InvalidRequestError(f"router '{self.router}' is not one of {', '.join(ROUTERS)}")
        (few_prefill, most_prefill), (few_decode, most_decode) = (
            parse_range(self.prefill, 0),
            parse_range(self.decode, 1),
        )
        least, most = Counts(few_prefill, few_decode), Counts(most_prefill, most_decode)
        engines = sum(most)
        if (least != most) != (self.capacity is not None):
            message = "a number of engines from LOW to HIGH goes with --capacity: what one of them can do"
            raise InvalidRequestError(message)
        if engines > 1 and engine.kv_cache_mib is None:
            message = f"{engines} engines share the memory: --kv-cache-mib must say how much each may take"
            raise InvalidRequestError(message)
        if engines > 1 and engine.threads is None:
            engine = replace(engine, threads=max(num_cores() // engines, 1))
        # Of a fleet any engine may have to take all that the fleet takes.
        own = max_waiting if engines == 1 else max_waiting + most.decode * engine.max_num_seqs
        one = parse_capacity(self.capacity) if self.capacity is not None else None

        def make(model: str) -> "Backend":
            opener = engine.opener(model, moves=self.transfer if engines > 1 else None)

            def client() -> EngineClient:
                return EngineClient(opener, max_waiting=own, silence_s=engine.silence_seconds)

            if engines == 1:
                return client()
            return Fleet(
                [client() for _ in range(least.prefill)],
                [client() for _ in range(least.decode)],
                max_waiting=max_waiting,
                rule=Disaggregation(self.prefill_from),
                prefill_router=ROUTERS[self.router](),
                decode_router=ROUTERS[self.router](),
                launcher=Launcher(Planner(lambda _: one, least, most), client, self.plan_seconds) if one else None,
            )

        return make
