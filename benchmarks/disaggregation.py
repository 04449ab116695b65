"""Prefill and decode apart, against together, on the same cores: what decodes feel of a flood of long prompts.

Three servers of one model, each with the same number of threads in all: one engine with all of them; the same with
steps of few tokens, so that prompts go in small chunks; one engine for prompts and one that decodes. Each in turn,
while the others are idle, has streams that go on as long as it is looked at, and

    alone    nothing else
    steady   long prompts at a rate that one engine for prompts can just bear, evenly spaced
    flood    as many long prompts as it takes, three at a time, each sent when another has its answer

What is measured: the gaps between the streams' tokens; what the long prompts waited for their first token; tokens in
all. Of the moves of KV: what they took, beside copying as many bytes within one process, in the same run.

    python benchmarks/disaggregation.py [--model smollm2] [--seconds 10]

writes results/disaggregation.json. A few minutes, on a machine with nothing else to do.
"""

import argparse
import asyncio
import contextlib
import math
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import torch

from miniserve.bench.record import write_record
from miniserve.bench.serving.client import Client
from miniserve.hardware.this_machine import num_cores
from miniserve.workloads.service import Service

STREAMS, STREAM_PROMPT, STREAM_TOKENS = 4, 32, 64
LONG_PROMPT, LONG_OUTPUT = 256, 8
AT_ONCE = 3
TTFT_SLO_S, ITL_SLO_S = 5.0, 0.25
CHUNK = 32  # tokens of a step, where prompts are cut small
LOAD = 0.8  # of what one engine for prompts can bear
COPY_BYTES = 64 * 2**20
VOCABULARY = 40000


class Server:
    """A server of some engines."""

    def __init__(self, name: str, model: str, threads: int, *options: str) -> None:
        command = [sys.executable, "-m", "miniserve", "serve", model, "--served-model-name", "m", "--port", "0"]
        command += ["--kv-cache-mib", "512", "--threads", str(threads), "--no-live-view", *options]
        self.name, self.threads = name, threads
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def wait(self) -> None:
        """Until it serves."""
        assert self.process.stdout
        found = re.search(r"http://\S+", line := self.process.stdout.readline())
        if not found:
            raise RuntimeError(f"{self.name} did not start: {line}")
        self.url = found.group()

    def metric(self, name: str) -> float:
        """The sum of a series over the engines."""
        lines = httpx.get(f"{self.url.removesuffix('/v1')}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"miniserve:{name}{{"))

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(60)


def prompt(rng: random.Random, length: int) -> list[int]:
    """Tokens that nothing has cached."""
    return [rng.randrange(1000, VOCABULARY) for _ in range(length)]


async def repeat(client: Client, rng: random.Random, length: int, tokens: int, until_s: float) -> list[Service]:
    """One after the other until a moment; what is under way then is waited for."""
    clock, served = asyncio.get_running_loop().time, []
    while clock() < until_s:
        served.append(await client.send(prompt(rng, length), tokens, clock()))
    return served


async def spaced(client: Client, rng: random.Random, rate: float, until_s: float) -> list[Service]:
    """Long prompts at a rate until a moment, whatever has become of those before."""
    clock = asyncio.get_running_loop().time
    due_s, tasks = clock(), []
    while due_s < until_s:
        await asyncio.sleep(max(due_s - clock(), 0))
        tasks.append(asyncio.create_task(client.send(prompt(rng, LONG_PROMPT), LONG_OUTPUT, due_s)))
        due_s += 1 / rate
    return list(await asyncio.gather(*tasks))


async def phase(client: Client, seed: int, seconds: float, rate: float | None, at_once: int) -> dict[str, Any]:
    """Streams and a load of long prompts beside them; see the file's head."""
    rng, clock = random.Random(seed), asyncio.get_running_loop().time
    began_s = clock()
    until_s = began_s + seconds
    loads = [repeat(client, rng, STREAM_PROMPT, STREAM_TOKENS, until_s) for _ in range(STREAMS)]
    loads += [repeat(client, rng, LONG_PROMPT, LONG_OUTPUT, until_s) for _ in range(at_once)]
    if rate:
        loads.append(spaced(client, rng, rate, until_s))
    several = await asyncio.gather(*loads)
    took_s = clock() - began_s
    short = [service for served in several[:STREAMS] for service in served]
    long = [service for served in several[STREAMS:] for service in served]
    if failed := {service.error for service in short + long if service.error}:
        raise RuntimeError(f"requests failed: {failed}")
    gaps = [gap for service in short for gap in service.gaps_s]
    waits = [service.ttft_s for service in long]
    tokens = sum(service.output_tokens for service in short + long)
    good = sum(wait <= TTFT_SLO_S for wait in waits)
    good += sum(service.ttft_s <= TTFT_SLO_S and quantile(service.gaps_s, 0.99) <= ITL_SLO_S for service in short)
    return {
        "seconds": took_s,
        "itl_s": {name: quantile(gaps, q) for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))},
        "gaps": len(gaps),
        "streams": len(short),
        "long_prompts": len(long),
        "long_ttft_s": {"p50": quantile(waits, 0.5), "p90": quantile(waits, 0.9)} if waits else {},
        "prompt_tokens_per_s": sum(service.prompt_tokens for service in short + long) / took_s,
        "output_tokens_per_s": tokens / took_s,
        "good_requests_per_s": good / took_s,
        "good_share": good / len(short + long),
    }


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


async def capacity(client: Client, seconds: float) -> float:
    """How many long prompts a second the server computes, one at a time."""
    served = await repeat(client, random.Random(1), LONG_PROMPT, 1, asyncio.get_running_loop().time() + seconds)
    return 1 / statistics.median(service.ended_s - service.sent_s for service in served)


async def measure(server: Server, seconds: float, rate: float | None) -> dict[str, Any]:
    """All phases of one server. `rate`: None: find out what one engine for prompts can bear."""
    async with Client(server.url, body={"temperature": 0, "ignore_eos": True}) as client:
        await repeat(client, random.Random(0), LONG_PROMPT, 2, asyncio.get_running_loop().time() + 1)
        rate = rate or LOAD * await capacity(client, seconds / 2)
        return {
            "threads_each": server.threads,
            "rate_per_s": rate,
            "alone": await phase(client, 2, seconds / 2, None, 0),
            "steady": await phase(client, 3, seconds, rate, 0),
            "flood": await phase(client, 4, seconds, None, AT_ONCE),
        }


def copy_bytes_per_s() -> float:
    """Within this process, one thread, memory that has been touched: the best of some."""
    torch.set_num_threads(1)
    source, target = (torch.ones(COPY_BYTES, dtype=torch.uint8) for _ in range(2))
    best = math.inf
    for _ in range(10):
        began = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - began)
    return COPY_BYTES / best


