"""`Part`: what the process of a rank needs to load its part of a model, whatever the parts are.

Which part it is, a communicator says, which there is only when all ranks have met.
"""

from typing import NamedTuple

import torch

from miniserve.model.choices import choose_device
from miniserve.model.communicator import Communicator
from miniserve.model.decoder import Decoder
from miniserve.model.expert_plan import ExpertOptions
from miniserve.model.load import load_model
from miniserve.model.sides import Side


class Part(NamedTuple):
    """Of a model, on one rank.

    Attributes:
        model: a path on this machine.
        device, dtype, backend, quantization: as `load_model` takes them.
        threads: of the CPU.
    """

    model: str
    device: str
    dtype: str
    backend: str
    quantization: str
    threads: int

    def settle(self) -> torch.device:
        """Have this process compute there, with so many threads."""
        torch.set_num_threads(self.threads)
        device = choose_device(self.device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return device

    def load(
        self, communicator: Communicator, *, experts: ExpertOptions | None = None, side: Side | None = None
    ) -> Decoder:
        """The part that the arguments say, as `load_model` takes them."""
        return load_model(
            self.model,
            dtype=self.dtype,
            device=self.device,
            backend=self.backend,
            quantization=self.quantization,
            communicator=communicator,
            experts=experts,
            side=side,
        ).decoder
