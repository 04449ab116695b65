"""`Offer`: what one engine tells another about KV that it has put where the other can read it.

A message: plain, small, and pickled between processes of one user. What the core knows of it is how much it is of and
how long it stands; where the bytes are is between the connector that made it and the one that takes it up.
"""

from typing import NamedTuple


class Offer(NamedTuple):
    """KV of a request's first tokens.

    Attributes:
        num_tokens: how many, counted from the prompt's first.
        num_bytes: how many bytes they are.
        expires_s: of this machine's `time.monotonic`: whoever has not begun to read by then finds nothing.
        source: where they are and what they look like; for the connector.
    """

    num_tokens: int
    num_bytes: int
    expires_s: float
    source: object
