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
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from soak.clients import Clients
from soak.notes import Notes
from soak.trouble import RESTART_TIMEOUT_S, VERSIONS, Trouble
from soak.watch import Watch

from miniserve.bench.record import write_record
from miniserve.model.sources.resolve import resolve
from miniserve.registry.store import Registry
from miniserve.registry.version import Provenance
from miniserve.server.access import hash_key, new_key

SAMPLE_S = 5.0
KV_CACHE_MIB = 64  # little, so that blocks are dropped, and found again in the tiers
KV_HOST_MIB, KV_DISK_MIB = 16, 64
MODEL_NAME = "soak"


class Soak:
    """A server that is started in a folder, from its registry to its audit log.

    Attributes:
        process: the server's; `url`: where it answers.
        notes, watch: what was seen.
    """

    def __init__(self, process: subprocess.Popen[str], url: str, admin_key: str, disk: Path, seed: int) -> None:
        self.process, self.url, self.notes = process, url, Notes()
        draw = random.Random(seed)
        self._clients = Clients(url, MODEL_NAME, self.notes, draw)
        self._admin = httpx.AsyncClient(
            base_url=f"{url}/admin", timeout=RESTART_TIMEOUT_S, headers={"authorization": f"Bearer {admin_key}"}
        )
        self.watch = Watch(psutil.Process(process.pid), self._clients.http, self.notes)
        self._trouble = Trouble(self._clients.http, self._admin, disk, self.watch, self.notes, draw)

    async def run(self, seconds: float, kills: int) -> None:
        """The right answers are learnt; then everything at once."""
        await self._clients.learn()
        self.notes.begin()
        end = time.monotonic() + seconds
        jobs = [*self._clients.jobs(end), *self._trouble.jobs(seconds, end, kills)]
        with Progress() as progress:
            bar = progress.add_task("soak", total=seconds)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(job) for job in jobs]
                while not all(task.done() for task in tasks):
                    self.watch.sample()
                    progress.update(bar, completed=min(seconds, self.notes.at_s))
                    await asyncio.sleep(SAMPLE_S)
        await self.watch.back_at_the_baseline()
        await self.watch.count_tiers()
        await self._clients.http.aclose()
        await self._admin.aclose()


def register(model: str, registry: Registry) -> None:
    """Put a model into a registry, as both versions."""
    files = resolve(model)
    for version in VERSIONS:
        registry.register(
            MODEL_NAME, files.path, version=version, card="Of a soak: every version is the same model.",
            provenance=Provenance(source=model, by="serve_soak.py", licence="as the model's"),
        )  # fmt: skip


@contextlib.contextmanager
def started(model: str, seed: int, folder: Path) -> Iterator[Soak]:
    """A server of both versions, with little memory and every tier; what is left of it at the end is killed."""
    key, keys = new_key(), folder / "admins.toml"
    register(model, Registry(folder / "registry"))
    keys.write_text(f'[soak]\nsha256 = "{hash_key(key)}"\n')
    options = {
        "models": f"registry:{MODEL_NAME}", "port": 0, "max-model-len": 1024, "kv-cache-mib": KV_CACHE_MIB,
        "log-level": "warning", "kv-host-mib": KV_HOST_MIB, "kv-disk": folder / "kv", "kv-disk-mib": KV_DISK_MIB,
        "admin-keys-file": keys,
    }  # fmt: skip
    command = [sys.executable, "-m", "miniserve", "serve"]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    environment = os.environ | {"MINISERVE_REGISTRY": str(folder / "registry")}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+:\d+", process.stdout.readline())
            if not found:
                log.seek(0)
                sys.exit(f"the server did not start:\n{log.read()}")
            yield Soak(process, found.group(), key, folder / "kv", seed)
        finally:
            process.kill()


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
    with tempfile.TemporaryDirectory() as folder, started(args.model, args.seed, Path(folder)) as soak:
        asyncio.run(soak.run(60 * args.minutes, args.kills))
        soak.process.terminate()
        code = soak.process.wait(timeout=60)
        Registry(Path(folder) / "registry").audit.verify()
    notes = soak.notes
    whole_minutes = [notes.by_minute[minute] for minute in range(int(args.minutes))]
    data = {
        "minutes": args.minutes, "model": args.model, "counts": dict(notes.counts),
        "answers_a_minute": notes.counts["right answers"] / args.minutes,
        "least_in_a_minute": min(whole_minutes, default=0),
        "wrong": notes.wrong[:20], "num_wrong": len(notes.wrong), "exit_code": code,
        "load_average": os.getloadavg()[1], **soak.watch.growth(),
    }  # fmt: skip
    report(data)
    options = f" --minutes {args.minutes:g} --model {args.model} --kills {args.kills} --seed {args.seed}"
    write_record(args.out, data, f"python benchmarks/serve_soak.py{options}", "cpu")
    if notes.wrong or code:
        sys.exit(f"{len(notes.wrong)} things went wrong, exit code {code}: {notes.wrong[:3]}")


if __name__ == "__main__":
    main()
