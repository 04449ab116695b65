"""The tables that `miniserve bench` prints: one function a benchmark, from its data to something rich can print."""

from typing import Any

from rich.console import Group
from rich.table import Table

from miniserve.notebook.units import format_value


def ceilings(data: dict[str, Any]) -> Group:
    """Bandwidth by size, products by format and size, a batch against one weight, and launches."""
    bandwidth = Table("buffer", "read", "copy (read + written)", title=f"Bandwidth of {data['device']}")
    for read, copy in zip(data["read"], data["copy"], strict=True):
        size = f"{read['bytes'] >> 20} MiB" if read["bytes"] >= 2**20 else f"{read['bytes'] >> 10} KiB"
        bandwidth.add_row(size, _rate(read, "bytes_per_s"), _rate(copy, "bytes_per_s"))
    sizes = list(dict.fromkeys(row["size"] for row in data["gemm"]))
    products = Table("format", *(f"{size:,}" for size in sizes), title="Square matrix products")
    for dtype in dict.fromkeys(row["dtype"] for row in data["gemm"]):
        products.add_row(dtype, *(_rate(row, "flops_per_s") for row in data["gemm"] if row["dtype"] == dtype))
    skinny = Table("m × n × k", "time", "bytes a second", title="A batch of m against one bf16 weight")
    for row in data["skinny"]:
        skinny.add_row(f"{row['m']} × {row['n']} × {row['k']}", _rate(row, "seconds"), _rate(row, "bytes_per_s"))
    launch = Table("called from Python", "in a CUDA graph", title="One tiny operator")
    launch.add_row(_rate(data["launch"], "eager_s"), _rate(data["launch"], "graph_s"))
    return Group(bandwidth, products, *([skinny] if data["skinny"] else []), launch)


def _rate(row: dict[str, Any], quantity: str) -> str:
    unit = {"bytes_per_s": "B/s", "flops_per_s": "FLOP/s"}.get(quantity, "s")
    value = row.get(quantity)
    return format_value(value, unit) if value is not None else row.get("unsupported", "none")


def _share(share: float | None) -> str:
    return "none" if share is None else f"{share:.0%}"


def throughput(data: dict[str, Any]) -> Table:
    """Tokens a second, and where a step's time goes."""
    limits = data["ceilings"]
    title = (
        f"{data['model']} on {data['device']} ({data['backend']}, {data['threads']} threads), {data['dtype']}, "
        f"quantization {data['quantization']}; reads {limits['read_bytes_per_s'] / 1e9:.1f} GB/s, "
        f"multiplies at {limits['flops_per_s'] / 1e9:.0f} GFLOP/s"
    )
    table = Table(title=title)
    for name in ("requests", "output tokens/s", "wall s", "steps", "MBU", "MFU", "where a step's time goes"):
        table.add_column(name, justify="right")
    for key, run in data.items():
        if key.startswith("batch_"):
            shares = ", ".join(f"{name} {seconds / run['wall_s']:.1%}" for name, seconds in run["step_s"].items())
            table.add_row(
                str(run["num_requests"]), f"{run['output_tokens_per_s']:.1f}", f"{run['wall_s']:.2f}",
                str(run["num_steps"]), _share(run["mbu"]), _share(run["mfu"]), shares,
            )  # fmt: skip
    return table


def speculation(data: dict[str, Any]) -> Table:
    """Tokens a second with and without guesses, and how many were right."""
    title = f"{data['model']} on {data['device']} ({data['backend']}, {data['threads']} threads), {data['speculation']}"
    table = Table(title=title)
    for name in ("text", "tokens/s without", "with", "speedup", "accepted", "tokens a step", "same tokens"):
        table.add_column(name, justify="right")
    for key, run in data.items():
        if "_batch_" in key:
            without, guessing = run["without"], run["with"]
            table.add_row(
                key.replace("_", " "),
                f"{without['output_tokens_per_s']:.1f}", f"{guessing['output_tokens_per_s']:.1f}",
                f"{run['speedup']:.2f}", f"{guessing['acceptance']:.0%}", f"{guessing['tokens_per_step']:.2f}",
                "yes" if run["same_tokens"] else "no",
            )  # fmt: skip
    return table


