"""A server under load, for as long as one likes, with everything done to it that clients and machines do.

Steady clients ask the same questions over and over, greedily, streaming; every answer that is complete must be the one
that the engine gave before the trouble began. Beside them: clients that leave in the middle of a stream, half requests
that are never finished, readers that read nothing, damaged bodies, and now and then `kill -9` of the engine's process.
What was in flight then must be told so; nothing may hang, and no complete answer may differ.
The memory of both processes is read every few seconds; the engine's counts only from one of its deaths to the next.

    python benchmarks/serve_soak.py [--minutes 20] [--model smollm2] [--kills 3]

writes results/serve_soak.json. The load is paced, so that the machine is not full: this is no benchmark of speed.
"""

import argparse
import asyncio
import json
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
from rich.progress import Progress

from miniserve.bench.record import write_record

NUM_CLIENTS, NUM_QUESTIONS, TOKENS = 4, 12, 24
ANSWER_TIMEOUT_S = 60
RESTART_TIMEOUT_S = 300  # of a machine that may be busy
SAMPLE_S = 5.0
KV_CACHE_MIB = 192  # little, so that every block has soon been used: its memory is taken when it is written first
TEXT = "The machine reads a book about machines and asks what the next page of it says. "


class Soak:
    """One server and what is done to it."""

    def __init__(self, url: str, server: psutil.Process, model: str, seed: int) -> None:
        self._url, self._server, self._model = url, server, model
        self._random = random.Random(seed)
        self._http = httpx.AsyncClient(
            base_url=url, timeout=ANSWER_TIMEOUT_S, limits=httpx.Limits(max_connections=None)
        )
        self._questions = [TEXT * (1 + index % 5) + str(index) for index in range(NUM_QUESTIONS)]
        self._answers: list[str] = []
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.memory: list[dict[str, float]] = []
        self.lives = 0

    def _body(self, question: str, **options: Any) -> dict[str, Any]:
        return {
            "model": self._model,
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
                self.counts[f"refused with {reply.status_code}"] += 1
                return None
            async for line in reply.aiter_lines():
                if line == "data: [DONE]":
                    ended = True
                elif line.startswith("data: "):
                    event = json.loads(line[6:])
                    if "error" in event:
                        self.counts["told in the stream that the engine died"] += 1
                        return None
                    text += event["choices"][0]["text"]
        if not ended:
            self.wrong.append("a stream ended without a word")
        return text

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
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in jobs]
            while not all(task.done() for task in tasks):
                self._sample()
                progress.update(bar, completed=min(seconds, seconds - end + time.monotonic()))
                await asyncio.sleep(SAMPLE_S)
        await self._baseline()
        await self._http.aclose()

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

    async def _kill(self, seconds: float, kills: int) -> None:
        for _ in range(kills):
            await asyncio.sleep(seconds / (kills + 1))
            if engine := self._engine():
                os.kill(engine.pid, signal.SIGKILL)
                self.counts["kill -9 of the engine"] += 1
                began = time.monotonic()
                while (await self._http.get("/ready")).status_code != 200:
                    await asyncio.sleep(0.1)
                    assert time.monotonic() < began + RESTART_TIMEOUT_S, "the engine did not come back"
                self.lives += 1

    async def _baseline(self) -> None:
        """Everybody has gone: so must be what they had."""
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while True:
            text = (await self._http.get("/metrics")).text
            left = {name: float(re.findall(rf"^miniserve:{name}{{.*}} (\S+)", text, re.M)[0]) for name in
                    ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")}  # fmt: skip
            if not any(left.values()):
                return
            assert time.monotonic() < deadline, f"not back at the baseline: {left}"
            await asyncio.sleep(0.5)

    def _engine(self) -> psutil.Process | None:
        found = [child for child in self._server.children() if "spawn_main" in " ".join(child.cmdline())]
        return found[0] if found else None

    def _sample(self) -> None:
        try:
            engine = self._engine()
            sizes = {"server": self._server.memory_info().rss, "engine": engine.memory_info().rss if engine else 0}
        except psutil.NoSuchProcess:  # in the middle of dying
            return
        self.memory.append({"life": self.lives, **sizes, "connections": len(self._server.net_connections())})

    def growth(self) -> dict[str, Any]:
        """Memory, early and late, in MiB: medians of a tenth, after a tenth of warming up."""

        def early_late(sizes: list[float]) -> list[float]:
            tenth = max(1, len(sizes) // 10)
            return [
                sorted(part)[len(part) // 2] / 2**20 for part in (sizes[tenth : 2 * tenth] or sizes, sizes[-tenth:])
            ]

        lives = [[each["engine"] for each in self.memory if each["life"] == life and each["engine"]]
                 for life in range(self.lives + 1)]  # fmt: skip
        return {
            "server_mib_early_late": early_late([each["server"] for each in self.memory]),
            "engine_mib_early_late_by_life": [early_late(sizes) for sizes in lives if len(sizes) > 10],
            "samples": self.memory[:: max(1, len(self.memory) // 60)],
        }


def main() -> None:
    """Start a server, soak it, write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/serve_soak.json"))
    args = parser.parse_args()
    command = [sys.executable, "-m", "miniserve", "serve", args.model, "--port", "0", "--max-model-len", "1024"]
    command += ["--kv-cache-mib", str(KV_CACHE_MIB)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([*command, "--log-level", "warning"], stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+:\d+", process.stdout.readline())
            if not found:
                log.seek(0)
                sys.exit(f"the server did not start:\n{log.read()}")
            soak = Soak(found.group(), psutil.Process(process.pid), args.model, args.seed)

            async def all_of_it() -> None:
                await soak.learn()
                with Progress() as progress:
                    await soak.run(60 * args.minutes, args.kills, progress)

            asyncio.run(all_of_it())
            process.terminate()
            code = process.wait(timeout=60)
        finally:
            process.kill()
    data = {
        "minutes": args.minutes, "counts": dict(soak.counts), "wrong": soak.wrong[:20], "num_wrong": len(soak.wrong),
        "exit_code": code, **soak.growth(),
    }  # fmt: skip
    print(json.dumps({name: value for name, value in data.items() if name != "samples"}, indent=2))
    options = f" --minutes {args.minutes:g} --model {args.model} --kills {args.kills} --seed {args.seed}"
    write_record(args.out, data, f"python benchmarks/serve_soak.py{options}", "cpu")
    if soak.wrong:
        sys.exit(f"{len(soak.wrong)} things went wrong")


if __name__ == "__main__":
    main()
