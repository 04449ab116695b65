"""The safetensors files of a directory, and their headers. Reads no weights, and no torch.

A directory holds either an index, which maps each tensor to one of several files, or a single file. What an index says
is checked: only files beside it count, and each must exist.
"""

from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from miniserve.errors import CorruptFileError
from miniserve.model.fields import read_json

INDEX = "model.safetensors.index.json"


class Stored(NamedTuple):
    """A tensor as its header describes it; `dtype` in safetensors' spelling ("F32", "BF16")."""

    shape: tuple[int, ...]
    dtype: str


def weight_files(directory: Path) -> list[Path]:
    """Every weight file of the model in `directory`, sorted.

    Raises:
        CorruptFileError: there is none, or the index is wrong (see `read_index`).
    """
    index = directory / INDEX
    if index.exists():
        return [directory / name for name in sorted(set(read_index(index).values()))]
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise CorruptFileError(f"{directory}: no .safetensors file in it")
    return files


def read_index(index: Path) -> dict[str, str]:
    """An index's weight map: tensor name -> name of an existing file beside the index.

    Raises:
        CorruptFileError: not an index, a file elsewhere, or a file that is missing.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CorruptFileError(f"{index}: weight_map should map tensor names to file names")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CorruptFileError(f"{index}: {name!r} is not the name of a .safetensors file beside it")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise CorruptFileError(f"{index} lists files that are missing: {', '.join(missing)}; fetch the model again")
    return weight_map


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors in one safetensors file, by name.

    Raises:
        CorruptFileError: truncated, or not a safetensors file: the header is held to the file's length.
    """
    try:
        with safe_open(file, framework="np") as handle:
            parts = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118, not a dict
            return {name: Stored(tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
    except (SafetensorError, OSError) as error:
        raise CorruptFileError(f"{file}: not a whole safetensors file ({error}); fetch it again") from error
