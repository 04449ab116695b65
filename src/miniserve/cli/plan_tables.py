"""What `miniserve plan` found, as plain numbers, as a table, and in words."""

from typing import TYPE_CHECKING, Any

from rich.table import Table

from miniserve.simulate.money import usd_per_million

if TYPE_CHECKING:
    from miniserve.simulate.outcome import Outcome


def plain(outcome: "Outcome", devices: int, usd_per_hour: float | None) -> dict[str, Any]:
    """As plain numbers and names."""
    candidate, best = outcome.candidate, outcome.best
    found: dict[str, Any] = {
        "deployment": str(candidate),
        "weights": candidate.weights,
        "prefill": candidate.prefill and candidate.prefill._asdict(),
        "decode": candidate.decode._asdict(),
        "devices_used": candidate.num_devices,
        "tiers": list(outcome.tiers),
        "limit": outcome.reason,
    }
    if best:
        found |= {
            "users": best.users,
            "attained": best.attained,
            "latencies_s": best.latencies_s,
            "hit_shares": best.hits,
            "output_tokens_per_s": best.output_tokens_per_s,
            "output_tokens_per_s_device": best.output_tokens_per_s / devices,
            "share_of_time": outcome.share,
        }
        if usd_per_hour is not None:
            found["usd_per_million_output_tokens"] = usd_per_million(usd_per_hour * devices, best.output_tokens_per_s)
    return found


def ranked(data: dict[str, Any], top: int | None = None) -> Table:
    """The candidates, or so many of them, the best first; where prompts can be found, by where they were."""
    rows, shares = data["ranked"][:top], data["found_at_most"] > 0
    limits = ", ".join(f"{name[:-2].upper()} {limit * 1000:g} ms" for name, limit in data["slo"].items())
    title = (
        f"Simulated: {data['model']} on {data['devices']} × {data['hardware']}, in {data['mean_prompt_tokens']:,}, out "
        f"{data['mean_output_tokens']:,}, {limits} for {data['attainment']:.0%}; kernels {data['kernels']}"
        + "".join(f"; assumed {what}: {text}" for what, text in data["assumed"].items())
    )
    if shares:
        title += f"; of prompts' tokens {data['found_at_most']:.0%} could be found if nothing were forgotten"
    if left_out := data["load"].get("turns_left_out"):
        title += f"; sessions end before {data['most_tokens']:,} tokens, which leaves {left_out:.0%} of their turns out"
    columns = ("", "weights", "deployment", f"{data['user']}s", "tokens/s\na device", "$/M")
    table = Table(*columns, title=title, title_justify="left")
    if shares:
        table.add_column("found")
    table.add_column("what keeps it from more", overflow="fold")
    for rank, row in enumerate(rows, 1):
        served = "users" in row
        numbers = (f"{row['users']:,}", f"{row['output_tokens_per_s_device']:,.0f}") if served else ("", "")
        usd = row.get("usd_per_million_output_tokens")
        cost = "" if usd is None else f"{usd:.2f}"
        where = ", ".join(f"{place} {share:.0%}" for place, share in row.get("hit_shares", {}).items())
        found = [where] if shares else []
        table.add_row(str(rank) if served else "", row["weights"], _name(row), *numbers, cost, *found, row["limit"])
    more = len(data["ranked"]) - len(rows)
    table.caption, table.caption_justify = (
        (f"{more} more {'is' if more == 1 else 'are'} behind these.\n" if more else "") + _verdict(data),
        "left",
    )
    return table


def _name(row: dict[str, Any]) -> str:
    return " + ".join([row["deployment"], *row["tiers"]])


def _verdict(data: dict[str, Any]) -> str:
    """The answer in words."""
    first = data["ranked"][0]
    if "users" in first:
        most = list(first["share_of_time"].items())[:3]
        shares = ", ".join(f"{share:.0%} {kind}" for kind, share in most)
        cost = " What tiers cost is not in $/M." if data["tiers"] else ""
        return f"Take {_name(first)} in {first['weights']}. Its devices' time: {shares}.{cost}"
    if not data["least_s"]:
        return "No engine can serve even one request, however slowly: see above what it lacks."
    ttft_ms, tpot_ms = (data["least_s"][name] * 1000 for name in ("ttft_s", "tpot_s"))
    return (
        f"Nothing meets the limits. One request alone could have a TTFT of {ttft_ms:,.1f} ms and a TPOT of "
        f"{tpot_ms:.2f} ms at best, each on the engine that is fastest at it."
    )
