"""`Watch`: what the processes of a server take of memory, and what the server says of itself."""

import asyncio
import re
import time
from typing import Any

import httpx
import psutil

from soak.clients import ANSWER_TIMEOUT_S
from soak.notes import Notes

IDLE = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
TIERS = {
    "blocks dropped from the disk as corrupt": "kv_tier_corrupt_total",
    "blocks loaded from tiers": "kv_tier_hits_total",
}


class Watch:
    """Of one server: its process, and a client that reads its metrics."""

    def __init__(self, server: psutil.Process, http: httpx.AsyncClient, notes: Notes) -> None:
        self._server, self._http, self._notes = server, http, notes
        self._memory: list[dict[str, Any]] = []

    def engines(self) -> list[psutil.Process]:
        """Processes that are there now."""
        return [child for child in self._server.children() if "spawn_main" in " ".join(child.cmdline())]

    def sample(self) -> None:
        """Memory of all processes, now."""
        try:
            engines = {engine.pid: engine.memory_info().rss for engine in self.engines()}
            server = self._server.memory_info().rss
        except psutil.NoSuchProcess:  # in the middle of dying
            return
        connections = len(self._server.net_connections())
        at_s = round(self._notes.at_s, 1)
        self._memory.append({"at_s": at_s, "server": server, "engines": engines, "connections": connections})

    async def metric(self, name: str, engine: str = "") -> float:
        """The sum of a series, over all engines or of one."""
        text = (await self._http.get("/metrics")).text
        lines = re.findall(rf"^miniserve:{name}{{(.*)}} (\S+)", text, re.M)
        return sum(float(value) for labels, value in lines if not engine or f'engine="{engine}"' in labels)

    async def count_tiers(self, engine: str = "") -> None:
        """Note what the tiers did: of an engine that is about to end, or of all that are left."""
        for name, metric in TIERS.items():
            self._notes.counts[name] += int(await self.metric(metric, engine))

    async def back_at_the_baseline(self) -> None:
        """Everybody has gone: so must be what they had."""
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while any((left := {name: await self.metric(name) for name in IDLE}).values()):
            assert time.monotonic() < deadline, f"not back at the baseline: {left}"
            await asyncio.sleep(0.5)

    def growth(self) -> dict[str, Any]:
        """Memory, early and late, in MiB; of engines from one of their deaths to the next."""
        lives: dict[int, list[float]] = {}
        for sample in self._memory:
            for pid, size in sample["engines"].items():
                lives.setdefault(pid, []).append(size)
        return {
            "server_mib_early_late": _early_late([each["server"] for each in self._memory]),
            "engine_mib_early_late_by_life": [_early_late(sizes) for sizes in lives.values() if len(sizes) > 10],
            "engines": len(lives),
            "samples": [each | {"engines": sum(each["engines"].values())} for each in
                        self._memory[:: max(1, len(self._memory) // 60)]],
        }  # fmt: skip


def _early_late(sizes: list[float]) -> list[float]:
    """Medians of a tenth, after a tenth of warming up and at the end, in MiB."""
    tenth = max(1, len(sizes) // 10)
    return [sorted(part)[len(part) // 2] / 2**20 for part in (sizes[tenth : 2 * tenth] or sizes, sizes[-tenth:])]
