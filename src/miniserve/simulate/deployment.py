"""`Deployment`: one model on one group of devices: what it takes, what is left for KV, and how long its steps are.

Memory follows the cost model: every device of a tensor-parallel group has its part of each matrix, every expert-
parallel rank its part of the experts and the whole of the rest. A model that does not fit is an error that says by how
much. With expert parallelism a deployment is one rank of several that are all alike.
"""

from dataclasses import dataclass, field
from functools import cached_property

from miniserve.errors import InvalidRequestError
from miniserve.hardware.devices import Accelerator
from miniserve.hardware.efficiency import IDEAL, Efficiency, load_efficiencies
from miniserve.hardware.roofline import Roofline
from miniserve.hardware.shape import Parallel, Precision, Shape
from miniserve.simulate.step_time import StepTime

GIB = 2**30

#: Whose kernels' timings stand in for a generation's: fractions of peak and bandwidth carry over better than times.
TIMED = {"Ampere": "a100-80", "Hopper": "h100", "Blackwell": "b200", "Blackwell Ultra": "b200"}


def efficiency_for(device: Accelerator) -> Efficiency:
    """The curves fitted to a device's kernels, or to those of another one of its generation; else `IDEAL`.

    What is not known is optimistic: without timings a step takes its roofline, a bound that no kernel reaches.
    """
    known = load_efficiencies()
    key = device.key if device.key in known else TIMED.get(device.generation, "")
    return known.get(key, IDEAL)


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
        overhead_s, imbalance: see `StepTime`.
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

    def __post_init__(self) -> None:
        self.parallel.check(self.shape)
        if not 0 < self.memory_share <= 1:
            raise InvalidRequestError(f"memory_share is {self.memory_share}: it must be above 0 and 1 at most")
        for name in ("bandwidth", "memory_bytes"):
            if not getattr(self.device, name) > 0:
                raise InvalidRequestError(f"{self.device.name} has a {name} of {getattr(self.device, name)}")

    @property
    def num_devices(self) -> int:
        """Of one rank."""
        return self.parallel.tensor

    @property
    def weight_bytes(self) -> float:
        """Of one device."""
        shape, precision = self.shape, self.precision
        experts = shape.experts
        routed = 3 * shape.sparse_layers * shape.hidden * experts.count * experts.intermediate if experts else 0
        embeddings = shape.vocab * shape.hidden
        layers = shape.parameters - routed - embeddings * (1 if shape.tied else 2)
        whole = layers * precision.weight_bytes + embeddings * precision.unembedding_bytes
        if not shape.tied:
            whole += embeddings * precision.embedding_bytes
        return (whole + routed * precision.weight_bytes / self.parallel.expert) / self.parallel.tensor

    @property
    def kv_token_bytes(self) -> float:
        """KV that one token adds to each device."""
        shape = self.shape
        heads = max(1.0, shape.kv_heads / self.parallel.tensor)
        return 2 * shape.layers * heads * shape.head_dim * self.precision.kv_bytes

    @cached_property
    def num_blocks(self) -> int:
        """KV blocks that fit beside the weights.

        Raises:
            InvalidRequestError: not one does. Says what the weights take and what there is.
        """
        room = self.memory_share * self.device.memory_bytes
        blocks = int((room - self.weight_bytes) // (self.kv_token_bytes * self.block_size))
        if blocks < 1:
            raise InvalidRequestError(
                f"it does not fit: weights of {self.weight_bytes / GIB:.1f} GiB a device, of which "
                f"{room / GIB:.1f} GiB may be used ({self.memory_share:.0%} of a {self.device.name}'s "
                f"{self.device.memory_bytes / GIB:.1f}): take more devices, or fewer bits a weight"
            )
        return blocks

    @property
    def step_time(self) -> StepTime:
        """How long steps take."""
        roofline = Roofline(self.device, self.efficiency)
        return StepTime(
            self.shape, self.precision, self.parallel, roofline, overhead_s=self.overhead_s, imbalance=self.imbalance
        )
