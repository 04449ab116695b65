"""`Steady`: how much engines yield at each speed of their users once they are full, by the cost model alone.

Users who each have one request of the same length under way, spread evenly over it. *Together*, prompts take their time
from everybody's tokens: a token comes every step(n) + n · prompt / output seconds. *Apart*, prompts have engines of
their own, as many as it takes: a share of an engine counts, which a rack of whole engines must round. There is no queue
and no chance here; `cluster` has both, and puts prompts into steps with tokens, which reads the weights once for both
and makes it a few percent faster where they are together. For curves of many points.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from miniserve.errors import InvalidRequestError
from miniserve.simulate.candidates import Lone
from miniserve.simulate.deployment import Deployment
from miniserve.workloads.service import SLO


class Lengths(NamedTuple):
    """Tokens of each request."""

    prompt: int
    output: int

    @property
    def total_per_output(self) -> float:
        """Tokens of prompt and output for each of the output's: what turns output tokens a second into all tokens."""
        return (self.prompt + self.output) / self.output


class Yield(NamedTuple):
    """What a number of users makes.

    Attributes:
        users: of a rank that decodes.
        speed: tokens a second that each gets: the inverse of the mean time between tokens.
        output_per_s: output tokens a second of a device, of all that it takes.
        prefill_share: of the devices' time that goes to prompts.
    """

    users: int
    speed: float
    output_per_s: float
    prefill_share: float


@dataclass(frozen=True)
class Steady:
    """A service.

    Args:
        decode: a rank that decodes.
        lengths: of all requests.
        prefill: a rank for prompts alone; None: those that decode compute them too.
        found: share of each prompt whose KV is there already. Memory holds it once for each user all the same.

    Example:
        >>> from miniserve.simulate.build import deployment_of
        >>> from miniserve.simulate.scenario import Engines
        >>> from miniserve.simulate.steady import Lengths, Steady
        >>> service = Steady(deployment_of("qwen3-8b", Engines("h100", weights="fp8")), Lengths(1024, 256))
        >>> for users in (1, 64):
        ...     found = service.at(users)
        ...     print(f"simulated: each of {users} gets {found.speed:.0f} tokens/s, all {found.output_per_s:,.0f}")
        simulated: each of 1 gets 184 tokens/s, all 184
        simulated: each of 64 gets 72 tokens/s, all 4,593
        >>> service.within(speed=100).users
        35
    """

    decode: Deployment
    lengths: Lengths
    prefill: Deployment | None = None
    found: float = 0.0

    def __post_init__(self) -> None:
        if min(self.lengths) < 1:
            raise InvalidRequestError(f"{self.lengths}: a request has a token at least, and gets one")
        if not 0 <= self.found <= 1:
            raise InvalidRequestError(f"found is {self.found}: a share of each prompt, 0 to 1")

    @cached_property
    def _back(self) -> Lone:
        return self._lone(self.decode)

    @cached_property
    def prompt_device_s(self) -> float:
        """Device-seconds of a prompt."""
        where = self.prefill or self.decode
        return where.num_devices / self._lone(where).prompts_per_s

    @property
    def room(self) -> int:
        """Users of a rank whose KV fits at once. Raises InvalidRequestError where the weights do not."""
        return min(self._back.room, self.decode.max_num_seqs)

    @cached_property
    def _steps(self) -> dict[int, float]:
        return {}

    def step_s(self, users: int) -> float:
        """Of a rank that decodes for so many, for each token that a step gives a user."""
        if users not in self._steps:
            self._steps[users] = self._step_s(users)
        return self._steps[users]

    def _step_s(self, users: int) -> float:
        decode, context = self.decode, self.lengths.prompt + self.lengths.output // 2
        if not decode.speculation:
            return decode.step_time.decode_seconds(users, users * context, context)
        return decode.step_time.seconds([decode.decode_part(context)] * users) / decode.tokens_per_step

    def token_s(self, users: int) -> float:
        """Between two tokens of a user, in the mean."""
        beside_s = 0.0 if self.prefill else self.prompt_device_s / self.decode.num_devices
        return self.step_s(users) + users * beside_s / self.lengths.output

    def at(self, users: int) -> Yield:
        """With so many users of each rank that decodes."""
        devices, output = self.decode.num_devices, self.lengths.output
        decode_device_s = output * self.step_s(users) * devices / users
        whole = decode_device_s + self.prompt_device_s
        return Yield(users, 1 / self.token_s(users), output / whole, self.prompt_device_s / whole)

    def within(self, speed: float) -> Yield | None:
        """With as many users as each still get `speed` tokens a second; None: one alone does not."""
        limit_s = 1 / speed if speed else math.inf
        users = bisect_right(range(1, self.room + 1), limit_s, key=self.token_s)
        return self.at(users) if users else None

    def _lone(self, where: Deployment) -> Lone:
        prompt = self.lengths.prompt
        found = min(round(self.found * prompt), prompt - 1)  # the last token is computed: what follows it is not known
        return Lone(where, *self.lengths, easiest=prompt, slo=SLO(), found=found)
