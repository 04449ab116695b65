"""What `miniserve simulate` prints: of one simulation, or of a sweep over the number of users."""

from typing import Any

from rich.console import Group
from rich.table import Table

from miniserve.notebook.units import format_value


def one(data: dict[str, Any]) -> Group:
    """Latencies, then rates, costs, use."""
    table = Table("", "mean", "p50", "p90", "p99", "max", title=_title(data), title_justify="left")
    for name in ("ttft_s", "itl_s", "tpot_s", "e2e_s"):
        if spread := data[name]:
            table.add_row(f"{name[:-2].upper()}, ms", *(f"{value * 1000:,.1f}" for value in spread.values()))
    rates = Table(show_header=False)
    for name, text in _rows(data).items():
        rates.add_row(name, text)
    return Group(table, rates)


def _title(data: dict[str, Any]) -> str:
    scenario = data["scenario"]
    engines = " + ".join(
        f"{pool.get('number', 1)} {'' if pool.get('role', 'both') == 'both' else pool['role'] + ' '}engines of "
        f"{_size(pool)} × {pool['hardware']} ({pool.get('weights', 'bf16')})"
        for pool in scenario["engines"]
    )
    kernels = "; ".join(f"{hardware}: {text}" for hardware, text in data["kernels"].items())
    assumed = "".join(f"; assumed {what}: {text}" for what, text in data.get("assumed", {}).items())
    return f"Simulated: {scenario['model']}, {engines}; kernels of {kernels}{assumed}"


def _size(pool: dict[str, Any]) -> str:
    """Devices of an engine; of ranks that share out the experts, how many there are of these; of two sides, both."""
    if "afd" in pool:
        attention, _, ffn = pool["afd"].partition("x")
        return f"{attention} ranks of {pool.get('tensor', 1)} and {ffn} × {pool.get('ffn_hardware', 'FFN')} beside,"
    tensor, ranks = pool.get("tensor", 1), pool.get("expert", 1)
    return f"{ranks} ranks of {tensor}" if ranks > 1 else str(tensor)


def _rows(data: dict[str, Any]) -> dict[str, str]:
    rows = {
        "requests": f"{data['completed']:,} in {data['seconds']:,.1f} s, {data['requests_per_s']:.2f} a second",
        "output tokens": f"{data['output_tokens_per_s']:,.0f} a second, "
                         f"{data['output_tokens_per_s_device']:,.0f} a device",
        "prompt tokens found": ", ".join(f"{name} {share:.1%}" for name, share in data["hit_shares"].items()),
        "met the SLO": f"{data['slo_attainment']:.1%}, {data['goodput_per_s']:.2f} requests a second"
                       if data["slo_attainment"] is not None else "none",
    }  # fmt: skip
    if data["tasks"] != data["completed"]:
        rows["sessions"] = f"{data['tasks']:,} to their last turn"
    for name, key, form in (
        ("tokens a second and user", "tokens_per_s_user", "{:.0f}"),
        ("tokens a second and MW", "output_tokens_per_s_megawatt", "{:,.0f}"),
        ("$ per million output tokens", "usd_per_million_output_tokens", "{:.2f}"),
        ("$ per request", "usd_per_request", "{:.3g}"),
        ("$ per session", "usd_per_task", "{:.3g}"),
    ):
        if data.get(key) is not None and (key != "usd_per_task" or "sessions" in rows):
            rows[name] = form.format(data[key])
    if "planner" in data["scenario"]:
        rows["devices that were on"] = f"{data['devices']:.1f} in the mean, {data['device_hours']:,.1f} device-hours"
    busy = list(data["utilisation"].values())
    rows["busy"] = f"{min(busy):.0%} to {max(busy):.0%} of the time" if busy else "never"
    if data["retried"]:
        rows["begun again after a failure"] = f"{data['retried']:,}"
    if data["rejected"]:
        rows["rejected"] = "; ".join(f"{number}: {reason}" for reason, number in data["rejected"].items())
    return rows


def swept(data: dict[str, Any]) -> Table:
    """A row for each number of users; those on the frontier have a mark."""
    columns = ("users", "tok/s, user", "tok/s, device", "TTFT p50", "TPOT p50", "in SLO", "$/M", "")
    table = Table(*columns, title=_title(data), title_justify="left")
    for point in data["points"]:
        report = point["report"]
        usd = report.get("usd_per_million_output_tokens")
        table.add_row(
            f"{point['concurrency']:,}",
            f"{point['speed']:,.1f}",
            f"{point['throughput']:,.0f}",
            format_value(report["ttft_s"]["p50"], "s"),
            format_value(report["tpot_s"]["p50"], "s"),
            f"{report['slo_attainment']:.0%}",
            f"{usd:.2f}" if usd is not None else "",
            "●" if point["on_frontier"] else "",
        )
    return table
