"""`Flight`: a request on its way through a cluster: what it is to get, and what its user has seen of it.

To an engine it is a `Request`, and may be several in turn: one for the prompt and one for the rest, or a new one after
the engine has failed. Of these, each begins with all tokens that have come before.

What the tokens are is nobody's business, and would take most of a simulation's time to make up and to hash. Blocks
are told apart by names instead: a trace's, which stand for a block and all before it, or else the request's own.
"""

from dataclasses import dataclass

from miniserve.core.hashing import BlockHash
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
        served: what has come; `arrival`: what there is.
        counts: it is no warm-up.
        is_prefill: it is with an engine that computes its prompt alone.
    """

    name: str
    served: Served
    arrival: Arrival
    counts: bool
    is_prefill: bool = False

    @classmethod
    def of(cls, arrival: Arrival, serial: int, counts: bool) -> "Flight":
        """Of a request that has come."""
        return cls(str(serial), Served(arrival.at_s, arrival.prompt_tokens), arrival, counts)

    @property
    def left(self) -> int:
        """Tokens that are still to come."""
        return self.arrival.output_tokens - self.served.output_tokens

    def request(self) -> Request:
        """For an engine: what is left of it, or its first token alone."""
        prompt = [TOKEN] * (self.arrival.prompt_tokens + self.served.output_tokens)
        request = NamedBlocks(self.name, prompt, Limits(1 if self.is_prefill else self.left))
        request.arrived = self.arrival
        return request


class NamedBlocks(Request):
    """A request whose blocks have names rather than content.

    Attributes:
        arrived: as its user sent it. A block that lies in the prompt has the trace's name for where it ends, one that
            does not has the request's.
    """

    __slots__ = ("arrived",)

    arrived: Arrival

    def block_hashes(self, block_size: int, count: int) -> list[BlockHash]:
        """Of `Request`: alike where names are and positions are."""
        known, hashes = self.arrived, self._hashes
        shared = known.prompt_tokens // block_size if known.blocks else 0
        for at in range(len(hashes), count):
            if at < shared:
                name = known.blocks[((at + 1) * block_size - 1) // known.block_size]
                hashes.append(b"%x %x" % (name, at))
            else:
                hashes.append(b"of %s %x" % (self.request_id.encode(), at))
        return hashes
