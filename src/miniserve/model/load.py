"""From a model's name to a model ready to run: decide, resolve, open, load.

The one place where the pieces of `model/` meet.
"""

from collections.abc import Callable
from dataclasses import dataclass

from miniserve.model.checkpoint import Checkpoint, GGUFCheckpoint, SafetensorsCheckpoint
from miniserve.model.choices import Choices, choose
from miniserve.model.config import ModelConfig
from miniserve.model.decoder import Decoder
from miniserve.model.sources.files import ModelFiles
from miniserve.model.sources.resolve import resolve
from miniserve.model.tokenizer.tokenizer import Tokenizer
from miniserve.model.weights import load_weights, move_to_huge_pages


@dataclass(frozen=True)
class LoadedModel:
    """A decoder with its weights, its tokenizer, where both came from, and what was decided on the way."""

    files: ModelFiles
    config: ModelConfig
    decoder: Decoder
    tokenizer: Tokenizer
    choices: Choices


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
    backend: str = "auto",
    quantization: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> LoadedModel:
    """Load a model by alias, path or Hugging Face name (`org/name`).

    Args:
        name: what to load; see `miniserve models list`.
        dtype, device, backend, quantization: see `choices.choose`.
        progress: called with (tensors done, tensors in all).

    Raises:
        MiniserveError: one of its subclasses, naming what is wrong.
    """
    choices = choose(device, dtype, backend, quantization)
    files = resolve(name)
    checkpoint = open_checkpoint(files)
    has_experts = checkpoint.config.moe is not None
    choices = choices.for_file(checkpoint.stored, has_experts=has_experts, asked=quantization)
    tokenizer = checkpoint.tokenizer()
    decoder = load_weights(
        checkpoint,
        dtype=choices.dtype,
        device=choices.device,
        ops=choices.ops,
        compute_dtype=choices.compute_dtype,
        quantization=choices.quantization,
        rows=choices.backend == "triton",
        progress=progress,
    )
    if choices.backend == "cpu":
        move_to_huge_pages(decoder)
    return LoadedModel(files, checkpoint.config, decoder, tokenizer, choices)
