"""The ledger as Prometheus reads it, beside the engines' series, under `miniserve:`.

Every series has the label `version`, "" for a model without versions. A tenant's name is a label for those only who may
know it; for others, tenants are together.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from miniserve.server.metrics import PREFIX, histogram
from miniserve.server.monitor.ledger import Account, Ledger


class _Counter(NamedTuple):
    name: str
    help: str
    field: str


COUNTERS = (
    _Counter("served_prompt_tokens", "Of prompts, the cached ones, too.", "prompt_tokens"),
    _Counter("served_cached_tokens", "Of prompts, that were not computed anew.", "cached_tokens"),
    _Counter("served_output_tokens", "Of outputs.", "output_tokens"),
    _Counter("served_engine_seconds", "Share of the engines' time, by tokens computed in each step.", "spent_s"),
)
JUDGED = (
    _Counter("slo_requests", "Requests that say something of the objective.", "judged"),
    _Counter("slo_good", "Of these, that met it.", "good"),
)


def served(ledger: Ledger, model: str, *, by_tenant: bool) -> Iterator[Metric]:
    """What requests came to.

    Args:
        ledger: what is known.
        model: the label `model_name`.
        by_tenant: whether each tenant has series of its own.
    """
    accounts: list[tuple[dict[str, str], Account]]
    if by_tenant:
        accounts = [({"tenant": tenant, "version": v}, account) for (tenant, v), account in ledger.accounts.items()]
    else:
        accounts = [({"version": version}, account) for version, account in ledger.by_version().items()]
    names = ["model_name", *(("tenant", "version") if by_tenant else ("version",))]
    requests = CounterMetricFamily(
        f"{PREFIX}served_requests", "Requests for output that ended, by class of status.", labels=[*names, "status"]
    )
    for labels, account in accounts:
        for status, number in account.requests.items():
            requests.add_metric([model, *labels.values(), status], number)
    yield requests
    for counter in (*COUNTERS, *(JUDGED if ledger.slo else ())):
        family = CounterMetricFamily(PREFIX + counter.name, counter.help, labels=names)
        for labels, account in accounts:
            family.add_metric([model, *labels.values()], getattr(account, counter.field))
        yield family
    for labels, account in accounts:
        yield histogram(
            "served_request_seconds", "Until the last byte.", account.seconds, {"model_name": model} | labels
        )
    yield from _said(ledger, model)


def _said(ledger: Ledger, model: str) -> Iterator[Metric]:
    """What the operator has said."""
    if ledger.slo:
        limits = _gauge("slo_limit_seconds", "Of the objective.", {"model_name": model, "limit": ""})
        for name, seconds in ledger.slo.as_dict().items():
            limits.add_metric([model, name.removesuffix("_s")], seconds)
        yield limits
    if ledger.price_per_hour is not None:
        price = _gauge("price_per_hour", "Of all that the server runs on.", {"model_name": model})
        price.add_metric([model], ledger.price_per_hour)
        yield price


def _gauge(name: str, help: str, labels: Mapping[str, str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, help, labels=list(labels))
