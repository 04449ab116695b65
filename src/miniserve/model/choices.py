"""What computes, where, and in which numbers: device, backend, dtype, and weights of few bits.

Each has a name that a user can give and an "auto" that decides. Nothing is decided in silence: `Choices` says what it
came to, and why it is not something faster. An impossible request is refused rather than replaced.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from miniserve.errors import InvalidRequestError
from miniserve.kernels import reference
from miniserve.kernels.cpu import ops as cpu_ops
from miniserve.kernels.cpu.binding import unavailable
from miniserve.kernels.operators import Operators

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FIRST_BF16_CAPABILITY = (8, 0)
BACKENDS: Mapping[str, Operators] = {"torch": reference, "cpu": cpu_ops}
QUANTIZATIONS = ("none", "int8", "int4", "file")


@dataclass(frozen=True)
class Choices:
    """What was decided.

    Attributes:
        device: where weights and KV live.
        backend: "torch", or "cpu": C++ kernels.
        dtype: of the KV and of weights that are not of few bits.
        compute_dtype: of the activations.
        quantization: "none", "int8", "int4", or "file": whatever 8- and 4-bit blocks the file has.
        note: why no faster backend, if so.
    """

    device: torch.device
    backend: str
    dtype: torch.dtype
    compute_dtype: torch.dtype
    quantization: str
    note: str = ""

    @property
    def ops(self) -> Operators:
        """The backend's operators."""
        return BACKENDS[self.backend]


def choose(device: str = "auto", dtype: str = "auto", backend: str = "auto", quantization: str = "auto") -> Choices:
    """Decide.

    Args:
        device: "cpu", "cuda", "cuda:1" or "auto" (the first NVIDIA GPU, else the CPU).
        dtype: "float32", "bfloat16", "float16" or "auto": bfloat16 on GPUs that compute it and with the CPU's C++
            kernels, which compute in float32 whatever the weights are; float16 on older GPUs; else float32.
        backend: "torch", "cpu" (C++ kernels, compiled at first use) or "auto": the faster one that this machine has.
        quantization: with the CPU's C++ kernels: "int8" or "int4" for the weights of linear layers, "file" to keep the
            blocks that a GGUF file has, "none", or "auto": "file" if the dtype is "auto" too, else "none".

    Raises:
        InvalidRequestError: no such thing, or not on this machine.
    """
    place = choose_device(device)
    if dtype not in ("auto", *DTYPES):
        raise InvalidRequestError(f"dtype {dtype!r} is not one of auto, {', '.join(DTYPES)}")
    if quantization not in ("auto", *QUANTIZATIONS):
        raise InvalidRequestError(f"quantization {quantization!r} is not one of auto, {', '.join(QUANTIZATIONS)}")
    name, note = choose_backend(backend, place, dtype)
    kind = DTYPES[dtype] if dtype != "auto" else best_dtype(place, name)
    if name != "cpu":
        if quantization not in ("auto", "none"):
            reason = note or f"the backend is {name} on {place.type}"
            raise InvalidRequestError(f"quantization {quantization!r} needs the CPU's C++ kernels: {reason}")
        return Choices(place, name, kind, kind, "none", note)
    if quantization == "auto":
        quantization = "file" if dtype == "auto" else "none"
    return Choices(place, name, kind, torch.float32, quantization, note)


def choose_device(name: str) -> torch.device:
    """The torch device called `name`.

    Raises:
        InvalidRequestError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidRequestError(f"device {name!r} is not one of auto, cpu, cuda, cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InvalidRequestError(f"device {name!r} is not supported: miniserve runs on cpu and cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidRequestError(
            f"device {name!r} was asked for, but this machine has {torch.cuda.device_count()} GPUs"
        )
    return device


def choose_backend(name: str, device: torch.device, dtype: str) -> tuple[str, str]:
    """The backend called `name`, and why it is no faster one, if so.

    Raises:
        InvalidRequestError: no such backend, or it does not work here.
    """
    if name not in ("auto", *BACKENDS):
        raise InvalidRequestError(f"backend {name!r} is not one of auto, {', '.join(BACKENDS)}")
    if name == "torch" or (name == "auto" and device.type != "cpu"):
        return "torch", ""
    reason = "it has no float16" if dtype == "float16" else unavailable() if device.type == "cpu" else f"on {device}"
    if reason is None:
        return "cpu", ""
    if name == "cpu":
        raise InvalidRequestError(f"backend 'cpu' does not work here: {reason}")
    return "torch", f"plain torch computes, several times slower than the C++ kernels: {reason}"


def best_dtype(device: torch.device, backend: str) -> torch.dtype:
    """What "auto" comes to: see `choose`.

    A GPU's capability is asked for, not `is_bf16_supported()`, which is true on older GPUs that only emulate bfloat16.
    """
    if device.type == "cpu":
        return torch.bfloat16 if backend == "cpu" else torch.float32
    capable = torch.cuda.get_device_capability(device) >= FIRST_BF16_CAPABILITY
    return torch.bfloat16 if capable else torch.float16
