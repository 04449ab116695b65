"""Read the `quantization_config` of a Hugging Face `config.json`: weights that a file has in 8 bits, with scales.

Two methods are known: `compressed-tensors`, with E4M3 or INT8 and a scale for a tensor, an output row or a block; and
`fp8`, E4M3 with a scale for a tensor or a block. Which layers are left out is told by each tensor's own type, so the
lists that name them are not needed. Nor is how the file would have activations rounded: they never are more coarsely
than by the token. Anything else is refused by name. Torch-free.

Sources: the `QuantizationConfig` and `QuantizationArgs` of github.com/vllm-project/compressed-tensors;
`FineGrainedFP8Config` of transformers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from miniserve.errors import CorruptFileError, UnsupportedModelError
from miniserve.model.fields import Fields, read_json

Shape = tuple[int, ...]
Name = Literal["E4M3", "INT8"]
STORED_AS: dict[Name, str] = {"E4M3": "F8_E4M3", "INT8": "I8"}  # in safetensors' spelling
TYPES: dict[str, Name] = {"float": "E4M3", "int": "INT8"}
FORMATS = {"float-quantized": ("float",), "int-quantized": ("int",), "naive-quantized": ("float", "int")}
INPUT_SCALE = ".input_scale"  # of activations; not used


@dataclass(frozen=True)
class StoredFormat:
    """How a file has the weights of its linear layers.

    Attributes:
        name: of the numbers.
        shared_by: what has a scale of its own: the whole tensor, a row (an output), or a block of rows and columns.
        suffix: of the scale's name, in place of "weight".
    """

    name: Name
    shared_by: Literal["tensor", "row"] | tuple[int, int]
    suffix: str = "weight_scale"

    @property
    def has_row_scales(self) -> bool:
        """Whether a scale for each row can say the same."""
        return isinstance(self.shared_by, str)

    def scale_of(self, weight: str) -> str:
        """The name of the scale of the tensor `weight`."""
        return weight.removesuffix("weight") + self.suffix

    def scale_shapes(self, weight: Shape) -> tuple[Shape, ...]:
        """The shapes that the scale of a weight [N, K] may have."""
        rows, columns = weight
        if self.shared_by == "tensor":
            return (1,), ()
        if self.shared_by == "row":
            return (rows, 1), (rows,)
        high, wide = self.shared_by
        return ((-(-rows // high), -(-columns // wide)),)


def read_quantization(path: Path) -> StoredFormat | None:
    """What the `config.json` at `path` says of weights in 8 bits; None if it says nothing.

    Raises:
        CorruptFileError: the file is not what it says, or a field has the wrong type.
        UnsupportedModelError: another method, format, number of bits or scheme. Names the field and its value.
    """
    where, values = f"{path}: quantization_config", read_json(path).get("quantization_config")
    if values is None:
        return None
    fields = Fields(_object(values, where), where)
    method = fields.text("quant_method")
    if method not in _METHODS:
        known = ", ".join(sorted(_METHODS))
        raise UnsupportedModelError(f"{where}: quant_method = {method!r} is not supported. Supported: {known}")
    found = _METHODS[method](fields, where)
    fields.finish()
    return found


def _compressed_tensors(fields: Fields, where: str) -> StoredFormat:
    form = fields.text("format")
    if form not in FORMATS:
        raise UnsupportedModelError(f"{where}: format = {form!r} is not supported. Supported: {', '.join(FORMATS)}")
    fields.must_be("kv_cache_scheme", hint="How keys and values are kept is asked for by kv_cache_dtype.")
    fields.must_be("transform_config", {})
    sparsity = fields.get("sparsity_config") or {"format": "dense"}
    Fields(_object(sparsity, f"{where}: sparsity_config"), f"{where}: sparsity_config").must_be("format", "dense")
    groups = _object(fields.get("config_groups"), f"{where}: config_groups")
    if len(groups) != 1:
        raise UnsupportedModelError(f"{where}: config_groups has {len(groups)} groups; one for all layers is supported")
    ((name, group),) = groups.items()
    where = f"{where}: {name}"
    scheme = Fields(_object(group, where), where)
    scheme.must_be("targets", ["Linear"])
    scheme.must_be("output_activations")
    scheme.must_be("format", form)
    stored, kind = _weights(scheme.get("weights"), f"{where}: weights", FORMATS[form])
    if (inputs := scheme.get("input_activations")) is not None:
        rounding = Fields(_object(inputs, f"{where}: input_activations"), f"{where}: input_activations")
        rounding.must_be("num_bits", 8)
        rounding.must_be("type", kind)
    scheme.finish()
    fields.inert(("quantization_status", "global_compression_ratio", "ignore", "version", "run_compressed"))
    return stored


def _weights(values: Any, where: str, kinds: tuple[str, ...]) -> tuple[StoredFormat, str]:
    fields = Fields(_object(values, where), where)
    kind = fields.text("type", default="int")
    fields.must_be("num_bits", 8)
    if kind not in kinds:
        raise UnsupportedModelError(f"{where}: type = {kind!r} is not supported in this format, only {kinds}")
    fields.must_be("symmetric", True)
    fields.must_be("dynamic", False)
    fields.must_be("group_size", -1)
    fields.must_be("actorder", "weight", "static")  # an order that the rounding went by; the file has the usual one
    strategy = fields.text("strategy")
    if strategy not in ("tensor", "channel", "block"):
        raise UnsupportedModelError(
            f"{where}: strategy = {strategy!r} is not supported, only tensor, channel and block"
        )
    fields.inert(("observer", "observer_kwargs", "scale_dtype", "zp_dtype"))
    if strategy == "block":
        stored = StoredFormat(TYPES[kind], _block(fields.get("block_structure"), f"{where}: block_structure"))
    else:
        stored = StoredFormat(TYPES[kind], "tensor" if strategy == "tensor" else "row")
    fields.finish()
    return stored, kind


def _fp8(fields: Fields, where: str) -> StoredFormat:
    fields.must_be("fmt", "e4m3")
    fields.must_be("expert_dtype", "fp8")
    fields.must_be("modules_to_convert")
    fields.must_be("activation_scheme", "dynamic", "static")
    block = fields.get("weight_block_size")
    fields.inert(("modules_to_not_convert", "ignored_layers", "dequantize", "scale_fmt"))
    if block is None:
        return StoredFormat("E4M3", "tensor")
    return StoredFormat("E4M3", _block(block, f"{where}: weight_block_size"), "weight_scale_inv")


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CorruptFileError(f"{where} should be an object")
    return value


def _block(value: Any, where: str) -> tuple[int, int]:
    if not (isinstance(value, list) and len(value) == 2 and all(type(size) is int and size > 0 for size in value)):
        raise CorruptFileError(f"{where} should be two sizes above zero")
    return value[0], value[1]


_METHODS: dict[str, Callable[[Fields, str], StoredFormat]] = {
    "compressed-tensors": _compressed_tensors,
    "fp8": _fp8,
}
