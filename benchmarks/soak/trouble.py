"""`Trouble`: versions that take each other's place, bits that flip on the disk, and engines that are killed."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import httpx

from soak.notes import Notes
from soak.watch import Watch

VERSIONS = ("1", "2")
ROLL_S = 20.0  # between two changes of who answers
FLIP_S = 3.0
RESTART_TIMEOUT_S = 300  # of a machine that may be busy


class OrderError(Exception):
    """The admin API refused."""


class Trouble:
    """For one server.

    Args:
        http: a client of its API; `admin`: of its admin API.
        disk: where its KV tier is.
        watch, notes, draw: as of the clients.
    """

    def __init__(
        self, http: httpx.AsyncClient, admin: httpx.AsyncClient, disk: Path, watch: Watch, notes: Notes,
        draw: random.Random,
    ) -> None:  # fmt: skip
        self._http, self._admin, self._disk = http, admin, disk
        self._watch, self._notes, self._random = watch, notes, draw

    def jobs(self, seconds: float, end: float, kills: int) -> list[Coroutine[Any, Any, None]]:
        """All of it at once, until that moment of the monotonic clock, in so many seconds."""
        return [self._roll(end), self._flip(end), self._kill(seconds, kills)]

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
                self._notes.counts["promotions taken back" if back else "promotions"] += 1
                gone = new if back else old
                await self._watch.count_tiers(gone)
                await self._order("POST", f"/versions/{gone}/unload")
                self._notes.counts["versions unloaded"] += 1
            except OrderError as error:  # an engine was killed in the middle of it
                self._notes.told("orders refused while an engine was away", str(error))
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
                    self._notes.counts["bits flipped in the tier on disk"] += 1
            await asyncio.sleep(FLIP_S)

    async def _kill(self, seconds: float, kills: int) -> None:
        """An engine, now and then; it must come back."""
        for _ in range(kills):
            await asyncio.sleep(seconds / (kills + 1))
            if engines := self._watch.engines():
                engine = self._random.choice(engines)
                self._notes.killed()
                os.kill(engine.pid, signal.SIGKILL)
                began = time.monotonic()
                while (await self._http.get("/ready")).status_code != 200:
                    await asyncio.sleep(0.1)
                    assert time.monotonic() < began + RESTART_TIMEOUT_S, "the engine did not come back"
