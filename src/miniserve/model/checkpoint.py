"""`Checkpoint`: weights on disk, by one set of names whatever the file calls them.

The names are those of Hugging Face's Llama ("model.layers.0.self_attn.q_proj.weight"; an expert's are
"model.layers.0.mlp.experts.3.gate_proj.weight"). A checkpoint knows its `ModelConfig` and its tokenizer, lists its
tensors with their shapes without reading them, and reads one at a time, so that loading never holds two copies of a
model. Only safetensors (`checkpoint_hf`) and GGUF (`checkpoint_gguf`) are read: both are plain data, while a pickle is
a program.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from miniserve.errors import TensorError
from miniserve.kernels.formats import Format
from miniserve.kernels.groups import Bits, Groups
from miniserve.kernels.scaled_gemm import Rows
from miniserve.model.config import ModelConfig
from miniserve.model.quantization_hf import StoredFormat
from miniserve.model.tokenizer.tokenizer import Tokenizer


class Checkpoint(ABC):
    """A model on disk.

    Attributes:
        path: the file or directory, for messages.
        config: the model's shape.
        shapes: name -> shape of every tensor the decoder could want.
        stored: in what 8 bits it has the weights of linear layers, if it says that it has.
        held: of a rank's slice that has only some experts, which of each sparse layer.
    """

    path: Path
    config: ModelConfig
    shapes: dict[str, tuple[int, ...]]
    stored: StoredFormat | None = None
    held: Mapping[int, Sequence[int]] | None = None

    @abstractmethod
    def load(self, name: str) -> Tensor:
        """One tensor on the CPU, in the dtype it is stored in (GGUF blocks, and 8 bits with scales: float32)."""

    def bits(self, name: str) -> Bits | None:  # noqa: ARG002, for those that have any
        """4 or 8 if the tensor is stored in groups that `groups` gives as they are."""
        return None

    def groups(self, name: str) -> Groups:
        """One matrix for which `bits` is not None, bit by bit as it is stored.

        Raises:
            TensorError: it is not stored in such groups.
        """
        raise TensorError(f"{self.path}: tensor {name} is not stored in groups of 4 or 8 bits")

    def row_format(self, name: str) -> Format | None:  # noqa: ARG002, as above
        """E4M3 or INT8 if the tensor is stored in rows of it that `rows` gives as they are."""
        return None

    def rows(self, name: str) -> Rows:
        """One matrix for which `row_format` is not None, bit by bit as it is stored.

        Raises:
            TensorError: it is not stored in such rows, or a scale is none.
        """
        raise TensorError(f"{self.path}: tensor {name} is not stored in rows of 8 bits")

    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that belongs to the weights."""
