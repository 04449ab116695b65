"""What a simulation's counts are worth: a device's throughput, a user's speed, energy and money.

Prices and powers are the catalogue's, each with its source and mark; where it has none, the figure is left out rather
than guessed.
"""

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

from miniserve.errors import InvalidRequestError
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.devices import Accelerator
from miniserve.hardware.figures import Figure
from miniserve.simulate.cluster import Cluster
from miniserve.simulate.money import usd_per_million
from miniserve.simulate.tier_plan import TierPlan

DEFAULT_PRICE = "hyperscaler_tco"
MILLION = 1e6


def report(cluster: Cluster, price: str = DEFAULT_PRICE) -> dict[str, Any]:
    """Of a cluster that has run: the tally's summary, and by device, user, megawatt and dollar.

    Args:
        cluster: whose engines all run on devices of one kind, or of two.
        price: which of the catalogue's prices an hour counts.

    Returns:
        Plain numbers and names. `tokens_per_s_user` is the inverse of the median TPOT. A task is a session with all its
        turns, or a request that belongs to none. `hit_shares` are of prompt tokens, by where their KV was. Where a
        planner has engines off, `devices` is the mean of those that are not, and costs and energy are theirs.
    """
    found = cluster.tally.summary(cluster.seconds)
    output_per_s, devices = found["output_tokens_per_s"], devices_on(cluster)
    tpot = found["tpot_s"]
    found |= {
        "devices": devices,
        "device_hours": devices * cluster.seconds / 3600,
        "hit_shares": {"device": found["cached_share"], **found.pop("loaded_shares")},
        "output_tokens_per_s_device": output_per_s / devices,
        "tokens_per_s_user": 1 / tpot["p50"] if tpot and tpot["p50"] else None,
        "utilisation": cluster.utilisation,
    }
    watts, dollars = _sum(cluster, "all_in_power_w"), _sum(cluster, price)
    if watts is not None:
        found["output_tokens_per_s_megawatt"] = output_per_s / watts * MILLION
    if dollars is not None and output_per_s:
        found["usd_per_million_output_tokens"] = usd_per_million(dollars, output_per_s)
        for name, number in (("usd_per_request", found["completed"]), ("usd_per_task", found["tasks"])):
            if number:
                found[name] = dollars / 3600 * cluster.seconds / number
    found["figures"] = _sources(cluster, price)
    return found


def devices_on(cluster: Cluster) -> float:
    """The mean number of devices that were not off."""
    return sum(
        share * instance.deployment.num_devices for share, instance in zip(cluster.on, cluster.instances, strict=True)
    )


def _figure(device: Accelerator, name: str) -> Figure | None:
    return device.figures.get(name) or device.usd_per_hour.get(name)


def _sum(cluster: Cluster, name: str) -> float | None:
    """Over all devices that are on, in the mean; None if the catalogue lacks it for one."""
    total = 0.0
    for share, instance in zip(cluster.on, cluster.instances, strict=True):
        for device, number in instance.deployment.devices:
            figure = _figure(device, name)
            if figure is None:
                return None
            total += figure.value * number * share
    return total


def _sources(cluster: Cluster, price: str) -> dict[str, str]:
    """Where the numbers that were used come from, by device and name."""
    found = {}
    for instance in cluster.instances:
        for device, name in product((device for device, _ in instance.deployment.devices), ("all_in_power_w", price)):
            if figure := _figure(device, name):
                found[f"{device.key} {name}"] = _cited(figure)
        found |= tier_sources(cluster.tiers, instance.deployment.device)
    return found


def tier_sources(tiers: Sequence[TierPlan], device: Accelerator) -> dict[str, str]:
    """Where the numbers come from of those tiers that are as the catalogue has them beside a device."""
    beside = load_catalog().tiers_beside(device)
    known = [beside[plan.name] for plan in tiers if plan.name in beside and TierPlan.beside(beside[plan.name]) == plan]
    return {f"{tier.kind} {name}": _cited(figure) for tier in known for name, figure in tier.all_figures()}


def _cited(figure: Figure) -> str:
    note = f"; {figure.note}" if figure.note else ""
    return f"{figure.value:g} ({figure.mark}, {figure.source.title}{note})"


def assumed_prices(price: str, devices: Iterable[Accelerator]) -> dict[str, str]:
    """Of prices that are placeholders, which: nobody states them, and every $ that follows is as good as they are."""
    figures = ((device.key, device.usd_per_hour.get(price)) for device in devices)
    return {
        f"the price of a {key}": f"${figure.value:g} an hour, {figure.note}"
        for key, figure in figures
        if figure and "placeholder" in figure.note
    }


def check_price(price: str, device: Accelerator) -> None:
    """Raise InvalidRequestError where the catalogue has no such price of a device, and names those it has."""
    if device.usd_per_hour and price not in device.usd_per_hour:
        has = ", ".join(device.usd_per_hour)
        raise InvalidRequestError(f"the catalogue has no price '{price}' for a {device.name}; it has {has}")
