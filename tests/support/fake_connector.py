"""A tier of KV memory beside a `FakeDevice`: saves full blocks by hash, brings them back later, and sometimes fails.

Nothing happens at once: what is asked for is queued, and `poll` completes as much as `pace` allows. Saves read the
device's memory only then, loads write into it only then, so that a block that is not held meanwhile shows.
"""

from collections import deque

from miniserve.core.connector import Progress
from miniserve.core.request import Request


class FakeTier:
    """Keeps `blocks` by hash. `pace()` says how many operations the next poll completes, `loses()` whether a load fails."""

    def __init__(self, device, pace=lambda: 1000, loses=lambda: False):
        self.device, self.pace, self.loses = device, pace, loses
        self.blocks, self.queue = {}, deque()
        self.num_loads = 0

    def lookup(self, request: Request, num_computed: int) -> int:
        size = self.device.block_size
        if num_computed % size:
            return 0
        reusable = (len(request.token_ids) - 1) // size
        hashes = request.block_hashes(size, reusable)[num_computed // size : reusable]
        found = 0
        while found < len(hashes) and hashes[found] in self.blocks:
            found += 1
        return found * size

    def load(self, request: Request, start: int, num_tokens: int) -> None:
        self.num_loads += 1
        self.queue.append(("load", request, start, num_tokens))

    def computed(self, request: Request, first_block: int):
        size = self.device.block_size
        hashes = request.block_hashes(size, request.num_registered)
        news = [i for i in range(first_block, request.num_registered) if hashes[i] not in self.blocks]
        blocks = [request.block_table[index] for index in news]
        self.queue.extend(("save", hashes[index], block, None) for index, block in zip(news, blocks, strict=True))
        return blocks

    def finished(self, request: Request):
        return ()

    def poll(self, wait: bool) -> Progress:
        progress = Progress()
        for _ in range(min(max(self.pace(), wait), len(self.queue))):
            kind, *what = self.queue.popleft()
            if kind == "save":
                content, block, _ = what
                self.blocks[content] = list(self.device.memory[block])
                progress.released.append(block)
            else:
                request, start, num_tokens = what
                size = self.device.block_size
                arrived = 0 if self.loses() else num_tokens
                hashes = request.block_hashes(size, (start + num_tokens) // size)
                for position in range(start, start + arrived, size):
                    index = position // size
                    self.device.memory[request.block_table[index]] = list(self.blocks[hashes[index]])
                progress.loaded.append((request, arrived))
        return progress
