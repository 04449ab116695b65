"""`GGUFCheckpoint`: a model in a GGUF file, by the common names and in the common order of rows. See `checkpoint`."""

from pathlib import Path

import torch
from torch import Tensor

from miniserve.kernels.groups import Bits, Groups
from miniserve.model.checkpoint import Checkpoint
from miniserve.model.config_gguf import read_gguf_config
from miniserve.model.gguf import BLOCK_BITS, GGUFFile
from miniserve.model.tokenizer.tokenizer import Tokenizer

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
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
            name, stacked = _common_name(stored)
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


def _common_name(stored: str) -> tuple[str, bool]:
    """The common name of a GGUF tensor, and whether it stacks all experts ("{}" stands for the expert's number)."""
    stem, _, kind = stored.rpartition(".")
    parts = stem.split(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}", False
    if len(parts) == 3 and parts[0] == "blk" and parts[1].isdecimal() and parts[2] in _LAYER:
        return f"model.layers.{int(parts[1])}.{_LAYER[parts[2]]}.{kind}", parts[2].endswith("_exps")
    return stored, False  # unknown: `check_plan` will refuse it by this name


def _halves_from_pairs(num_rows: int, num_heads: int) -> Tensor:
    """Where each row of llama's Q or K lies in a GGUF: pairs side by side (0, D/2, 1, D/2+1 ...) instead of two halves.

    Args:
        num_rows: num_heads · D.
        num_heads: heads of this projection.
    """
    return torch.arange(num_rows).view(num_heads, -1, 2).transpose(1, 2).flatten()
