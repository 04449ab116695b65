"""The admin API: which versions there are, who gets which, whose KV is deleted. Behind keys of its own; every order is
in the audit log.

An order is written down before it is carried out, and again with what became of it: what cannot be written down is not
done. Orders that change traffic take effect at once, for the next request.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from fastapi import FastAPI, Request
from pydantic import Field

from miniserve.errors import InvalidRequestError, MiniserveError
from miniserve.server.access import Access
from miniserve.server.errors import ADMIN_PREFIX, APIError
from miniserve.server.openapi import KEY
from miniserve.server.rollout.lineup import Lineup
from miniserve.server.rollout.shadow import Shadow
from miniserve.server.rollout.traffic import Traffic
from miniserve.server.rollout.version import Version
from miniserve.server.strict import Strict


class Log(Protocol):
    """Where orders are written down."""

    def append(self, who: str, what: str, /, **details: Any) -> Any:
        """Write one line, for good. Raises MiniserveError: it cannot be."""
        ...


@dataclass(frozen=True)
class Control:
    """Who may give orders, and where they are written down."""

    access: Access
    log: Log


class TrafficOrder(Strict):
    """Who is to get traffic beside the stable version; what is left out gets none."""

    canary: str | None = Field(None, description="The version on trial.")
    weight: float = Field(0.0, description="The share of requests that the canary answers, 0 to 1.")
    shadow: str | None = Field(None, description="The version that computes copies.")
    shadow_share: float = Field(1.0, description="The share of requests that are copied, 0 to 1.")


class VersionOrder(Strict):
    """Names a version."""

    version: str


def add_admin(app: FastAPI, lineup: Lineup, shadow: Shadow, log: Log, tenants: Access) -> None:
    """Add the routes. `tenants`: whose KV may be deleted."""

    async def carry_out(request: Request, what: str, work: Callable[[], Awaitable[Any]], **details: Any) -> Any:
        async def note(what: str, **more: Any) -> None:
            try:
                await asyncio.to_thread(
                    log.append, request.state.tenant.name, f"rollout.{what}", model=lineup.model, **details, **more
                )
            except MiniserveError as error:
                raise APIError(500, str(error), code="audit_log") from error

        await note(what)
        try:
            await work()
        except (APIError, MiniserveError) as error:
            await note(f"{what}: refused", reason=str(error))
            if isinstance(error, APIError):
                raise
            raise APIError(
                400 if isinstance(error, InvalidRequestError) else 409, str(error), code="refused"
            ) from error
        await note(f"{what}: done")
        return _state(lineup, shadow)

    async def versions() -> Any:
        """Every version, its state, and who gets traffic."""
        lineup.look()
        return _state(lineup, shadow)

    async def load(version: str, request: Request) -> Any:
        """Load a version and have it pass the smoke evaluation. Answers when it has, or has not."""
        return await carry_out(request, "load", lambda: lineup.load(version), version=version)

    async def unload(version: str, request: Request) -> Any:
        """Let a version that gets no traffic end what it has, then end it."""
        return await carry_out(request, "unload", lambda: lineup.unload(version), version=version)

    async def traffic(order: TrafficOrder, request: Request) -> Any:
        """Send a share of requests to a canary, copies to a shadow, or neither."""

        async def work() -> None:
            now = lineup.traffic  # not before: a rollback may have come while the order was written down
            lineup.direct(Traffic(now.stable, **order.model_dump(), previous=now.previous))

        return await carry_out(request, "traffic", work, **order.model_dump())

    async def promote(order: VersionOrder, request: Request) -> Any:
        """Make a version the stable one. The one before stays loaded: a rollback goes there."""

        async def work() -> None:
            lineup.direct(lineup.traffic.promoted(order.version))

        return await carry_out(request, "promote", work, version=order.version)

    async def rollback(request: Request) -> Any:
        """Take the canary back; if there is none, the last promotion."""

        async def work() -> None:
            lineup.direct(lineup.traffic.rolled_back())

        return await carry_out(request, "rollback", work)

    async def delete_kv(name: str, request: Request) -> Any:
        """Delete a tenant's KV, on devices, in memory and on disk. Answers when it is gone: how many blocks it was."""
        deleted: dict[str, int] = {}

        async def work() -> None:
            deleted.update(await lineup.delete_kv(tenants.named(name).cache_salt))

        await carry_out(request, "delete_kv", work, tenant=name)
        return {"tenant": name, "deleted_blocks": deleted}

    for method, path, route in (
        ("GET", "/versions", versions),
        ("POST", "/versions/{version}/load", load),
        ("POST", "/versions/{version}/unload", unload),
        ("PUT", "/traffic", traffic),
        ("POST", "/promote", promote),
        ("POST", "/rollback", rollback),
        ("DELETE", "/tenants/{name}/kv", delete_kv),
    ):
        app.add_api_route(ADMIN_PREFIX + path, route, methods=[method], dependencies=[KEY])


def _state(lineup: Lineup, shadow: Shadow) -> dict[str, Any]:
    return {
        "model": lineup.model,
        "traffic": asdict(lineup.traffic),
        "versions": [_shown(version, shadow) for version in lineup.versions],
    }


def _shown(version: Version, shadow: Shadow) -> dict[str, Any]:
    counts = shadow.counts.get(version.name)
    return {
        "version": version.name,
        "state": version.state,
        "reason": version.reason or None,
        "open": version.num_open,
        "load_seconds": round(version.seconds, 3),
        "copies": asdict(counts) if counts else None,
    }
