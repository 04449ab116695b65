"""From a model's name to a model ready to run: resolve, open, choose dtype and device, load.

The one place where the pieces of `model/` meet. Nothing is chosen silently: `LoadedModel` says which dtype and device
it got, and an impossible request is refused rather than replaced.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from miniserve.errors import InvalidRequestError
from miniserve.model.checkpoint import Checkpoint, GGUFCheckpoint, SafetensorsCheckpoint
from miniserve.model.config import ModelConfig
from miniserve.model.decoder import Decoder
from miniserve.model.sources.files import ModelFiles
from miniserve.model.sources.resolve import resolve
from miniserve.model.tokenizer.tokenizer import Tokenizer
from miniserve.model.weights import load_weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FIRST_BF16_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class LoadedModel:
    """A decoder with its weights, its tokenizer and where both came from."""

    files: ModelFiles
    config: ModelConfig
    decoder: Decoder
    tokenizer: Tokenizer


def open_checkpoint(files: ModelFiles) -> Checkpoint:
    """Open what `sources.resolve` found. Reads headers and configuration, no weights."""
    if files.kind == "gguf":
        return GGUFCheckpoint(files.path)
    return SafetensorsCheckpoint(files.path)


def load_model(
    name: str = "smollm2",
    *,
    dtype: str = "auto",
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> LoadedModel:
    """Load a model by alias, path or Hugging Face name (`org/name`).

    Args:
        name: what to load; see `miniserve models list`.
        dtype: "float32", "bfloat16", "float16" or "auto" (see `choose_dtype`).
        device: "cpu", "cuda", "cuda:1" or "auto" (the first NVIDIA GPU, else the CPU).
        progress: called with (tensors done, tensors in all).

    Raises:
        MiniserveError: one of its subclasses, naming what is wrong.
    """
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    files = resolve(name)
    checkpoint = open_checkpoint(files)
    tokenizer = checkpoint.tokenizer()
    decoder = load_weights(checkpoint, dtype=kind, device=place, progress=progress)
    return LoadedModel(files, checkpoint.config, decoder, tokenizer)


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


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype called `name`; "auto" is float32 on a CPU, bfloat16 on a GPU of capability 8.0 or more, else float16.

    The capability is asked for, not `is_bf16_supported()`, which is true on older GPUs that only emulate bfloat16.

    Raises:
        InvalidRequestError: no such dtype.
    """
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise InvalidRequestError(f"dtype {name!r} is not one of auto, {', '.join(DTYPES)}")
    if device.type == "cpu":
        return torch.float32
    capable = torch.cuda.get_device_capability(device) >= FIRST_BF16_CAPABILITY
    return torch.bfloat16 if capable else torch.float16
