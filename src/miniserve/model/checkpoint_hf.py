"""`SafetensorsCheckpoint`: a model in Hugging Face's layout, its tensors in safetensors files. See `checkpoint`."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from miniserve.errors import CorruptFileError, TensorError, UnsupportedModelError
from miniserve.kernels.formats import Format
from miniserve.kernels.scaled_gemm import Rows
from miniserve.model.checkpoint import Checkpoint
from miniserve.model.config_hf import read_hf_config
from miniserve.model.eight_bits import EightBits
from miniserve.model.quantization_hf import read_quantization
from miniserve.model.shards import Stored, read_header, weight_files
from miniserve.model.tokenizer.tokenizer import Tokenizer


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


def _plain_name(stored: str) -> str:
    """Mixtral names its experts differently; everyone else agrees with Llama."""
    if ".block_sparse_moe." not in stored:
        return stored
    name = stored.replace(".block_sparse_moe.", ".mlp.")
    for theirs, ours in ((".w1.", ".gate_proj."), (".w2.", ".down_proj."), (".w3.", ".up_proj.")):
        name = name.replace(theirs, ours)
    return name
