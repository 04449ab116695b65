"""`Flight`: a request on its way through a cluster: what it is to get, and what its user has seen of it.

To an engine it is a `Request`, and may be several in turn: one for the prompt and one for the rest, or a new one after
the engine has failed. Of these, each begins with all tokens that have come before.
"""

from dataclasses import dataclass

from miniserve.core.request import Request
from miniserve.core.sampling_params import Limits
from miniserve.simulate.device import TOKEN
from miniserve.simulate.tally import Served
from miniserve.workloads.arrivals import Arrival


@dataclass
class Flight:
    """One.

    Attributes:
        name: of its requests, too.
        served, prompt, output_tokens: what has come, and what there is.
        then: what its user asks afterwards.
        counts: it is no warm-up.
        is_prefill: it is with an engine that computes its prompt alone.
    """

    name: str
    served: Served
    prompt: list[int]
    output_tokens: int
    then: Arrival | None
    counts: bool
    is_prefill: bool = False

    @classmethod
    def of(cls, arrival: Arrival, serial: int, counts: bool) -> "Flight":
        """Of a request that has come."""
        served = Served(arrival.at_s, arrival.prompt_tokens)
        return cls(str(serial), served, prompt_of(arrival, serial), arrival.output_tokens, arrival.then, counts)

    @property
    def left(self) -> int:
        """Tokens that are still to come."""
        return self.output_tokens - self.served.output_tokens

    def request(self) -> Request:
        """For an engine: what is left of it, or its first token alone."""
        prompt = self.prompt + [TOKEN] * self.served.output_tokens
        return Request(self.name, prompt, Limits(1 if self.is_prefill else self.left))


def prompt_of(arrival: Arrival, serial: int) -> list[int]:
    """Token ids of a prompt: alike where the names of its blocks are, and nobody else's where it has none."""
    if not arrival.blocks:
        return [2**30 + serial] * arrival.prompt_tokens
    ids: list[int] = []
    for name in arrival.blocks:
        ids += [name + 1] * arrival.block_size
    return ids[: arrival.prompt_tokens]
