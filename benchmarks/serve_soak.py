"""A server under load, for as long as one likes, with everything done to it that clients and machines do.

Steady clients ask the same questions over and over, greedily, streaming; every answer that is complete must be the one
that the engine gave before the trouble began. Beside them: clients that leave in the middle of a stream, half requests
that are never finished, readers that read nothing, damaged bodies, and now and then `kill -9` of an engine's process.
The model is in the registry twice. All the while one version takes the other's place (loaded, a canary, promoted; the
one before is unloaded, or the promotion is taken back), and bits are flipped in the files of the KV tier on disk.

A request is lost if it ends without its answer and without an error that says why: none may be. Errors are allowed
where an engine was killed, to what was in flight and until it is there again, and nowhere else.
The memory of all processes is read every few seconds, of engines from one of their deaths to the next.

    python benchmarks/serve_soak.py [--minutes 20] [--model smollm2] [--kills 3]

writes results/serve_soak.json. The load is paced, so that the machine is not full: this is no benchmark of speed.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from miniserve.bench.record import write_record
from miniserve.model.sources.resolve import resolve
from miniserve.registry.store import Registry
from miniserve.registry.version import Provenance
from miniserve.server.access import hash_key, new_key

NUM_CLIENTS, NUM_QUESTIONS, TOKENS = 4, 24, 24
ANSWER_TIMEOUT_S = 60
RESTART_TIMEOUT_S = 300  # of a machine that may be busy
EXPLAINED_S = 90.0  # after a kill, while its engine may not be there, errors are what is to be expected
SAMPLE_S = 5.0
KV_CACHE_MIB = 64  # little, so that blocks are dropped, and found again in the tiers
KV_HOST_MIB, KV_DISK_MIB = 16, 64
MODEL_NAME, VERSIONS = "soak", ("1", "2")
ROLL_S = 20.0  # between two changes of who answers
FLIP_S = 3.0
TEXT = "The machine reads a book about machines and asks what the next page of it says. "


class OrderError(Exception):
    """The admin API refused."""


class Soak:
    """One server and what is done to it."""

    def __init__(self, url: str, server: psutil.Process, admin_key: str, disk: Path, seed: int) -> None:
        self._url, self._server, self._disk = url, server, disk
        self._random = random.Random(seed)
        self._admin = httpx.AsyncClient(
            base_url=f"{url}/admin", timeout=RESTART_TIMEOUT_S, headers={"authorization": f"Bearer {admin_key}"}
        )
        self._http = httpx.AsyncClient(
            base_url=url, timeout=ANSWER_TIMEOUT_S, limits=httpx.Limits(max_connections=None)
        )
        self._questions = [str(index) + TEXT * (4 + 4 * (index % 5)) for index in range(NUM_QUESTIONS)]
        self._answers: list[str] = []
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.by_minute: Counter[int] = Counter()
        self._began = time.monotonic()
        self.memory: list[dict[str, Any]] = []
        self._killed_s = -math.inf

    def _body(self, question: str, **options: Any) -> dict[str, Any]:
        return {
            "model": MODEL_NAME,
            "prompt": question,
            "max_tokens": TOKENS,
            "temperature": 0,
            "stream": True,
        } | options

    async def _ask(self, question: str) -> str | None:
        """The answer; None if an error told that there is none."""
        text, ended = "", False
        async with self._http.stream("POST", "/v1/completions", json=self._body(question)) as reply:
            if reply.status_code != 200:
                await reply.aread()
                self._told(f"refused with {reply.status_code}", reply.text)
                return None
            async for line in reply.aiter_lines():
                if line == "data: [DONE]":
                    ended = True
                elif line.startswith("data: "):
                    event = json.loads(line[6:])
                    if "error" in event:
                        self._told("told in the stream that the engine died", line)
                        return None
                    text += event["choices"][0]["text"]
        if not ended:
            self.wrong.append("a stream ended without a word")
        return text

    def _told(self, what: str, words: str) -> None:
        """An error that somebody was told; one is due only where an engine has died."""
        self.counts[what] += 1
        if not self._engine_died_lately():
            self.wrong.append(f"{what}: {words}")

    async def learn(self) -> None:
        """The right answers."""
        self._answers = [await self._ask(question) or "" for question in self._questions]
        assert all(self._answers), "the first answers failed"

    async def run(self, seconds: float, kills: int, progress: Progress) -> None:
        """Everything at once."""
        end = time.monotonic() + seconds
        bar = progress.add_task("soak", total=seconds)
        jobs = [self._steady(end) for _ in range(NUM_CLIENTS)]
        jobs += [self._leave(end), self._dawdle(end), self._damage(end), self._kill(seconds, kills)]
        jobs += [self._roll(end), self._flip(end)]
        self._began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in jobs]
            while not all(task.done() for task in tasks):
                self._sample()
                progress.update(bar, completed=min(seconds, seconds - end + time.monotonic()))
                await asyncio.sleep(SAMPLE_S)
        await self._baseline()
        self.counts["blocks dropped from the disk as corrupt"] += int(await self._metric("kv_tier_corrupt_total"))
        self.counts["blocks loaded from tiers"] += int(await self._metric("kv_tier_hits_total"))
        await self._http.aclose()
        await self._admin.aclose()

    async def _steady(self, end: float) -> None:
        while time.monotonic() < end:
            index = self._random.randrange(NUM_QUESTIONS)
            try:
                answer = await self._ask(self._questions[index])
            except httpx.HTTPError as error:
                self.wrong.append(f"no answer: {error!r}")
                continue
            if answer is None:
                await asyncio.sleep(0.5)
            elif answer != self._answers[index]:
                self.wrong.append(f"question {index}: {answer!r}, not {self._answers[index]!r}")
            else:
                self.counts["right answers"] += 1
                self.by_minute[int((time.monotonic() - self._began) // 60)] += 1
            await asyncio.sleep(self._random.uniform(0.2, 1.0))

    async def _leave(self, end: float) -> None:
        """Clients that go in the middle of a long stream."""
        while time.monotonic() < end:
            body = self._body(TEXT, max_tokens=500, ignore_eos=True, n=self._random.choice((1, 2)))
            try:
                async with self._http.stream("POST", "/v1/completions", json=body) as reply:
                    lines = reply.aiter_lines()
                    for _ in range(self._random.randrange(1, 6)):
                        await anext(lines, None)
                self.counts["left in the middle"] += 1
            except httpx.HTTPError as error:
                self.wrong.append(f"while leaving: {error!r}")
            await asyncio.sleep(self._random.uniform(0.2, 1.2))

    async def _dawdle(self, end: float) -> None:
        """Half requests, never finished, and readers that never read."""
        host, port = re.findall(r"//(.*):(\d+)", self._url)[0]
        whole = json.dumps(self._body(TEXT, ignore_eos=True)).encode()
        lines = ("POST /v1/completions HTTP/1.1", "host: x", "content-type: application/json")
        head = "\r\n".join((*lines, f"content-length: {len(whole)}", "", ""))
        opened = []
        while time.monotonic() < end:
            said = head.encode() + whole
            part = self._random.choice((0, 10, len(head), len(head) + 20, len(said)))
            _, writer = await asyncio.open_connection(host, int(port), limit=2**12)
            writer.write(said[:part])
            opened.append(writer)
            self.counts["half requests and readers that do not read"] += 1
            if len(opened) > 50:
                opened.pop(0).transport.abort()
            await asyncio.sleep(2)
        for writer in opened:
            writer.transport.abort()

    async def _damage(self, end: float) -> None:
        while time.monotonic() < end:
            data = bytearray(json.dumps(self._body(TEXT)).encode())
            for _ in range(self._random.randint(1, 6)):
                data[self._random.randrange(len(data))] = self._random.randrange(256)
            try:
                headers = {"content-type": "application/json"}
                reply = await self._http.post("/v1/completions", content=bytes(data), headers=headers)
                if reply.status_code >= 500 and reply.status_code != 503 and "engine died" not in reply.text:
                    self.wrong.append(f"{reply.status_code} for {bytes(data)!r}: {reply.text}")
                self.counts["damaged bodies"] += 1
            except httpx.HTTPError as error:
                self.wrong.append(f"a damaged body: {error!r}")
            await asyncio.sleep(0.7)

    async def _roll(self, end: float) -> None:
        """One version takes the other's place, or tries to."""
        while time.monotonic() < end - ROLL_S:
            try:
                traffic = (await self._order("GET", "/versions"))["traffic"]
                old = traffic["stable"]
                (new,) = set(VERSIONS) - {old}
                await self._order("POST", f"/versions/{new}/load")
                await self._order("PUT", "/traffic", {"canary": new, "weight": 0.3, "shadow": None})
                await self._pause(end)
                back = self._random.random() < 0.5
                await self._order("POST", "/promote", {"version": new})
                await self._pause(end)
                if back:
                    await self._order("POST", "/rollback")
                self.counts["promotions taken back" if back else "promotions"] += 1
                await self._keep_counts(gone := new if back else old)
                await self._order("POST", f"/versions/{gone}/unload")
                self.counts["versions unloaded"] += 1
            except OrderError as error:  # an engine was killed in the middle of it
                self.counts["orders refused while an engine was away"] += 1
                if not self._engine_died_lately():
                    self.wrong.append(str(error))
                await self._order_again()
            await self._pause(end)

    async def _order(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        reply = await self._admin.request(method, path, json=body)
        if reply.status_code != 200:
            raise OrderError(f"{method} {path}: {reply.status_code} {reply.text}")
        return dict(reply.json())

    async def _order_again(self) -> None:
        """Back to one version: whichever is stable."""
        state = await self._order("PUT", "/traffic", {"canary": None})
        for each in state["versions"]:
            if each["state"] == "ready" and each["version"] != state["traffic"]["stable"]:
                await self._order("POST", f"/versions/{each['version']}/unload")

    async def _keep_counts(self, version: str) -> None:
        """Of an engine that is about to end; the metrics of the others are read at the end."""
        for name, metric in (("blocks dropped from the disk as corrupt", "kv_tier_corrupt_total"),
                             ("blocks loaded from tiers", "kv_tier_hits_total")):  # fmt: skip
            self.counts[name] += int(await self._metric(metric, version))

    async def _metric(self, name: str, engine: str = "") -> float:
        """The sum of a series, over all engines or of one."""
        text = (await self._http.get("/metrics")).text
        lines = re.findall(rf"^miniserve:{name}{{(.*)}} (\S+)", text, re.M)
        return sum(float(value) for labels, value in lines if not engine or f'engine="{engine}"' in labels)

    async def _pause(self, end: float) -> None:
        await asyncio.sleep(max(0.0, min(ROLL_S * self._random.uniform(0.5, 1.0), end - time.monotonic())))

    async def _flip(self, end: float) -> None:
        """A bit in a file of the tier on disk."""
        while time.monotonic() < end:
            files = sorted(self._disk.rglob("*.kv"))
            if files:
                with contextlib.suppress(FileNotFoundError), self._random.choice(files).open("r+b") as file:
                    size = file.seek(0, os.SEEK_END)
                    at = self._random.randrange(size)
                    file.seek(at)
                    byte = file.read(1)[0]
                    file.seek(at)
                    file.write(bytes([byte ^ 1 << self._random.randrange(8)]))
                    self.counts["bits flipped in the tier on disk"] += 1
            await asyncio.sleep(FLIP_S)

    def _engine_died_lately(self) -> bool:
        return time.monotonic() - self._killed_s < EXPLAINED_S

    async def _kill(self, seconds: float, kills: int) -> None:
        for _ in range(kills):
            await asyncio.sleep(seconds / (kills + 1))
            if engines := self._engines():
                engine = self._random.choice(engines)
                self._killed_s = time.monotonic()
                os.kill(engine.pid, signal.SIGKILL)
                self.counts["kill -9 of an engine"] += 1
                began = time.monotonic()
                while (await self._http.get("/ready")).status_code != 200:
                    await asyncio.sleep(0.1)
                    assert time.monotonic() < began + RESTART_TIMEOUT_S, "the engine did not come back"

    async def _baseline(self) -> None:
        """Everybody has gone: so must be what they had."""
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while True:
            names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
            left = {name: await self._metric(name) for name in names}
            if not any(left.values()):
                return
            assert time.monotonic() < deadline, f"not back at the baseline: {left}"
            await asyncio.sleep(0.5)

    def _engines(self) -> list[psutil.Process]:
        return [child for child in self._server.children() if "spawn_main" in " ".join(child.cmdline())]

    def _sample(self) -> None:
        try:
            engines = {engine.pid: engine.memory_info().rss for engine in self._engines()}
            server = self._server.memory_info().rss
        except psutil.NoSuchProcess:  # in the middle of dying
            return
        at = round(time.monotonic() - self._began, 1)
        connections = len(self._server.net_connections())
        self.memory.append({"at_s": at, "server": server, "engines": engines, "connections": connections})

    def growth(self) -> dict[str, Any]:
        """Memory, early and late, in MiB: medians of a tenth, after a tenth of warming up."""

        def early_late(sizes: list[float]) -> list[float]:
            tenth = max(1, len(sizes) // 10)
            return [
                sorted(part)[len(part) // 2] / 2**20 for part in (sizes[tenth : 2 * tenth] or sizes, sizes[-tenth:])
            ]

        lives: dict[int, list[float]] = {}
        for sample in self.memory:
            for pid, size in sample["engines"].items():
                lives.setdefault(pid, []).append(size)
        return {
            "server_mib_early_late": early_late([each["server"] for each in self.memory]),
            "engine_mib_early_late_by_life": [early_late(sizes) for sizes in lives.values() if len(sizes) > 10],
            "engines": len(lives),
            "samples": [each | {"engines": sum(each["engines"].values())} for each in
                        self.memory[:: max(1, len(self.memory) // 60)]],
        }  # fmt: skip


def register(model: str, registry: Registry) -> None:
    """Put a model into a registry, as both versions."""
    files = resolve(model)
    for version in VERSIONS:
        registry.register(
            MODEL_NAME, files.path, version=version, card="Of a soak: every version is the same model.",
            provenance=Provenance(source=model, by="serve_soak.py", licence="as the model's"),
        )  # fmt: skip


def report(data: dict[str, Any]) -> None:
    """For people: load held, faults survived, bad inputs tried, requests lost."""
    counts = data["counts"]
    table = Table("", "", title=f"{data['minutes']:g} minutes", show_header=False)
    table.add_row("right answers, a minute", f"{data['answers_a_minute']:.0f} (least {data['least_in_a_minute']})")
    for name, number in sorted(counts.items()):
        table.add_row(name, str(number))
    table.add_row("lost or wrong", str(data["num_wrong"]))
    Console().print(table)


def main() -> None:
    """Start a server, soak it, write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/serve_soak.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        place, key = Path(folder), new_key()
        register(args.model, Registry(place / "registry"))
        keys = place / "admins.toml"
        keys.write_text(f'[soak]\nsha256 = "{hash_key(key)}"\n')
        command = [sys.executable, "-m", "miniserve", "serve", "--models", f"registry:{MODEL_NAME}", "--port", "0"]
        command += ["--max-model-len", "1024", "--kv-cache-mib", str(KV_CACHE_MIB), "--log-level", "warning"]
        command += [
            "--kv-host-mib",
            str(KV_HOST_MIB),
            "--kv-disk",
            str(place / "kv"),
            "--kv-disk-mib",
            str(KV_DISK_MIB),
        ]
        command += ["--admin-keys-file", str(keys)]
        environment = os.environ | {"MINISERVE_REGISTRY": str(place / "registry")}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+:\d+", process.stdout.readline())
            if not found:
                log.seek(0)
                sys.exit(f"the server did not start:\n{log.read()}")
            soak = Soak(found.group(), psutil.Process(process.pid), key, place / "kv", args.seed)

            async def all_of_it() -> None:
                await soak.learn()
                with Progress() as progress:
                    await soak.run(60 * args.minutes, args.kills, progress)

            asyncio.run(all_of_it())
            process.terminate()
            code = process.wait(timeout=60)
            Registry(place / "registry").audit.verify()
        finally:
            process.kill()
    whole_minutes = [soak.by_minute[minute] for minute in range(int(args.minutes))]
    data = {
        "minutes": args.minutes, "model": args.model, "counts": dict(soak.counts),
        "answers_a_minute": soak.counts["right answers"] / args.minutes,
        "least_in_a_minute": min(whole_minutes, default=0),
        "wrong": soak.wrong[:20], "num_wrong": len(soak.wrong), "exit_code": code, "load_average": os.getloadavg()[1],
        **soak.growth(),
    }  # fmt: skip
    report(data)
    options = f" --minutes {args.minutes:g} --model {args.model} --kills {args.kills} --seed {args.seed}"
    write_record(args.out, data, f"python benchmarks/serve_soak.py{options}", "cpu")
    if soak.wrong or code:
        sys.exit(f"{len(soak.wrong)} things went wrong, exit code {code}: {soak.wrong[:3]}")


if __name__ == "__main__":
    main()