def tiers(data: dict[str, Any]) -> Table:
    """Time to first token, turn by turn, and how near loading comes to what memory and disk can do."""
    runs, limits = data["turns"], data["limits"]
    title = (
        f"{data['model']} on {data['device']} ({data['backend']}, {data['threads']} threads), time to first token; "
        f"memory copies {format_value(limits['copy_bytes_per_s'], 'B/s')}, "
        f"the disk reads {format_value(limits['disk_read_bytes_per_s'], 'B/s')}"
    )
    table = Table("prompt tokens", "computed again", "from host memory", "from disk", title=title)
    rows = zip(runs["recompute"]["prompt_tokens"], *(run["ttft_s"] for run in runs.values()), strict=True)
    for tokens, *seconds in rows:
        table.add_row(f"{tokens:,}", *(format_value(each, "s") for each in seconds))
    loads = (runs["host"], runs["disk"])
    table.add_row("loaded at", "", *(format_value(run["load_bytes_per_s"], "B/s") for run in loads))
    table.add_row("of the limit", "", *(f"{run['share_of_limit']:.0%}" for run in loads))
    return table


def scheduler(data: dict[str, Any]) -> Table:
    """The core's time a step."""
    table = Table("step", "mean µs", "median µs", title="CPU time of schedule and update, decode steps")
    for name, step in data["cpu_us_per_step"].items():
        table.add_row(name.replace("_", " "), f"{step['mean']:.1f}", f"{step['median']:.1f}")
    return table


def accuracy(data: dict[str, Any]) -> Table:
    """What each form of the weights, and of keys and values, costs."""
    table = Table("form", "perplexity", "mean |Δ log p|", "same likeliest token", "weights MB", "KV bytes a token",
                  title=f"{data['model']}, {data['num_tokens']} predictions, windows of {data['window']}")  # fmt: skip
    for name, form in data["forms"].items():
        table.add_row(
            name, f"{form['perplexity']:.3f}", f"{form['mean_abs_logprob_difference']:.5f}",
            f"{form['top_1_agreement']:.2%}", f"{form['weight_bytes'] / 1e6:.1f}", f"{form['kv_bytes_per_token']:,}",
        )  # fmt: skip
    return table


def serving(data: dict[str, Any]) -> Group:
    """Latencies, rates, and what to know about them."""
    failed = sum(data["errors"].values())
    title = f"{data['requests']} requests of {data['endpoint']} in {data['seconds']:.1f} s, {failed} failed"
    latencies = Table("ms", "mean", "p50", "p90", "p99", "max", title=title)
    for name in ("ttft", "itl", "tpot", "e2e"):
        if found := data[f"{name}_s"]:
            latencies.add_row(name.upper(), *(f"{value * 1e3:,.1f}" for value in found.values()))
    rates = Table("what", "value")
    rates.add_row("requests/s", f"{data['requests_per_s']:.2f}")
    rates.add_row("output tokens/s", f"{data['output_tokens_per_s']:,.1f}")
    rates.add_row("prompt tokens/s", f"{data['prompt_tokens_per_s']:,.1f}")
    for name in ("prompt_tokens", "output_tokens"):
        if found := data[name]:
            rates.add_row(f"{name.replace('_', ' ')}, mean and most", f"{found['mean']:,.1f}, {found['max']:,.0f}")
    if data["slo"] is not None:
        limits = ", ".join(f"{name[:-2]} {limit * 1e3:g} ms" for name, limit in data["slo"].items())
        rates.add_row(f"goodput/s ({limits})", f"{data['goodput_per_s']:.2f}")
        rates.add_row("requests that met it", f"{data['slo_attainment'] or 0:.1%}")
    for kind, count in data["errors"].items():
        rates.add_row(f"failed: {kind}", str(count))
    rates.add_row("client's share of a core", f"{data['client']['cpu_share']:.1%}")
    return Group(latencies, rates, *data["remarks"])


def flat(data: dict[str, Any]) -> Table:
    """Names and values, one a row."""
    table = Table("what", "value")
    for name, value in data.items():
        for label, number in value.items() if isinstance(value, dict) else [("", value)]:
            shown = (
                f"{number:,.4g}" if isinstance(number, float) else f"{number:,}" if isinstance(number, int) else number
            )
            table.add_row(f"{name} {label}".strip().replace("_", " "), str(shown))
    return table
