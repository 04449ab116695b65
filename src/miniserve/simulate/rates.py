"""`EngineRates`: how much one engine does within the limits, from the cost model: what a `Planner` asks.

Of a load only its means count: a prompt, what of it is missing, an output. Two things are added for what is not mean.
A prompt waits for those before it: an engine for prompts is a queue M/M/1, whose wait exceeds t with probability
rho · exp(-(1 - rho) · t / service) (Kleinrock, Queueing Systems I, section 5.2), and rho is as high as TTFT allows.
Outputs that decode at once are a number that varies as a Poisson one does: of the seats that TPOT and memory allow, so
many are planned that a normal approximation stays below them. Both look at one engine alone: several that share a
queue do a little better. A limit of `e2e` is not looked at.
"""

import math
from statistics import NormalDist

from miniserve.core.scaling import Capacity, Observed
from miniserve.hardware.cost import Part
from miniserve.simulate.deployment import Deployment
from miniserve.workloads.service import SLO

HALVINGS = 30  # of the interval in which the highest load of a queue is looked for


class EngineRates:
    """Of engines of these kinds; call it with a load.

    Args:
        decode: an engine that decodes.
        prefill: one for prompts; None: those that decode do everything.
        slo: the limits.
        attainment: share of the requests that must be within each.
    """

    def __init__(self, decode: Deployment, prefill: Deployment | None, slo: SLO, attainment: float = 0.95) -> None:
        self._decode, self._prefill, self._slo, self._attainment = decode, prefill, slo, attainment
        self._steps = decode.step_time, (prefill or decode).step_time
        self._last = Capacity(0.0, 0.0, 0.0)

    def __call__(self, observed: Observed) -> Capacity:
        """Under that load; of an interval in which nothing came, as before."""
        if observed.requests:
            prompt = observed.prompt_tokens / observed.requests
            missing = max(1, round(observed.missing_tokens / observed.requests))
            output = max(1, round(observed.output_tokens))
            prompt_s = self.prompt_s(round(prompt) - missing, missing)
            rate = 0.0 if self._prefill is None else missing / prompt_s * self.busy(prompt_s)
            beside_s = prompt_s / output if self._prefill is None else 0.0
            self._last = Capacity(rate, *self._decoding(round(prompt), output, beside_s))
        return self._last

    def prompt_s(self, cached: int, missing: int) -> float:
        """How long a prompt takes alone, in steps of the engine's budget. Seconds."""
        steps, budget = self._steps[1], (self._prefill or self._decode).max_num_batched_tokens
        chunks = [Part(cached + at, min(budget, missing - at), 0) for at in range(0, missing, budget)]
        chunks[-1] = chunks[-1]._replace(sampled=1)
        return sum(steps.seconds([chunk]) for chunk in chunks)

    def busy(self, service_s: float) -> float:
        """The share of the time that a queue may be busy, so that enough of those in it begin within TTFT."""
        wait_s = self._slo.ttft_s - service_s
        if wait_s <= 0:
            return 0.0
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            rho = (low + high) / 2
            late = rho * math.exp(-(1 - rho) * wait_s / service_s)
            low, high = (rho, high) if late <= 1 - self._attainment else (low, rho)
        return low

    def _decoding(self, prompt: int, output: int, beside_s: float) -> tuple[float, float]:
        """Seats, and the time between tokens with all of them taken.

        Args:
            prompt, output: tokens of a request; in the mean, half of the output is in the cache.
            beside_s: of each token's step, for each seat, what prompts take.
        """
        engine, limit_s, context = self._decode, min(self._slo.tpot_s, self._slo.itl_s), prompt + output // 2

        def token_s(seats: int) -> float:
            return self._steps[0].decode_seconds(seats, seats * context, context) + seats * beside_s

        low, high = 0, min(engine.max_num_seqs, engine.num_blocks * engine.block_size // (prompt + output))
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if token_s(middle) <= limit_s else (low, middle - 1)
        spread = NormalDist().inv_cdf(self._attainment)
        seats = ((math.sqrt(spread**2 + 4 * low) - spread) / 2) ** 2
        return seats, token_s(low) if low else 0.0
