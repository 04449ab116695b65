"""A device without a model: its KV memory is a list of what was written where, and it answers from that memory alone.

The next token is a function of all (position, token) pairs read back through the block table. A block that is shared
wrongly, reused too early, registered too soon or left unwritten therefore changes the output, as it would on a GPU.
"""

import zlib

from miniserve.core.executor import Computed, Step, StepResult

VOCABULARY = 50


class FakeDevice:
    """KV memory of `num_blocks` blocks of `block_size` slots."""

    def __init__(self, num_blocks, block_size):
        self.block_size = block_size
        self.memory = [[None] * block_size for _ in range(num_blocks)]

    def launch(self, step: Step):
        """Write each scheduled token's KV, then answer for those that sample."""
        writes = set()
        for part in step.scheduled:
            table = part.request.block_table
            assert len(part.token_ids) == part.num_tokens
            for position, token in enumerate(part.token_ids, part.start):
                block, slot = table[position // self.block_size], position % self.block_size
                assert (block, slot) not in writes, "two requests write one slot in one step"
                writes.add((block, slot))
                self.memory[block][slot] = (position, token)
        return Computed(StepResult([self.answers(part) if part.samples else [] for part in step.scheduled]))

    def answers(self, part):
        """The next tokens, from memory. What is read must be this request's own tokens at their positions."""
        tokens, length = [], len(part.request.token_ids)
        for guess in (*part.draft, None):
            seen = []
            for position in range(length + len(tokens)):
                block = part.request.block_table[position // self.block_size]
                seen.append(self.memory[block][position % self.block_size])
            tokens.append(next_token(seen))
            if tokens[-1] != guess:
                break
        return tokens


def next_token(pairs):
    """A number below VOCABULARY that depends on every pair."""
    return zlib.crc32(repr(pairs).encode()) % VOCABULARY


def alone(prompt, max_tokens, stop_token_ids=frozenset()):
    """What a request must produce whatever happens around it."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(next_token(list(enumerate(tokens))))
        if tokens[-1] in stop_token_ids:
            break
    return tokens[len(prompt) :]
