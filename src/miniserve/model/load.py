"""From a model's name to a model ready to run: decide, resolve, open, load.

The one place where the pieces of `model/` meet.
"""

from collections.abc import Callable
from dataclasses import dataclass

from miniserve.model.checkpoint import Checkpoint
from miniserve.model.checkpoint_gguf import GGUFCheckpoint
from miniserve.model.checkpoint_hf import SafetensorsCheckpoint
from miniserve.model.choices import Choices, choose
from miniserve.model.communicator import ALONE, Communicator
from miniserve.model.config import ModelConfig
from miniserve.model.decoder import Decoder
from miniserve.model.expert_plan import ExpertOptions, plan_experts
from miniserve.model.huge_pages import move_to_huge_pages
from miniserve.model.sharding import ShardedCheckpoint
from miniserve.model.sides import Side
from miniserve.model.sources.files import ModelFiles
from miniserve.model.sources.resolve import resolve
from miniserve.model.tokenizer.tokenizer import Tokenizer
from miniserve.model.weights import load_weights


@dataclass(frozen=True)
class LoadedModel:
    """A decoder with its weights, its tokenizer, where both came from, and what was decided on the way.

    `config` is the whole model's; where the decoder is one rank's slice, its own `config` is the slice's.
    """

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
    communicator: Communicator = ALONE,
    experts: ExpertOptions | None = None,
    side: Side | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LoadedModel:
    """Load a model by alias, path or Hugging Face name (`org/name`), or one rank's slice of it.

    Args:
        name: what to load; see `miniserve models list`.
        dtype, device, backend, quantization: see `choices.choose`.
        communicator: says which slice, and joins it to the others; without one, all of it is loaded.
        experts: how they are shared out whole among the ranks; None: each rank has a slice of every one.
        side: whose weights are wanted, if feed-forward parts have ranks of their own; `communicator` joins this side's.
        progress: called with (tensors done, tensors in all).

    Raises:
        MiniserveError: one of its subclasses, naming what is wrong.

    Example:
        >>> from miniserve import load_model
        >>> from miniserve.model.cache import NoCache
        >>> from miniserve.model.generate import next_token_logits
        >>> model = load_model("tiny-moe", dtype="float32")
        >>> prompt = model.tokenizer.encode("To be, or not to")
        >>> logits = next_token_logits(model.decoder, prompt, NoCache(model.config))
        >>> logits.shape, model.tokenizer.decode([int(logits.argmax())])
        (torch.Size([2048]), ' be')
    """
    choices = choose(device, dtype, backend, quantization)
    files = resolve(name)
    checkpoint = open_checkpoint(files)
    choices = choices.for_file(checkpoint.stored, asked=quantization)
    tokenizer = checkpoint.tokenizer()
    decoder = load_decoder(checkpoint, choices, communicator, experts, side, progress)
    return LoadedModel(files, checkpoint.config, decoder, tokenizer, choices)


def load_decoder(
    checkpoint: Checkpoint,
    choices: Choices,
    communicator: Communicator = ALONE,
    experts: ExpertOptions | None = None,
    side: Side | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Decoder:
    """A checkpoint's decoder, or one rank's slice of it, by choices made for that file. See `load_model`."""
    if side == "feed-forward" and checkpoint.config.moe:
        experts = experts or ExpertOptions()  # there they are shared out whole
    plan = plan_experts(checkpoint.config, communicator.size, experts) if experts else None
    if communicator.size > 1 or side:
        checkpoint = ShardedCheckpoint(checkpoint, communicator.rank, communicator.size, plan, side)
    decoder = load_weights(
        checkpoint,
        dtype=choices.dtype,
        device=choices.device,
        ops=choices.ops,
        compute_dtype=choices.compute_dtype,
        quantization=choices.quantization,
        rows=choices.backend == "triton",
        communicator=communicator,
        experts=plan,
        side=side,
        progress=progress,
    )
    if choices.backend == "cpu":
        move_to_huge_pages(decoder)
    return decoder
