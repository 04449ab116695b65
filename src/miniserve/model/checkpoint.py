"""Checkpoints: weights on disk, by one set of names whatever the file calls them.

The names are those of Hugging Face's Llama ("model.layers.0.self_attn.q_proj.weight"; an expert's are
"model.layers.0.mlp.experts.3.gate_proj.weight"). A checkpoint knows its `ModelConfig` and its tokenizer, lists its
tensors with their shapes without reading them, and reads one at a time, so that loading never holds two copies of a
model. Only safetensors and GGUF are read: both are plain data, while a pickle is a program.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from miniserve.errors import CorruptFileError, TensorError, UnsupportedModelError
from miniserve.kernels.formats import Format
from miniserve.kernels.groups import Bits, Groups
from miniserve.kernels.scaled_gemm import Rows
from miniserve.model.config import ModelConfig
from miniserve.model.config_gguf import read_gguf_config
from miniserve.model.config_hf import read_hf_config
from miniserve.model.eight_bits import EightBits
from miniserve.model.gguf import BLOCK_BITS, GGUFFile
from miniserve.model.quantization_hf import StoredFormat, read_quantization
from miniserve.model.shards import Stored, read_header, weight_files
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


class SafetensorsCheckpoint(Checkpoint):
    """A directory in Hugging Face layout: config.json, tokenizer.json, one or several .safetensors files."""

    _DTYPES = ("F32", "F16", "BF16")

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self.config = read_hf_config(directory / "config.json")
        self.stored = read_quantization(directory / "config.json")
        self._where: dict[str, tuple[Path, str]] = {}
        headers: dict[str, Stored] = {}
        for file in weight_files(directory):
            for stored, header in read_header(file).items():
                if stored.endswith("rotary_emb.inv_freq"):
                    continue  # older checkpoints store a table that `config.rope` already says how to compute
                name = _plain_name(stored)
                if name in self._where:
                    raise TensorError(f"{file}: tensor {stored} is also in {self._where[name][0].name}")
                self._where[name], headers[name] = (file, stored), header
        self._eight_bits = EightBits(self.stored, headers, self._read, self._label)
        for name, header in headers.items():
            if header.dtype not in self._DTYPES and name not in self._eight_bits:
                raise UnsupportedModelError(f"{self._label(name)} is stored as {header.dtype}, not {self._DTYPES}")
        self.shapes = {name: each.shape for name, each in headers.items() if name not in self._eight_bits.companions}
        if self.config.tie_embeddings:
            self.shapes.pop("lm_head.weight", None)  # some checkpoints store the shared matrix a second time

    def load(self, name: str) -> Tensor:
        """One tensor, read from its file."""
        return self._eight_bits.expanded(name) if name in self._eight_bits else self._read(name)

    def row_format(self, name: str) -> Format | None:
        """Of weights in 8 bits that have no scales within rows."""
        return self._eight_bits.row_format(name)

    def rows(self, name: str) -> Rows:
        """One matrix in the file's own codes."""
        return super().rows(name) if self.row_format(name) is None else self._eight_bits.rows(name)

    def _read(self, name: str) -> Tensor:
        file, stored = self._where[name]
        try:
            with safe_open(file, framework="pt") as handle:
                tensor: Tensor = handle.get_tensor(stored)
        except (SafetensorError, OSError) as error:
            raise CorruptFileError(f"{file}: tensor {stored} cannot be read ({error})") from error
        return tensor

    def _label(self, name: str) -> str:
        """A tensor for error messages; of one that is missing, the directory where it should be."""
        file, stored = self._where.get(name, (self.path, name))
        return f"{file}: tensor {stored}"

    def tokenizer(self) -> Tokenizer:
        """From tokenizer.json and its companions."""
        return Tokenizer.from_directory(self.path, num_ids=self.config.vocab_size)


class GGUFCheckpoint(Checkpoint):
    """A single .gguf file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = GGUFFile(path)
        self.config = read_gguf_config(self._file)
        self.shapes = {}
        self._where: dict[str, tuple[str, int | None]] = {}  # name -> (GGUF name, expert)
        for stored, tensor in self._file.tensors.items():
            if stored == "rope_freqs.weight":
                continue  # read into config.rope
            name, stacked = _name_from_gguf(stored)
            if not stacked:
                self._where[name], self.shapes[name] = (stored, None), tensor.shape
                continue
            for expert in range(min(tensor.shape[0], 2**12)):
                one = name.format(expert)
                self._where[one], self.shapes[one] = (stored, expert), tensor.shape[1:]

    def load(self, name: str) -> Tensor:
        """One tensor, its blocks decoded to float32."""
        stored, expert = self._where[name]
        tensor = torch.from_numpy(self._file.load(stored, expert).copy())
        heads = self._paired_heads(name)
        return tensor[_halves_from_pairs(len(tensor), heads)] if heads else tensor

    def bits(self, name: str) -> Bits | None:
        """4 for Q4_0 and Q4_1, 8 for Q8_0."""
        return BLOCK_BITS.get(self._file.tensors[self._where[name][0]].type_id)

    def groups(self, name: str) -> Groups:
        """One matrix in the file's own blocks."""
        q, scale, minimum = self._file.blocks(*self._where[name])
        # Copies: the file is mapped read-only.
        groups = Groups(torch.tensor(q), torch.tensor(scale), None if minimum is None else torch.tensor(minimum))
        heads = self._paired_heads(name)
        return groups.take(_halves_from_pairs(len(q), heads)) if heads else groups

    def _paired_heads(self, name: str) -> int:
        """Heads of a projection whose rows GGUF stores in another order, 0 for all other tensors."""
        if self.config.architecture != "llama" or not ("q_proj" in name or "k_proj" in name):
            return 0
        return self.config.num_heads if "q_proj" in name else self.config.num_kv_heads

    def tokenizer(self) -> Tokenizer:
        """Rebuilt from the metadata."""
        return Tokenizer.from_gguf(self._file.metadata, self.path, num_ids=self.config.vocab_size)


def _plain_name(stored: str) -> str:
    """Mixtral names its experts differently; everyone else agrees with Llama."""
    if ".block_sparse_moe." not in stored:
        return stored
    name = stored.replace(".block_sparse_moe.", ".mlp.")
    for theirs, ours in ((".w1.", ".gate_proj."), (".w2.", ".down_proj."), (".w3.", ".up_proj.")):
        name = name.replace(theirs, ours)
    return name


_GGUF_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_GGUF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}


def _name_from_gguf(stored: str) -> tuple[str, bool]:
    """The common name of a GGUF tensor, and whether it stacks all experts ("{}" stands for the expert's number)."""
    stem, _, kind = stored.rpartition(".")
    parts = stem.split(".")
    if stem in _GGUF_TOP:
        return f"{_GGUF_TOP[stem]}.{kind}", False
    if len(parts) == 3 and parts[0] == "blk" and parts[1].isdecimal() and parts[2] in _GGUF_LAYER:
        return f"model.layers.{int(parts[1])}.{_GGUF_LAYER[parts[2]]}.{kind}", parts[2].endswith("_exps")
    return stored, False  # unknown: `weights` will refuse it by this name


def _halves_from_pairs(num_rows: int, num_heads: int) -> Tensor:
    """Where each row of llama's Q or K lies in a GGUF: pairs side by side (0, D/2, 1, D/2+1 ...) instead of two halves.

    Args:
        num_rows: num_heads · D.
        num_heads: heads of this projection.
    """
    return torch.arange(num_rows).view(num_heads, -1, 2).transpose(1, 2).flatten()
