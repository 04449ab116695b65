"""The server beside the engine alone: throughput of many streams, and the time to the first token when nobody waits.

    python benchmarks/serve.py
    python benchmarks/serve.py --device cuda --kv-cache-mib 8192    # both engines on one GPU, a part of its memory each

One engine runs in this process (`LLM`), another one behind `miniserve serve` in processes of its own; client, server
and engine share the machine's cores. Both sides get the same token ids and give the same number of tokens, greedily,
without a prefix cache, on the same number of threads. They run in turn, and each round has a ratio of its own, so
that a machine whose speed drifts does not favour a side. The time to the first token is that of requests one at a
time, in turn too: in the engine from its queue to its first token, over HTTP from sending to that token's arrival.
"""

import asyncio
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line does, for both sides; read when torch is imported

import psutil
import typer
from rich.console import Console
from rich.table import Table

from miniserve import LLM, SamplingParams
from miniserve.bench.record import device_slug, write_record
from miniserve.bench.serving.client import Client
from miniserve.bench.serving.own_server import own_server
from miniserve.bench.throughput import run_jobs
from miniserve.bench.workloads import Job, mixed
from miniserve.hardware.this_machine import num_cores
from miniserve.workloads.service import Service, spread

RESULTS = Path(__file__).parents[1] / "results"
say = Console(stderr=True, highlight=False).print


class Server:
    """The processes of a `miniserve serve` that this process started, for what CPU they take."""

    def __init__(self) -> None:
        (self._http,) = [child for child in psutil.Process().children() if "serve" in child.cmdline()]

    def cpu_s(self) -> dict[str, float]:
        """Seconds so far of the HTTP process, of all that it started, and of this one, the client."""
        engine = sum(_cpu_s(child) for child in self._http.children(recursive=True))
        return {"http": _cpu_s(self._http), "engine": engine, "client": time.process_time()}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def both(model: str, threads: int, jobs: int, device: str, kv_cache_mib: int | None) -> Iterator[tuple[LLM, str]]:
    """The engine here and the URL of the server."""
    import torch

    torch.set_num_threads(threads)
    options = ["--max-num-seqs", str(jobs), "--threads", str(threads), "--no-prefix-caching", "--log-level", "info"]
    options += ["--device", device, *(["--kv-cache-mib", str(kv_cache_mib)] if kv_cache_mib else [])]
    memory = kv_cache_mib and kv_cache_mib * 2**20
    engine = LLM(model, device=device, max_num_seqs=jobs, enable_prefix_caching=False, kv_cache_memory=memory)
    with engine as llm, own_server(model, options) as url:
        yield llm, url


async def over_http(url: str, jobs: list[Job]) -> list[Service]:
    """All jobs at once, a stream each.

    Raises:
        RuntimeError: one of them failed.
    """
    body = {"temperature": 0, "ignore_eos": True, "skip_special_tokens": False}
    async with Client(url, body=body) as client:
        now = asyncio.get_running_loop().time
        sent = [client.send(job.prompt_token_ids, job.max_tokens, now()) for job in jobs]
        services = await asyncio.gather(*sent)
    if client.first_errors:
        raise RuntimeError(str(client.first_errors))
    return services


def throughput(llm: LLM, url: str, jobs: list[Job], rounds: int) -> dict[str, Any]:
    """Tokens a second of both sides, round by round."""
    server, offline, http, cpu = Server(), list[float](), list[float](), list[dict[str, float]]()
    for index in range(rounds):
        started = time.perf_counter()
        tokens = run_jobs(llm, jobs)
        offline.append(tokens / (time.perf_counter() - started))
        before, started = server.cpu_s(), time.perf_counter()
        services = asyncio.run(over_http(url, jobs))
        wall_s = time.perf_counter() - started
        assert sum(service.output_tokens for service in services) == tokens, "both sides do the same work"
        http.append(tokens / wall_s)
        cpu.append({name: (seconds - before[name]) / wall_s for name, seconds in server.cpu_s().items()})
        say(f"round {index + 1}/{rounds}: engine {offline[-1]:.1f}, over HTTP {http[-1]:.1f} tokens/s")
    ratios = [over / alone for over, alone in zip(http, offline, strict=True)]
    return {
        "num_requests": len(jobs),
        "prompt_tokens": sum(len(job.prompt_token_ids) for job in jobs),
        "output_tokens": sum(job.max_tokens for job in jobs),
        "engine_tokens_per_s": offline,
        "http_tokens_per_s": http,
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "cores_taken_over_http": {name: statistics.median(each[name] for each in cpu) for name in cpu[0]},
    }


