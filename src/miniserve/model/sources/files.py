"""A model on this disk: a directory in the Hugging Face layout, or one GGUF file.

What is recognised has weights in safetensors or GGUF. Pickles are refused by their names and never opened. Torch-free;
reads names, not weights.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from miniserve.errors import ModelNotFoundError, UnsafeWeightsError
from miniserve.model.shards import weight_files
from miniserve.registry.accepted import PICKLES, WHY_NO_PICKLES


@dataclass(frozen=True)
class ModelFiles:
    """A model on this disk.

    `kind` says what `path` is: a directory in the Hub's layout (config.json beside safetensors), or one GGUF file.
    `source` tells a person where it came from. `directory` is the one that is the model's alone, with a manifest if it
    has one; None: a file that lies wherever it lies.
    """

    name: str
    kind: Literal["directory", "gguf"]
    path: Path
    source: str
    directory: Path | None = None


def find_local(name: str) -> ModelFiles | None:
    """The model at the path `name`; None if `name` is no path. Raises for a path that cannot be used."""
    try:
        return _look_at(name, Path(name).expanduser())
    except (OSError, RuntimeError) as error:  # no permission, a name too long, ~someone who has no home
        raise ModelNotFoundError(f"{name}: cannot be looked at ({error})") from error


def _look_at(name: str, path: Path) -> ModelFiles | None:
    if name.strip() and path.is_dir():
        return model_directory(name, path, "local directory")
    if path.suffix.lower() in PICKLES:
        raise UnsafeWeightsError(f"{name}: refusing to load a pickle ({path.suffix}): {WHY_NO_PICKLES}")
    if path.is_file():
        if path.suffix.lower() == ".safetensors":
            raise ModelNotFoundError(
                f"{name}: weights alone are not a model; give their directory, {path.parent}, with config.json in it"
            )
        if path.suffix.lower() != ".gguf" and not _starts_like_gguf(path):
            raise ModelNotFoundError(f"{name}: neither a GGUF file nor a directory with config.json and safetensors")
        return ModelFiles(name, "gguf", path, "local file")
    looks_like_a_path = name.startswith(("./", "../", "/", "~", ".\\", "..\\")) or Path(name).is_absolute()
    if looks_like_a_path or path.suffix.lower() in {".gguf", ".safetensors"}:
        raise ModelNotFoundError(f"{name}: no such file or directory (looked at {path.absolute()})")
    return None


def _starts_like_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def model_directory(name: str, path: Path, source: str) -> ModelFiles:
    """The model in a directory: safetensors with config.json, else the one GGUF file in it."""
    names = sorted(p.name for p in path.iterdir() if p.is_file())
    safetensors = [n for n in names if n.endswith((".safetensors", ".safetensors.index.json"))]
    ggufs = [n for n in names if n.endswith(".gguf")]
    if safetensors and "config.json" in names:
        weight_files(path)
        return ModelFiles(name, "directory", path, source, path)
    if len(ggufs) == 1:
        return ModelFiles(name, "gguf", path / ggufs[0], source, path)
    if ggufs:
        raise ModelNotFoundError(
            f"{name}: a directory with several GGUF files; give one by its path: {', '.join(ggufs)}"
        )
    if safetensors:
        raise ModelNotFoundError(f"{path}: safetensors but no config.json, so the architecture is unknown")
    if pickles := [n for n in names if n.endswith(PICKLES)]:
        raise UnsafeWeightsError(f"{path}: the only weights are pickles ({', '.join(pickles)}): {WHY_NO_PICKLES}")
    raise ModelNotFoundError(
        f"{path} is a directory without weights: looked for config.json with model.safetensors or "
        "model.safetensors.index.json, or for one .gguf file"
    )