def main() -> None:
    """Measure, and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    cores = num_cores()
    if cores < 2:
        raise SystemExit("one core cannot be two engines")
    half, data = max(cores // 2, 1), {}
    with contextlib.ExitStack() as stack:
        servers = [
            Server("one engine", options.model, 2 * half),
            Server("one engine, small steps", options.model, 2 * half, "--max-num-batched-tokens", str(CHUNK)),
            Server("two engines, apart", options.model, half, "--prefill", "1", "--decode", "1"),
        ]
        for server in servers:
            stack.callback(server.close)
        for server in servers:
            server.wait()
        apart, rate, found = servers[-1], None, {}
        for server in reversed(servers):
            found[server.name] = asyncio.run(measure(server, options.seconds, rate))
            rate = found[server.name]["rate_per_s"]
        moves = {
            side: {
                "number": apart.metric(f"kv_moves_{side}_total"),
                "bytes": apart.metric(f"kv_moves_{side}_bytes_total"),
                "seconds": apart.metric(f"kv_moves_{side}_seconds_total"),
            }
            for side in ("left", "arrived")
        }
    data = {
        "model": options.model,
        "cores": cores,
        "load_average": os.getloadavg()[1],  # of the last five minutes: how much else the machine had to do
        "streams": STREAMS, "stream_prompt": STREAM_PROMPT, "stream_tokens": STREAM_TOKENS,
        "long_prompt": LONG_PROMPT, "long_output": LONG_OUTPUT, "at_once": AT_ONCE,
        "chunk": CHUNK,
        "slo": {"ttft_s": TTFT_SLO_S, "itl_p99_s": ITL_SLO_S},
        "servers": {server.name: found[server.name] for server in servers},
        "moves": moves,
        "copy_bytes_per_s": copy_bytes_per_s(),
    }  # fmt: skip
    path = Path(__file__).parents[1] / "results" / "disaggregation.json"
    command = f"python benchmarks/disaggregation.py --model {options.model} --seconds {options.seconds:g}"
    write_record(path, data, command, "cpu")
    for name, each in data["servers"].items():
        for kind in ("alone", "steady", "flood"):
            itl, wait = each[kind]["itl_s"], each[kind]["long_ttft_s"].get("p50", math.nan)
            print(
                f"{name:24} {kind:7} ITL p50 {itl['p50'] * 1e3:6.1f} p99 {itl['p99'] * 1e3:7.1f} ms, "
                f"TTFT {wait:5.2f} s, {each[kind]['output_tokens_per_s']:6.1f} tokens/s out, "
                f"{each[kind]['prompt_tokens_per_s']:6.0f} in, good {each[kind]['good_share']:.0%}"
            )
    for side, each in moves.items():
        print(f"{side}: {each['bytes'] / each['seconds'] / 1e9:.2f} GB/s of {data['copy_bytes_per_s'] / 1e9:.2f}")


if __name__ == "__main__":
    main()
