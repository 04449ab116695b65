"""What each tenant has used, and its part of what the server costs.

The rule: what the server costs while it runs is shared out as the engines' time is, idle time included. A step's time
is shared out by the tokens that the step computed (see `core.times.Times`). So who asks when nobody else does pays
for the whole step, who finds a prompt in the cache does not pay for computing it, and shares are together the whole.

Its limits: a token behind a long context counts as one behind a short one; who shares a step with somebody's long
prompt waits for it and pays nothing for that; requests count when they have ended; what nobody asked for, such as
copies for a shadow, is in nobody's share, so that all pay for it.
"""

import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request

from miniserve.server.errors import ADMIN_PREFIX
from miniserve.server.monitor.ledger import Account, Ledger
from miniserve.server.openapi import KEY


def shares(spent_s: Mapping[str, float]) -> dict[str, float]:
    """Each one's part of the time, 0 to 1; of nothing, nobody has any."""
    total = math.fsum(spent_s.values())
    return {name: seconds / total if total else 0.0 for name, seconds in spent_s.items()}


def usage(ledger: Ledger, tenant: str | None = None) -> dict[str, Any]:
    """As `/usage` shows it, in JSON's types.

    Args:
        ledger: what is known.
        tenant: the only one to show; None: all.
    """
    accounts = ledger.by_tenant()
    parts = shares({name: account.spent_s for name, account in accounts.items()})
    hours = ledger.seconds / 3600
    cost = None if ledger.price_per_hour is None else ledger.price_per_hour * hours
    shown = accounts if tenant is None else {tenant: accounts.get(tenant, Account())}
    return {
        "since": int(ledger.started_s),
        "seconds": ledger.seconds,
        "price_per_hour": ledger.price_per_hour,
        "tenants": {
            name: _shown(account) | ({} if cost is None else {"cost": cost * parts.get(name, 0.0)})
            for name, account in shown.items()
        },
    }


def _shown(account: Account) -> dict[str, Any]:
    return {
        "requests": dict(account.requests),
        "prompt_tokens": account.prompt_tokens,
        "cached_tokens": account.cached_tokens,
        "output_tokens": account.output_tokens,
        "engine_seconds": account.spent_s,
    }


def add_usage(app: FastAPI, ledger: Ledger, *, for_admins: bool) -> None:
    """Add the routes: each tenant sees its own, and admins, if there are any, everybody's."""

    async def own(request: Request) -> dict[str, Any]:
        """What this key's tenant has used since the server started."""
        return usage(ledger, request.state.tenant.name)

    async def everybodys() -> dict[str, Any]:
        """What every tenant has used since the server started."""
        return usage(ledger)

    app.add_api_route("/usage", own, dependencies=[KEY])
    if for_admins:
        app.add_api_route(f"{ADMIN_PREFIX}/usage", everybodys, dependencies=[KEY])
