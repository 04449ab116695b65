"""`Deployment`: one model on one group of devices: what it takes, what is left for KV, and how long its steps are.

A model that does not fit is an error that says by how much (`footprint` says what it takes). With expert parallelism a
deployment is one rank of `parallel.expert` that are all alike: its requests, its devices and its memory are one rank's,
and its steps take as long as if all ranks did the same at the same time. So it is where the feed-forward parts have
devices of their own (`sides`): a rank is one of attention, with its share of those devices.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from miniserve.errors import InvalidRequestError
from miniserve.hardware.afd import Sides, Way
from miniserve.hardware.cost import Part
from miniserve.hardware.devices import Accelerator
from miniserve.hardware.efficiency import IDEAL, Efficiency, load_efficiencies
from miniserve.hardware.formats import number_format
from miniserve.hardware.roofline import Roofline
from miniserve.hardware.shape import Parallel, Precision, Shape
from miniserve.simulate import footprint
from miniserve.simulate.afd import PingPong
from miniserve.simulate.speculation import Speculation
from miniserve.simulate.step_time import OneSided, StepTime

GIB = 2**30

#: Whose kernels' timings stand in for a generation's: fractions of peak and bandwidth carry over better than times.
TIMED = {"Ampere": "a100-80", "Hopper": "h100", "Blackwell": "b200", "Blackwell Ultra": "b200"}


def efficiency_for(device: Accelerator) -> Efficiency:
    """The curves fitted to a device's kernels, or to those of another one of its generation; else `IDEAL`.

    What is not known is optimistic: without timings a step takes its roofline, a bound that no kernel reaches.

    Example:
        >>> from miniserve.hardware.catalog import load_catalog
        >>> from miniserve.simulate.deployment import efficiency_for
        >>> [efficiency_for(load_catalog().accelerator(name)).name for name in ("h100", "h200", "rubin")]
        ['h100', 'h100', 'the roofline']
    """
    known = load_efficiencies()
    key = device.key if device.key in known else TIMED.get(device.generation, "")
    return known.get(key, IDEAL)


def kernels_of(efficiency: Efficiency, shape: Shape) -> str:
    """In words, what kernels' times are from."""
    if not efficiency.curves:
        return "the roofline: a lower bound"
    unknown = shape.latent and "latent_attention" not in efficiency.curves
    return f"fitted to timings on {efficiency.name}" + ("; decode attention at the roofline" if unknown else "")


