"""`Deployment`: one model on one group of devices: what it takes, what is left for KV, and how long its steps are.

Memory follows the cost model: every device of a tensor-parallel group has its part of each matrix, every expert-
parallel rank its part of the experts and the whole of the rest. A model that does not fit is an error that says by how
much. With expert parallelism a deployment is one rank of `parallel.expert` that are all alike: its requests, its
devices and its memory are one rank's, and its steps take as long as if all ranks did the same at the same time.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

from miniserve.errors import InvalidRequestError
from miniserve.hardware.cost import Part
from miniserve.hardware.devices import Accelerator
from miniserve.hardware.efficiency import IDEAL, Efficiency, load_efficiencies
from miniserve.hardware.roofline import Roofline
from miniserve.hardware.shape import Parallel, Precision, Shape
from miniserve.simulate.speculation import Speculation, draft_head
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
        overhead_s, imbalance, speculation, overlap: see `StepTime`.
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

    def __post_init__(self) -> None:
        self.parallel.check(self.shape)
        if not 0 < self.memory_share <= 1:
            raise InvalidRequestError(f"memory_share is {self.memory_share}: it must be above 0 and 1 at most")
        if not 1 <= self.imbalance < math.inf:
            raise InvalidRequestError(f"imbalance is {self.imbalance}: the busiest rank has 1 times the mean at least")
        if not 0 <= self.overhead_s < math.inf:
            raise InvalidRequestError(f"overhead_s is {self.overhead_s}: a step's overhead is 0 seconds or more")
        needed = ["bandwidth", "memory_bytes"]
        needed += ["link_bandwidth"] if self.parallel.num_devices > 1 else []
        needed += ["network_bandwidth"] if self.parallel.num_devices > self.device.link_domain else []
        for name in needed:
            if not getattr(self.device, name) > 0:
                raise InvalidRequestError(f"{self.device.name} has a {name} of {getattr(self.device, name)}")
        if self.parallel.tensor > self.device.link_domain:
            raise InvalidRequestError(
                f"{self.parallel.tensor} devices cannot share each layer: the links of a {self.device.name} join "
                f"{self.device.link_domain:.0f}"
            )

    @property
    def num_devices(self) -> int:
        """Of one rank."""
        return self.parallel.tensor

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
        shape, precision = self.shape, self.precision
        whole = (
            self._matrix_bytes(shape) + shape.embedding_parameters * precision.unembedding_bytes / self.parallel.tensor
        )
        if not shape.tied:
            whole += shape.embedding_parameters * precision.embedding_bytes / self.parallel.tensor
        if self.speculation:
            join = 2 * shape.hidden**2 * precision.weight_bytes / self.parallel.tensor
            whole += self._matrix_bytes(draft_head(shape)) + join
        return whole

    def _matrix_bytes(self, shape: Shape) -> float:
        """Of one device, what the layers of a shape take."""
        embeddings = shape.embedding_parameters * (1 if shape.tied else 2)
        everywhere = shape.parameters - shape.routed_parameters - embeddings
        routed = shape.routed_parameters * (
            self.parallel.held(shape.experts) / shape.experts.count if shape.experts else 0
        )
        return (everywhere + routed) * self.precision.weight_bytes / self.parallel.tensor

    @property
    def kv_token_bytes(self) -> float:
        """KV that one token adds to each device."""
        shape = self.shape
        layers = shape.layers + (1 if self.speculation else 0)
        if shape.latent:
            return layers * shape.latent.kept * self.precision.kv_bytes  # every device's heads read all of it
        heads = max(1.0, shape.kv_heads / self.parallel.tensor)
        return 2 * layers * heads * shape.head_dim * self.precision.kv_bytes

    @property
    def kv_sent_bytes(self) -> float:
        """KV of one token that goes to another engine: nothing twice that several devices have."""
        layers = self.shape.layers
        return self.shape.kv_elements * (layers + (1 if self.speculation else 0)) / layers * self.precision.kv_bytes

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
            self.shape, self.precision, self.parallel, roofline,
            overhead_s=self.overhead_s, imbalance=self.imbalance, speculation=self.speculation,
            overlap=self.overlap,
        )  # fmt: skip
