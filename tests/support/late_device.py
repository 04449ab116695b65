"""A device that works while the host goes on: it reads its inputs when the result is asked for, not when it is launched.

Inputs lie in one of a few buffers, in turn, as in pinned memory; a token that the host does not know yet is taken from
the step before. A buffer that is written too early, a pending token that is not one, or a block that is let go of while
a step still writes into it therefore gives wrong tokens or fails.
"""

from collections import deque

from miniserve.core.executor import StepResult
from support.fake_device import FakeDevice, next_token


def looks_back(request):
    """Whether choosing its next token takes the tokens before, on the host."""
    return request.params.repetition_penalty != 1


class LateDevice(FakeDevice):
    """`FakeDevice`, late.

    Args:
        pool: whose blocks these are.
        buffers: sets of inputs; 2 are enough, as no more than two steps are in flight.
        breaks: of the n-th launch, "launch" or "result" and what is raised there.
    """

    def __init__(self, pool, buffers=2, breaks=None):
        super().__init__(pool.num_blocks, pool.block_size)
        self.pool, self.breaks = pool, breaks or {}
        self.buffers = [[] for _ in range(buffers)]
        self.num_launched = self.num_ahead = 0
        self.flying = deque()
        self.rows, self.chosen = {}, {}

    def launch(self, step):
        number, self.num_launched = self.num_launched, self.num_launched + 1
        self.fail("launch", number)
        assert len(self.flying) < 2, "no more than two steps are in flight"
        self.num_ahead += bool(self.flying)
        buffer = self.buffers[number % len(self.buffers)]
        buffer.clear()
        for part in step.scheduled:
            request = part.request
            if looks_back(request):
                assert not part.is_pending, "its newest token is not on the host"
            known = [("token", token) for token in part.token_ids]
            tokens = [*known, ("row", self.rows[request])] if part.is_pending else known
            assert len(tokens) == part.num_tokens
            buffer.append((part.start, tokens, list(request.block_table), part.samples, part.draft))
        self.rows = {part.request: row for row, part in enumerate(step.scheduled)}
        ahead = not any(looks_back(part.request) for part in step.scheduled)
        flight = Flight(self, number, buffer, ahead)
        flight.writes = {block: request for request, block in self.written(step)}
        for other in self.flying:
            for block in flight.writes.keys() & other.writes.keys():
                assert flight.writes[block] is other.writes[block], "a block is somebody else's while it is written"
        self.flying.append(flight)
        return flight

    def written(self, step):
        for part in step.scheduled:
            for position in range(part.start, part.start + part.num_tokens):
                yield part.request, part.request.block_table[position // self.block_size]

    def fail(self, where, number):
        if error := self.breaks.get((where, number)):
            raise error

    def compute(self, buffer):
        """Now the inputs are read, the KV is written, and tokens are chosen."""
        rows = []
        for start, tokens, table, samples, draft in buffer:
            for position, (kind, value) in enumerate(tokens, start):
                token = self.chosen.get(value) if kind == "row" else value  # none: the step before failed
                self.memory[table[position // self.block_size]][position % self.block_size] = (position, token)
            rows.append((start + len(tokens) - len(draft), table, draft) if samples else None)
        return [self.choose(*row) if row else [] for row in rows]

    def choose(self, end, table, draft):
        tokens = []
        for guess in (*draft, None):
            slots = ((table[at // self.block_size], at % self.block_size) for at in range(end + len(tokens)))
            tokens.append(next_token([self.memory[block][slot] for block, slot in slots]))
            if tokens[-1] != guess:
                break
        return tokens


class Flight:
    """A step in flight."""

    def __init__(self, device, number, buffer, ahead):
        self.device, self.number, self.buffer, self.may_be_followed = device, number, buffer, ahead

    def result(self):
        device = self.device
        assert device.flying.popleft() is self, "results are asked for in order, once each"
        for block in self.writes:
            assert not device.pool.is_free(block), "a block is given back while a step writes into it"
        device.fail("result", self.number)
        tokens = device.compute(self.buffer)
        device.chosen = {row: chosen[0] for row, chosen in enumerate(tokens) if chosen}
        return StepResult(tokens)
