"""What computes, where, and in which numbers: device, backend, dtype, and weights of few bits.

Each has a name that a user can give and an "auto" that decides. Nothing is decided in silence: `Choices` says what it
came to, and why it is not something faster. An impossible request is refused rather than replaced.
"""

from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch

from miniserve.errors import InvalidRequestError
from miniserve.kernels import reference
from miniserve.kernels.cpu import ops as cpu_ops
from miniserve.kernels.cpu.binding import unavailable
from miniserve.kernels.operators import Operators
from miniserve.model.quantization_hf import StoredFormat

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FIRST_BF16_CAPABILITY = (8, 0)
FIRST_TRITON_CAPABILITY = (8, 0)  # below it Triton has no tensor cores
BACKENDS = ("torch", "cpu", "triton")
FIRST_FP8_CAPABILITY = (8, 9)
QUANTIZATIONS = ("none", "int8", "int4", "file", "fp8")


@dataclass(frozen=True)
class Choices:
    """What was decided.

    Attributes:
        device: where weights and KV live.
        backend: "torch"; "cpu": C++ kernels; or "triton": kernels for NVIDIA GPUs.
        dtype: of the KV and of weights that are not of few bits.
        compute_dtype: of the activations.
        quantization: "none", "int8", "int4", "file": whatever 8- and 4-bit blocks or rows of 8 bits the file has, or
            "fp8".
        note: why no faster backend, and what has become of weights that the file has in 8 bits, if so.
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
        if self.backend == "triton":
            from miniserve.kernels.triton import ops  # only where Triton is installed

            return ops
        return cpu_ops if self.backend == "cpu" else reference

    def for_file(self, stored: StoredFormat | None, *, asked: str) -> "Choices":
        """What becomes of a file's weights in 8 bits: they are kept if the device computes with them, else expanded.

        Args:
            stored: how the file has them; None: not in 8 bits with scales.
            asked: the quantization that the user gave. Only "auto", or "file" on a CPU, leaves it to the file.
        """
        if stored is None or asked not in ("auto", "file"):
            return self
        reason, wide = self._without_rows(stored), str(self.dtype).removeprefix("torch.")
        if reason is None:
            return replace(self, quantization="file")
        told = f"the file's {stored.name} weights are expanded to {wide}: {reason}"
        note = f"{self.note}; {told}" if self.note else told
        return replace(self, quantization="none", note=note)

    def _without_rows(self, stored: StoredFormat) -> str | None:
        """Why the file's codes are not computed with, if so."""
        if not stored.has_row_scales:
            return f"a scale for each block of {stored.shared_by} is not one for each row"
        if self.backend != "triton":
            return f"rows of it need the Triton kernels, and the backend is {self.backend} on {self.device.type}"
        return without_fp8(self.device, self.backend) if stored.name == "E4M3" else None


def choose(device: str = "auto", dtype: str = "auto", backend: str = "auto", quantization: str = "auto") -> Choices:
    """Decide.

    Args:
        device: "cpu", "cuda", "cuda:1" or "auto" (the first NVIDIA GPU, else the CPU).
        dtype: "float32", "bfloat16", "float16" or "auto": bfloat16 on GPUs that compute it and with the CPU's C++
            kernels, which compute in float32 whatever the weights are; float16 on older GPUs; else float32.
        backend: "torch", "cpu" (C++ kernels, compiled at first use), "triton" (on NVIDIA GPUs of compute capability 8.0
            and up) or "auto": the fastest that the device has.
        quantization: with the CPU's C++ kernels: "int8" or "int4" for the weights of linear layers, "file" to keep the
            blocks that a GGUF file has, "none", or "auto": "file" if the dtype is "auto" too, else "none". With Triton
            kernels: weights with a scale a row, "int8", or from capability 8.9 on "fp8" (E4M3); "auto" is "none", if
            the file has no such rows itself (`Choices.for_file`).

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
    if quantization == "fp8":
        reason = without_fp8(place, name)
        if reason:
            raise InvalidRequestError(f"quantization 'fp8' does not work here: {reason}")
        return Choices(place, name, kind, kind, "fp8", note)
    if name == "triton" and quantization == "int8":
        return Choices(place, name, kind, kind, "int8", note)
    if name != "cpu":
        if quantization not in ("auto", "none"):
            reason = note or f"the backend is {name} on {place.type}"
            kernels = "the CPU's C++ kernels" + (" or Triton's" if quantization == "int8" else "")
            raise InvalidRequestError(f"quantization {quantization!r} needs {kernels}: {reason}")
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
    if name == "torch":
        return "torch", ""
    if name == "triton" or (name == "auto" and device.type != "cpu"):
        reason = without_triton(device)
        if reason is None:
            return "triton", ""
        if name == "triton":
            raise InvalidRequestError(f"backend 'triton' does not work here: {reason}")
        return "torch", f"plain torch computes, slower than the Triton kernels: {reason}"
    reason = "it has no float16" if dtype == "float16" else unavailable() if device.type == "cpu" else f"on {device}"
    if reason is None:
        return "cpu", ""
    if name == "cpu":
        raise InvalidRequestError(f"backend 'cpu' does not work here: {reason}")
    return "torch", f"plain torch computes, several times slower than the C++ kernels: {reason}"


def without_triton(device: torch.device) -> str | None:
    """Why the Triton kernels do not work on `device`, if so."""
    if device.type != "cuda":
        return f"it is for NVIDIA GPUs, and the device is {device}"
    capability = torch.cuda.get_device_capability(device)
    if capability < FIRST_TRITON_CAPABILITY:
        return "they need compute capability 8.0, and {} has {}.{}".format(device, *capability)
    return None if find_spec("triton") else "the package triton is not installed"


def without_fp8(device: torch.device, backend: str) -> str | None:
    """Why the kernels do not take E4M3 on `device`, if so."""
    if backend != "triton":
        return f"it needs the Triton kernels, and the backend is {backend} on {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < FIRST_FP8_CAPABILITY:
        return "it needs compute capability 8.9, and {} has {}.{}".format(device, *capability)
    return None


def best_dtype(device: torch.device, backend: str) -> torch.dtype:
    """What "auto" comes to: see `choose`.

    A GPU's capability is asked for, not `is_bf16_supported()`, which is true on older GPUs that only emulate bfloat16.
    """
    if device.type == "cpu":
        return torch.bfloat16 if backend == "cpu" else torch.float32
    capable = torch.cuda.get_device_capability(device) >= FIRST_BF16_CAPABILITY
    return torch.bfloat16 if capable else torch.float16
