"""`Scenario`: everything that decides a simulation, as a file says it: engines, what is between them, what is asked.

It is checked as far as it can be by itself; whether the parts fit together is found out when it is built (`build`).
Equal scenarios give equal results.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from miniserve.core.routing import ROUTERS
from miniserve.errors import InvalidRequestError
from miniserve.hardware.afd import Way
from miniserve.simulate.outage import Outage
from miniserve.simulate.scaling import Scaling
from miniserve.simulate.tier_plan import TierPlan
from miniserve.tables import from_table, to_table, to_toml
from miniserve.workloads.service import SLO

ROLES = ("both", "prefill", "decode")


@dataclass(frozen=True)
class Engines:
    """Engines that are alike.

    Attributes:
        hardware: an accelerator of the catalogue.
        number: of engines; with a planner, how many there can be.
        role: `both`: prompts and outputs; or `prefill` or `decode` alone.
        tensor: devices that share each layer.
        expert: ranks of each that share out the experts of a mixture, with requests of their own; the prices, outages
            and reports are of ranks then.
        weights, kv: number formats; `kv` None: as the activations.
        memory_share, block_size, max_num_seqs, max_num_batched_tokens, max_model_len: see `Deployment`.
        overhead_ms: of each step, besides its operators.
        expert_skew: exponent of the power law that experts are chosen by; None: all alike.
        draft_acceptance: of a draft head, which of its guesses are right how often: `0.8,0.6`; None: there is none.
        overlap: the two halves of a step take turns, so that one computes while the other's tokens travel.
        afd: `2x6`: two ranks of attention, of `tensor` devices each, and six devices for the feed-forward parts; of
            ranks as `expert` is. `2x6x4`: six for each layer, in four stages of layers. None: these are not apart.
        afd_batches: that take turns then.
        ffn_hardware: what the six are; None: `hardware`. Where that is SRAM, shared experts stay with attention.
        afd_link: assumed to join the two; None: as the catalogue says.
    """

    hardware: str
    number: int = 1
    role: str = "both"
    tensor: int = 1
    expert: int = 1
    weights: str = "bf16"
    kv: str | None = None
    memory_share: float = 0.9
    block_size: int = 64
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_model_len: int = 2**17
    overhead_ms: float = 0.0
    expert_skew: float | None = None
    draft_acceptance: str | None = None
    overlap: bool = False
    afd: str | None = None
    afd_batches: int = 3
    ffn_hardware: str | None = None
    afd_link: Way | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InvalidRequestError(f"the role '{self.role}' of engines is not one of {', '.join(ROLES)}")
        counts = ("number", "tensor", "expert", "block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len")
        for name in counts:
            if getattr(self, name) < 1:
                raise InvalidRequestError(f"{name} of engines is {getattr(self, name)}: it must be 1 at least")
        if not self.afd and (self.ffn_hardware or self.afd_link or self.afd_batches != 3):
            option = "ffn_hardware" if self.ffn_hardware else "afd_link" if self.afd_link else "afd_batches"
            raise InvalidRequestError(f"{option} of engines goes with afd, such as 2x6")
        if not self.overhead_ms >= 0:
            raise InvalidRequestError(f"overhead_ms of engines is {self.overhead_ms}: it must be 0 at least")


@dataclass(frozen=True)
class Workload:
    """What is asked: of `trace`, `preset`, `rate` and `concurrency` one, or a preset with a rate of its own.

    Attributes:
        trace: a file of Azure's or Mooncake's; `speed`: how much faster than recorded.
        preset: a synthetic workload's name.
        rate: requests a second, or sessions, Poisson.
        concurrency: so many users, each asking again at once.
        input, output: tokens, where nothing else says: N, LOW-HIGH, or MEDIAN/P90.
        requests: how many are counted, or sessions; None: 256, or a trace's all.
        warmup: how many before them are not; None: as many as there are users, or none.
        seed: of lengths and moments.
    """

    trace: str | None = None
    speed: float = 1.0
    preset: str | None = None
    rate: float | None = None
    concurrency: int | None = None
    input: str = "1024"
    output: str = "256"
    requests: int | None = None
    warmup: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        given = [name for name in ("trace", "preset", "rate", "concurrency") if getattr(self, name) is not None]
        if len(given) > 1 and given != ["preset", "rate"]:
            raise InvalidRequestError(f"a workload has one of trace, rate and concurrency, not {' and '.join(given)}")
        for name, least in (("concurrency", 1), ("requests", 1), ("warmup", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise InvalidRequestError(f"{name} of a workload is {value}: it must be {least} at least")
        if not 0 < self.speed < float("inf"):
            raise InvalidRequestError(f"speed of a trace is {self.speed}: it must be above 0, and finite")


@dataclass(frozen=True)
class Transfer:
    """What the KV of a prefill engine goes through: bytes/s in one direction, and seconds.

    Example:
        >>> from miniserve.simulate.build import run
        >>> from miniserve.simulate.scenario import Engines, Scenario, Transfer, Workload
        >>> engines = (Engines("h100", role="prefill"), Engines("h100", role="decode"))
        >>> asked = Workload(concurrency=2, input="8192", output="16", requests=8)
        >>> for link in (Transfer(bandwidth=50e9), Transfer(bandwidth=1e9)):
        ...     tally = run(Scenario("qwen3-8b", engines, asked, link=link)).tally
        ...     print(f"simulated: {tally.e2e.percentile(50):.2f} s to the end")
        simulated: 0.43 s to the end
        simulated: 2.42 s to the end
    """

    bandwidth: float = 50e9
    latency_s: float = 1e-4


@dataclass(frozen=True)
class Scenario:
    """A simulation.

    Attributes:
        model: a published one's name, or a directory with config.json.
        engines: what there is.
        workload: what is asked.
        router, decode_router: who chooses where prompts go, and where KV does.
        prefill_from: tokens of a prompt, missing where it will decode, from which on engines for prompts compute it;
            None: any.
        prefix_caching: whether prompts may share blocks; None: where the workload says which do.
        link: from prefill to decode.
        tiers: where KV is kept besides, the nearest first; `load_if_faster`: read only what takes longer to compute.
        outages: what fails.
        planner: has as many of the engines run as the load needs; None: all run.
        slo: what counts as good, in ms: `ttft:500,tpot:50`.
        price: which of the catalogue's prices an hour counts.

    Example:
        >>> from miniserve.simulate.scenario import Engines, Scenario, Workload
        >>> engines = Engines("h100", number=2, weights="fp8")
        >>> scenario = Scenario("qwen3-8b", (engines,), Workload(rate=2.0, output="128"), slo="ttft:500,tpot:20")
        >>> Scenario.from_table(scenario.to_table()) == scenario
        True
        >>> scenario.to_table()["workload"]
        {'rate': 2.0, 'output': '128'}
    """

    model: str
    engines: tuple[Engines, ...]
    workload: Workload = field(default_factory=Workload)
    router: str = "least-loaded"
    decode_router: str = "least-loaded"
    prefill_from: int | None = None
    prefix_caching: bool | None = None
    link: Transfer = field(default_factory=Transfer)
    tiers: tuple[TierPlan, ...] = ()
    load_if_faster: bool = False
    outages: tuple[Outage, ...] = ()
    planner: Scaling | None = None
    slo: str | None = None
    price: str = "hyperscaler_tco"

    def __post_init__(self) -> None:
        for name in (self.router, self.decode_router):
            if name not in ROUTERS:
                raise InvalidRequestError(f"router '{name}' is not one of {', '.join(ROUTERS)}")
        if self.slo:
            SLO.parse(self.slo)
        roles = {engines.role for engines in self.engines}
        if self.prefill_from is not None and (self.prefill_from < 0 or "prefill" not in roles):
            message = f"prefill_from is {self.prefill_from}: it is 0 at least, and goes with engines that prefill alone"
            raise InvalidRequestError(message)
        if roles not in ({"both"}, {"prefill", "decode"}):
            has = ", ".join(sorted(roles)) or "none"
            raise InvalidRequestError(f"engines do both, or some prefill and others decode; the roles here are: {has}")
        if self.planner and not self.slo:
            raise InvalidRequestError("a planner has engines run for limits: slo must say which: ttft:500,tpot:50")
        if self.planner and any(engines.expert > 1 for engines in self.engines):
            raise InvalidRequestError("a planner cannot start or stop ranks that share out experts one by one")

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> "Scenario":
        """Of plain values. Raises InvalidRequestError for what is unknown, of another kind, or nonsense."""
        return from_table(cls, table)

    def to_table(self) -> dict[str, Any]:
        """Plain values, defaults left out."""
        return to_table(self)

    def to_toml(self) -> str:
        """A file that `read_toml` reads."""
        return to_toml(self.to_table())