def first_token(llm: LLM, url: str, jobs: list[Job]) -> dict[str, Any]:
    """Time to the first token of both sides, one request after the other."""
    alone, over = list[float](), list[float]()
    for job in jobs:
        (output,) = llm.generate(job.prompt_token_ids, SamplingParams(max_tokens=job.max_tokens, ignore_eos=True))
        assert output.timings.ttft_s is not None, "it has a token"
        alone.append(output.timings.ttft_s)
        (service,) = asyncio.run(over_http(url, [job]))
        over.append(service.ttft_s)
    engine, http = spread(alone), spread(over)
    assert engine is not None, "there was a job"
    assert http is not None, "there was a job"
    ratios = {name: http[name] / engine[name] for name in engine}
    return {"num_requests": len(jobs), "engine_ttft_s": engine, "http_ttft_s": http, "ratios": ratios}


def show(data: dict[str, Any]) -> None:
    """What a person wants to see."""
    table = Table("what", "engine", "over HTTP", "ratio")
    if "throughput" in data:
        found = data["throughput"]
        least, most = min(found["ratios"]), max(found["ratios"])
        median = [f"{statistics.median(found[f'{side}_tokens_per_s']):.1f}" for side in ("engine", "http")]
        table.add_row("output tokens/s, median", *median, f"{found['ratio']:.1%} ({least:.1%} to {most:.1%})")
    if "first_token" in data:
        found = data["first_token"]
        for name, ratio in found["ratios"].items():
            both_ms = [f"{found[f'{side}_ttft_s'][name] * 1e3:.1f}" for side in ("engine", "http")]
            table.add_row(f"first token, ms, {name}", *both_ms, f"{ratio:.2f}")
    Console().print(table)


def main(
    model: Annotated[str, typer.Option(help="Alias, directory, .gguf file, or org/name.")] = "smollm2",
    streams: Annotated[int, typer.Option(help="Requests at once.", min=1)] = 64,
    rounds: Annotated[int, typer.Option(help="Of the throughput, 0: none.", min=0)] = 3,
    low: Annotated[int, typer.Option(help="Fewest tokens of a prompt, and of an output.", min=1)] = 24,
    high: Annotated[int, typer.Option(help="Most of them.", min=1)] = 48,
    singles: Annotated[int, typer.Option(help="Requests one at a time, 0: none.", min=0)] = 200,
    threads: Annotated[int | None, typer.Option(help="Of each engine; default: the cores.", min=1)] = None,
    device: Annotated[str, typer.Option(help="Of both engines: cpu, cuda.")] = "cpu",
    kv_cache_mib: Annotated[
        int | None, typer.Option(help="Of each engine; on a GPU the default leaves the other none.", min=1)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the result is kept; default: results/serve.json, of a GPU in its folder.")
    ] = None,
) -> None:
    """The server beside the engine alone."""
    count = threads or num_cores()
    with both(model, count, streams, device, kv_cache_mib) as (llm, url):
        vocabulary = llm.model.config.vocab_size
        warm = mixed(4, vocabulary, low=4, high=8, seed=1)
        run_jobs(llm, warm)
        asyncio.run(over_http(url, warm))
        data: dict[str, Any] = {"model": model, "threads": count, "engine": str(llm.settings)}
        if rounds:
            data["throughput"] = throughput(llm, url, mixed(streams, vocabulary, low=low, high=high), rounds)
        if singles:
            prompts = mixed(singles, vocabulary, low=8, high=16, seed=2)
            data["first_token"] = first_token(llm, url, [Job(job.prompt_token_ids, 2) for job in prompts])
    command = f"python benchmarks/serve.py --model {model} --streams {streams} --rounds {rounds} --low {low}"
    command += f" --high {high} --singles {singles} --threads {count} --device {device}"
    command += f" --kv-cache-mib {kv_cache_mib}" if kv_cache_mib else ""
    folder = RESULTS if device == "cpu" else RESULTS / device_slug(device)
    write_record(out or folder / "serve.json", data, command, device)
    show(data)


if __name__ == "__main__":
    typer.run(main)
