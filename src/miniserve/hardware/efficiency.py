"""How close kernels come to the roofline: one curve an operator, number format and device, fitted to measured timings.

    seconds = launch + hop · ranks + step · depth / (1 + depth / knee) + (compute^p + memory^p)^(1/p)

with compute = FLOPs / (peak · fraction) and memory = bytes / (bandwidth · fraction), or a link's. `depth` is what a
kernel goes through in sequence. Two corrections: attention's softmax does work besides its FLOPs, and decode reads KV
in tiles, so that a short context costs as a longer one. The values are in `efficiency.toml`, which
`benchmarks/fit_kernel_timings.py` writes; of kernels for which there are no timings, but a statement of whoever wrote
them, in `stated.toml`. Without a curve, an operator takes its roofline: `IDEAL`, a lower bound.

An all-to-all among more devices than the links join goes over the network, but for what stays within a domain. Where
tensor-parallel groups exchange rows, all devices of a group have what it sends and need what it gets. So a row crosses
the network once, through the device whose share of the rows it is in, and the group hands it on over its links: an
all-gather behind the dispatch, a reduce-scatter of as many bytes before the combine. So does Megatron-Core's dispatcher
(`MoEAlltoAllTokenDispatcher`), and so does vLLM since it was found to send each row once a device (pull request 24134).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from miniserve.errors import CorruptFileError, InvalidRequestError
from miniserve.hardware.cost import Operator, collective
from miniserve.tables import read_toml

FITTED = Path(__file__).with_name("efficiency.toml")
STATED = Path(__file__).with_name("stated.toml")
NOTES = frozenset({"error", "rows", "source", "note"})  # of an entry, besides its parameters
TILE_POWER = 4  # how sharply a context shorter than a tile stops getting cheaper


class Device(Protocol):
    """What limits an operator. `catalog.Accelerator` is one."""

    def flops(self, format: str) -> float:
        """Peak dense FLOP/s in a number format."""

    @property
    def bandwidth(self) -> float:
        """Of memory, bytes/s."""

    @property
    def memory_bytes(self) -> float:
        """Its size."""

    @property
    def link_bandwidth(self) -> float:
        """To its peers, one direction, bytes/s."""

    @property
    def link_domain(self) -> float:
        """How many devices those links join."""

    @property
    def network_bandwidth(self) -> float:
        """To all others, one direction, bytes/s."""


@dataclass(frozen=True)
class Curve:
    """The time of one kind of operator.

    Args:
        launch_s: of the smallest.
        compute: fraction of the peak that a large one reaches.
        memory: fraction of the memory's, or the link's, bandwidth.
        sharpness: p; 1 adds computing and moving, infinity takes the longer.
        step_s, knee: for each unit of `depth`, up to about `knee` of them; infinity has no end.
        hop_s: for each rank of a collective.
        softmax: attention's work for each score besides its FLOPs, as a number of columns of a head.
        tile: tokens of context below which decode gets no cheaper.
    """

    launch_s: float = 0.0
    compute: float = 1.0
    memory: float = 1.0
    sharpness: float = math.inf
    step_s: float = 0.0
    knee: float = math.inf
    hop_s: float = 0.0
    softmax: float = 0.0
    tile: float = 0.0

    def seconds(self, op: Operator, device: Device) -> float:
        """Of doing `op` once. `op` may hold NumPy arrays if the sharpness is finite: so the curves are fitted."""
        work = 1.0
        if self.softmax:
            work += self.softmax / op.head_dim
        if self.tile:
            work *= (1 + (self.tile / op.context) ** TILE_POWER) ** (1 / TILE_POWER)
        started = self.launch_s + self.hop_s * op.ranks + self.step_s * op.depth / (1 + op.depth / self.knee)
        if op.kind == NETWORK:
            return started + op.link_bytes / device.network_bandwidth / self.memory
        if op.peak == "none":
            moved = op.link_bytes / device.link_bandwidth if op.kind in COLLECTIVES else op.bytes / device.bandwidth
            return started + moved / self.memory
        compute = work * op.flops / (device.flops(op.peak) * self.compute)
        memory = (work * op.kv_bytes + op.weight_bytes + op.activation_bytes) / (device.bandwidth * self.memory)
        if self.sharpness == math.inf:
            return started + max(compute, memory)
        both: float = (compute**self.sharpness + memory**self.sharpness) ** (1 / self.sharpness)
        return started + both


NETWORK = "network_all_to_all"
COLLECTIVES = frozenset({"all_reduce", "all_gather", "all_to_all", "reduce_scatter", NETWORK})
ROOFLINE = Curve()


@dataclass(frozen=True)
class Efficiency:
    """A device's curves by kind and format. Several ways to do a collective: the fastest counts.

    `error`: the median absolute error of each curve on timings it was not fitted to, as a fraction.
    """

    name: str
    curves: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)
    error: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def seconds(self, op: Operator, device: Device) -> float:
        """Of doing `op` once.

        Raises InvalidRequestError where there are curves for its kind, but none for its format; a kind that was never
        timed takes its roofline.
        """
        if op.kind == "all_to_all" and op.ranks * op.stride > device.link_domain:
            near, far, handed_on = _over_the_network(op, device.link_domain)
            at_once = max(self.seconds(near, device), self.seconds(far, device))
            return at_once + (self.seconds(handed_on, device) if handed_on.ranks > 1 else 0.0)
        curves = self.curves.get(op.kind)
        if curves is None:
            return ROOFLINE.seconds(op, device)
        if op.kind in COLLECTIVES:
            return min(curve.seconds(op, device) for curve in curves.values())
        if op.format not in curves:
            raise InvalidRequestError(
                f"no timings of {op.kind} in {op.format} on {self.name}; there are {', '.join(curves)}"
            )
        return curves[op.format].seconds(op, device)


def _over_the_network(op: Operator, domain: float) -> tuple[Operator, Operator, Operator]:
    """What one device sends over the links and, at once, over the network; and what its group then hands on.

    Every group sends every other one as much; of what goes far, each of its devices its share.
    """
    near = max(1, domain // op.stride)
    each = op.link_bytes / (op.ranks - 1)
    far = each * (op.ranks - near)
    return (
        op._replace(link_bytes=each * (near - 1), depth=op.depth * near / op.ranks, ranks=near),
        op._replace(kind=NETWORK, link_bytes=far / op.stride),
        collective("all_gather", far, op.stride),
    )


IDEAL = Efficiency("the roofline")


@cache
def load_efficiencies(fitted: Path = FITTED, stated: Path = STATED) -> Mapping[str, Efficiency]:
    """Every device that timings were fitted for, by its key in the catalogue. Raises CorruptFileError."""
    devices, others = _devices(fitted, "error"), _devices(stated, "source")
    if unknown := set(others) - set(devices):
        raise CorruptFileError(f"{stated}: no timings were fitted for {', '.join(sorted(unknown))}")
    return {
        key: Efficiency(
            key,
            {
                kind: {name: curve for name, (curve, _) in by.items()}
                for kind, by in (kinds | others.get(key, {})).items()
            },
            {kind: {name: float(error) for name, (_, error) in by.items()} for kind, by in kinds.items()},
        )
        for key, kinds in devices.items()
    }


def _devices(path: Path, known_by: str) -> dict[str, dict[str, dict[str, tuple[Curve, Any]]]]:
    """Curves with what they are known by: an error, or a source."""
    raw = read_toml(path)
    try:
        return {
            key: {
                kind: {name: (_curve(entry), entry[known_by]) for name, entry in by.items()}
                for kind, by in kinds.items()
            }
            for key, kinds in raw["devices"].items()
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CorruptFileError(f"{path}: {error!r}") from None


def efficiency_of(key: str) -> Efficiency:
    """The curves fitted for a device, by its key. Raises InvalidRequestError for one without timings.

    Example:
        >>> from miniserve.hardware.efficiency import efficiency_of
        >>> sorted(efficiency_of("h100").curves)[:3]
        ['all_gather', 'all_reduce', 'all_to_all']
        >>> efficiency_of("rubin")
        Traceback (most recent call last):
            ...
        miniserve.errors.InvalidRequestError: no kernel timings of 'rubin'; there are some of a100-80, h100, b200
    """
    known = load_efficiencies()
    if key not in known:
        raise InvalidRequestError(f"no kernel timings of '{key}'; there are some of {', '.join(known)}")
    return known[key]


def _curve(entry: Mapping[str, float]) -> Curve:
    return Curve(**{name: float(value) for name, value in entry.items() if name not in NOTES})