@dataclass(frozen=True)
class Deployment:
    """One engine's worth of devices.

    Args:
        device: of which there are `parallel.tensor` (for each expert-parallel rank).
        shape, precision, parallel: the model, its number formats, and how it is split.
        efficiency: how near its kernels come to the roofline.
        memory_share: of each device's memory that weights and KV may take; the rest is for activations and what the
            driver keeps.
        block_size: tokens of a KV block.
        max_num_seqs, max_num_batched_tokens, max_model_len: the scheduler's limits.
        overhead_s, imbalance, speculation, overlap: see `OneSided`.
        sides: the feed-forward parts' devices; None: they have none of their own.
        ffn_device: what those are; None: `device`.
        way: what joins the two sides, as assumed; None: as the catalogue says, the network of both, or the links where
            all are of one kind.

    Example:
        >>> from miniserve.hardware.catalog import load_catalog
        >>> from miniserve.hardware.shape import Parallel, Precision
        >>> from miniserve.simulate.deployment import Deployment
        >>> from miniserve.simulate.models import shape_by_name
        >>> h100 = load_catalog().accelerator("h100")
        >>> engine = Deployment(h100, shape_by_name("qwen3-32b"), Precision.of("bf16"), Parallel(tensor=2))
        >>> f"{engine.weight_bytes / 1e9:.1f} GB of weights on each of {engine.num_devices:.0f}"
        '32.8 GB of weights on each of 2'
    """

    device: Accelerator
    shape: Shape
    precision: Precision
    parallel: Parallel = field(default_factory=Parallel)
    efficiency: Efficiency = IDEAL
    memory_share: float = 0.9
    block_size: int = 64
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_model_len: int = 2**17
    overhead_s: float = 0.0
    imbalance: float = 1.0
    speculation: Speculation | None = None
    overlap: bool = False
    sides: Sides | None = None
    ffn_device: Accelerator | None = None
    way: Way | None = None

    def __post_init__(self) -> None:
        self.parallel.check(self.shape)
        if not 0 < self.memory_share <= 1:
            raise InvalidRequestError(f"memory_share is {self.memory_share}: it must be above 0 and 1 at most")
        if not 1 <= self.imbalance < math.inf:
            raise InvalidRequestError(f"imbalance is {self.imbalance}: the busiest rank has 1 times the mean at least")
        if not 0 <= self.overhead_s < math.inf:
            raise InvalidRequestError(f"overhead_s is {self.overhead_s}: a step's overhead is 0 seconds or more")
        if self.parallel.tensor > self.device.link_domain:
            raise InvalidRequestError(
                f"{self.parallel.tensor} devices cannot share each layer: the links of a {self.device.name} join "
                f"{self.device.link_domain:.0f}"
            )
        ranks = self.parallel.num_devices
        if self.sides:
            self._check_sides(self.sides)
            ranks = self.sides.attention * self.parallel.tensor + self.sides.ffn
        elif self.ffn_device or self.way:
            what = f"a {self.ffn_device.name} for the" if self.ffn_device else "a way to the"
            raise InvalidRequestError(f"{what} feed-forward parts: these are not apart")
        for device in (self.device, self._ffn_device):
            needed = ["bandwidth", "memory_bytes"]
            needed += ["link_bandwidth"] if ranks > 1 else []
            crosses = ranks > device.link_domain or self.ffn_device
            needed += ["network_bandwidth"] if crosses and not self.way else []
            for name in needed:
                if not self._limit(device, name) > 0:
                    raise InvalidRequestError(f"{device.name} has a {name} of {getattr(device, name)}")

    def _limit(self, device: Accelerator, name: str) -> float:
        """A figure. Raises InvalidRequestError where there is none; of the way between two sides, says what to do."""
        try:
            return float(getattr(device, name))
        except InvalidRequestError as error:
            if name != "network_bandwidth" or not self.ffn_device:
                raise
            message = f"{error}. What joins the two sides must be assumed then, of each device in one direction, with"
            raise InvalidRequestError(f"{message} the latency of a crossing: --afd-link 100GB/s:5us") from None

    def _check_sides(self, sides: Sides) -> None:
        sides.check(self.shape)
        there = self._ffn_device
        if self.ffn_device:
            there.flops(number_format(self.precision.linear).peak)  # raises where it cannot compute in that
        if sides.ffn > there.link_domain and not self.shape.sparse_layers:
            raise InvalidRequestError(
                f"{sides.ffn} devices cannot share each feed-forward part: the links of a {there.name} join "
                f"{there.link_domain:.0f}; take fewer, in stages of layers, such as 2x6x4"
            )
        if self.parallel.expert > 1:
            raise InvalidRequestError(
                f"{self.parallel.expert} ranks that share out the experts: with devices for these apart, they are "
                "shared out among those"
            )
        if self.speculation or self.overlap:
            what = "a draft head's guesses are" if self.speculation else "a step in two halves is"
            raise InvalidRequestError(f"{what} not modelled where feed-forward parts are apart: leave one of them out")

    @property
    def devices(self) -> Iterator[tuple[Accelerator, float]]:
        """Of one rank, by kind: so many, or a share of one."""
        yield self.device, self.parallel.tensor
        if self.sides:
            yield self._ffn_device, self.sides.ffn_devices / self.sides.attention

    @property
    def num_devices(self) -> float:
        """Of one rank."""
        return sum(number for _, number in self.devices)

    @property
    def _ffn_device(self) -> Accelerator:
        return self.ffn_device or self.device

    @property
    def tokens_per_step(self) -> float:
        """That a step gives a request which decodes; mean."""
        return self.speculation.tokens_per_step if self.speculation else 1.0

    def decode_part(self, context: int) -> Part:
        """Of a step, what such a request computes behind `context` tokens: the newest token, and guesses."""
        tokens = 1 + (self.speculation.guesses if self.speculation else 0)
        return Part(context, tokens, tokens)

    @property
    def weight_bytes(self) -> float:
        """Of one device, the draft head's among them."""
        return footprint.weight_bytes(
            self.shape, self.precision, self.parallel, sides=self.sides, has_draft=bool(self.speculation)
        )

    @property
    def ffn_weight_bytes(self) -> float:
        """Of one device for the feed-forward parts, which has most; 0 if there are none."""
        return self.sides.parameters(self.shape) * self.precision.weight_bytes if self.sides else 0.0

    @property
    def kv_token_bytes(self) -> float:
        """KV that one token adds to each device."""
        return footprint.kv_token_bytes(
            self.shape, self.precision, self.parallel.tensor, has_draft=bool(self.speculation)
        )

    @property
    def kv_sent_bytes(self) -> float:
        """KV of one token that goes to another engine."""
        return footprint.kv_sent_bytes(self.shape, self.precision, has_draft=bool(self.speculation))

    @cached_property
    def num_blocks(self) -> int:
        """KV blocks that fit beside the weights.

        Raises:
            InvalidRequestError: not one does. Says what the weights take and what there is.
        """
        if self.ffn_weight_bytes > (room := self.memory_share * self._ffn_device.memory_bytes):
            raise self._too_large(
                self.ffn_weight_bytes, room, self._ffn_device, " for the feed-forward parts", "stages, "
            )
        room = self.memory_share * self.device.memory_bytes
        blocks = int((room - self.weight_bytes) // (self.kv_token_bytes * self.block_size))
        if blocks < 1:
            raise self._too_large(self.weight_bytes, room, self.device)
        return blocks

    def _too_large(
        self, weight_bytes: float, room: float, device: Accelerator, of: str = "", more: str = ""
    ) -> InvalidRequestError:
        return InvalidRequestError(
            f"it does not fit: weights of {_sized(weight_bytes)} a device{of}, of which {_sized(room)} may be used "
            f"({self.memory_share:.0%} of a {device.name}'s {_sized(device.memory_bytes)}): take more devices, {more}"
            "or fewer bits a weight"
        )

    @property
    def step_time(self) -> StepTime:
        """How long steps take."""
        roofline = Roofline(self.device, self.efficiency)
        if self.sides:
            there = Roofline(self.ffn_device, efficiency_for(self.ffn_device)) if self.ffn_device else roofline
            return PingPong(
                self.shape, self.precision, self.sides, roofline, there, tensor=self.parallel.tensor,
                joined=not self.ffn_device, way=self.way, overhead_s=self.overhead_s, imbalance=self.imbalance,
            )  # fmt: skip
        return OneSided(
            self.shape, self.precision, self.parallel, roofline,
            overhead_s=self.overhead_s, imbalance=self.imbalance, speculation=self.speculation,
            overlap=self.overlap,
        )  # fmt: skip


def _sized(number: float) -> str:
    return f"{number / GIB:.1f} GiB" if number >= GIB else f"{number / 2**20:.0f} MiB"
