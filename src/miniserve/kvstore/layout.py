"""`KVLayout`: what the bytes of one KV block are, so that nobody reads them as something else.

A block that has left its device is one piece of memory: of each layer in turn the keys and then the values, each
[block_size, G, D], and behind them, if they have 8 bits, of each layer the scales [2, G, block_size] in float32. A
layout says these sizes, which weights computed the numbers and how, and which rank's heads they are. Two layouts are
equal or their blocks are not exchanged; `differences` names each, `convert` (conversion.py) bridges the few that can be
bridged exactly.

It says nothing of tokens: which block it is says its hash (core/hashing.py), or whoever sends it.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch

from miniserve.errors import InvalidRequestError
from miniserve.model.choices import DTYPES
from miniserve.model.load import LoadedModel
from miniserve.model.sources.files import ModelFiles
from miniserve.model.sources.verify import recorded_sha256
from miniserve.registry.files import sha256_of
from miniserve.runtime.kv_cache import KV_DTYPES, SCALE_BYTES

FORMAT = 1  # of the bytes of a block: raise it when their order or meaning changes
TORCH_DTYPES = {**DTYPES, **KV_DTYPES}


@dataclass(frozen=True, kw_only=True)
class KVLayout:
    """The form of a block.

    Attributes:
        format: version of the order of bytes.
        weights: SHA-256 of the model's files, in hexadecimal; see `files_identity`.
        computed: how it is computed with: backend, types of weights and activations, quantization.
        num_layers, num_kv_heads, head_dim: of the KV cache of one rank.
        block_size: tokens.
        dtype: of keys and values: "float32", "bfloat16", "float16", "fp8" or "int8"; the last two have scales.
        rank, ranks: whose heads these are, of how many ranks.
    """

    weights: str
    computed: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: str
    rank: int = 0
    ranks: int = 1
    format: int = FORMAT

    @classmethod
    def of(cls, model: LoadedModel, block_size: int, kv_dtype: str) -> Self:
        """Of the blocks that a loaded model fills; reads its weight files once, to know them again.

        Args:
            model: whole, or the slice of one rank.
            block_size: tokens.
            kv_dtype: of keys and values, by name, decided (`EngineSettings.kv_cache_dtype`).
        """
        config, communicator, choices = model.decoder.config, model.decoder.communicator, model.choices
        how = (choices.backend, str(choices.dtype), str(choices.compute_dtype), choices.quantization)
        return cls(
            weights=files_identity(model.files),
            computed=" ".join(how),
            num_layers=config.num_layers,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            block_size=block_size,
            dtype=kv_dtype,
            rank=communicator.rank,
            ranks=communicator.size,
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote, here or at a peer.

        Raises:
            InvalidRequestError: it is none, or of a version with other fields. Names what is wrong.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise InvalidRequestError(f"a KV layout is not JSON: {error}") from error
        known: dict[str, Any] = {field.name: field.type for field in fields(cls)}
        if not isinstance(values, dict) or values.keys() != known.keys():
            raise InvalidRequestError(f"a KV layout has the fields {', '.join(known)}, not {text[:200]}")
        for name, value in values.items():
            if type(value) is not known[name] or (known[name] is int and not 0 <= value < 2**31):
                raise InvalidRequestError(f"a KV layout's {name} is {value!r}: {known[name].__name__} is expected")
        return cls(**values)

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_kv_heads", "head_dim", "block_size", "ranks"):
            if getattr(self, name) < 1:
                raise InvalidRequestError(f"a KV layout's {name} is {getattr(self, name)}: it must be at least 1")
        if self.dtype not in TORCH_DTYPES:
            raise InvalidRequestError(f"a KV layout's dtype {self.dtype!r} is not one of {', '.join(TORCH_DTYPES)}")
        if not 0 <= self.rank < self.ranks:
            raise InvalidRequestError(f"a KV layout's rank is {self.rank} of {self.ranks}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of keys and values."""
        return TORCH_DTYPES[self.dtype]

    @property
    def has_scales(self) -> bool:
        """Whether each head of each token has a scale for its key and one for its value."""
        return self.dtype in KV_DTYPES

    @property
    def codes_bytes(self) -> int:
        """Of the keys and values of a block."""
        per_layer = 2 * self.block_size * self.num_kv_heads * self.head_dim
        return self.num_layers * per_layer * self.torch_dtype.itemsize

    @property
    def scales_bytes(self) -> int:
        """Of the scales of a block."""
        return 2 * self.num_layers * self.num_kv_heads * self.block_size * SCALE_BYTES if self.has_scales else 0

    @property
    def block_bytes(self) -> int:
        """Of a block."""
        return self.codes_bytes + self.scales_bytes

    @property
    def digest(self) -> bytes:
        """32 bytes that are equal for equal layouts only."""
        return hashlib.sha256(b"miniserve-kv-layout" + self.to_json().encode()).digest()

    def to_json(self) -> str:
        """The same text for equal layouts."""
        return json.dumps(asdict(self), sort_keys=True)

    def differences(self, other: "KVLayout") -> list[str]:
        """Each field in which `other` differs, with both values: "block_size is 64, not 16"."""
        mine, theirs = asdict(self), asdict(other)
        return [f"{name} is {theirs[name]}, not {mine[name]}" for name in mine if theirs[name] != mine[name]]


def files_identity(files: ModelFiles) -> str:
    """SHA-256 over a model's weights and configuration, in hexadecimal, wherever they lie.

    Reads them all, but for those of which the Hub's cache knows it.
    """
    if files.kind == "gguf":
        return _sha256(files.path)
    paths = [path for path in files.path.iterdir() if path.suffix == ".safetensors" or path.name == "config.json"]
    lines = sorted(f"{path.name} {_sha256(path)}" for path in paths)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _sha256(path: Path) -> str:
    return recorded_sha256(path) or sha256_of(path)
