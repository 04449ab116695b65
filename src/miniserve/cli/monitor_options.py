"""What is said to `miniserve serve` of how well and at what price it serves: what `/metrics` and `/usage` judge by."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from miniserve.errors import InvalidRequestError

if TYPE_CHECKING:
    from miniserve.server.monitor.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class MonitorOptions:
    """The table."""

    slo: Annotated[
        str | None, typer.Option(help="Limits in ms of ttft, itl, tpot, e2e: /metrics counts who met them.")
    ] = None
    price_per_hour: Annotated[
        float | None, typer.Option(help="Of all that the server runs on; /usage shares it out among tenants.")
    ] = None

    def ledger(self) -> "Ledger":
        """Where requests are counted.

        Raises:
            InvalidRequestError: the table says something that cannot be.
        """
        from miniserve.server.monitor.ledger import Ledger
        from miniserve.workloads.service import SLO

        price = self.price_per_hour
        if price is not None and not 0 <= price < math.inf:
            raise InvalidRequestError(f"price_per_hour is {price}: it must be a number of at least 0")
        return Ledger(SLO.parse(self.slo) if self.slo is not None else None, price)
