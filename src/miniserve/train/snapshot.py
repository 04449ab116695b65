"""`Snapshot`: a run's state on disk, from which it goes on as if nothing had happened.

A folder a snapshot: the model as a Hugging Face checkpoint in float32 (`model.safetensors`, `config.json`), the
optimiser's moments by parameter (`optimizer.safetensors`), and `run.json`: the step, the settings, the losses so far,
the loss scale. It is written beside its place and renamed into it, so a folder that has the name is whole; the newest
counts, and older ones are removed once it is there. Random numbers need no state: batches follow from the step.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from miniserve.errors import CorruptFileError
from miniserve.model.decoder import Decoder
from miniserve.model.save import hf_config, save_weights
from miniserve.model.weight_plan import weight_plan

PREFIX = "step-"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Snapshot:
    """What `run.json` says; `folder` is where the rest is."""

    folder: Path
    step: int
    settings: dict[str, Any]
    history: list[dict[str, float]]
    scaler: dict[str, Any]


def save(
    directory: Path, step: int, decoder: Decoder, optimizer: torch.optim.Optimizer, *,
    settings: dict[str, Any], history: list[dict[str, float]], scaler: dict[str, Any],
) -> Path:  # fmt: skip
    """Write a snapshot after `step` steps, and remove older ones. Returns its folder."""
    folder = directory / f"{PREFIX}{step:06d}"
    partial = directory / f".{folder.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_weights(decoder, partial / "model.safetensors", torch.float32)
    config = hf_config(decoder.config, torch.float32)
    (partial / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    save_file(_moments(decoder, optimizer), partial / "optimizer.safetensors")
    run = {"step": step, "settings": settings, "history": history, "scaler": scaler}
    (partial / "run.json").write_text(json.dumps(run, indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    for older in _folders(directory)[:-1]:
        shutil.rmtree(older, ignore_errors=True)
    return folder


def newest(directory: Path) -> Snapshot | None:
    """The last one that was written; None: there is none.

    Raises:
        CorruptFileError: its `run.json` is not what was written.
    """
    folders = _folders(directory)
    if not folders:
        return None
    path = folders[-1] / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        return Snapshot(folders[-1], run["step"], run["settings"], run["history"], run["scaler"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{path} is not a training run's state: {error!r}") from error


@torch.no_grad()
def restore(snapshot: Snapshot, decoder: Decoder, optimizer: torch.optim.Optimizer) -> None:
    """Weights and moments of a decoder and an optimiser of the same settings.

    Raises:
        CorruptFileError: a file is not whole, or is another model's.
    """
    weights = _load(snapshot.folder / "model.safetensors")
    moments = _load(snapshot.folder / "optimizer.safetensors")
    parameters = dict(decoder.named_parameters())
    try:
        for part in weight_plan(decoder.config):
            whole = parameters[part.parameter]
            one = whole if part.expert is None else whole[part.expert]
            one[part.start : part.start + part.shape[0]].copy_(weights[part.name])
        for name, parameter in parameters.items():
            state: dict[str, Tensor] = {"step": moments["step"].clone()}
            state |= {kind: moments[f"{name}.{kind}"].to(parameter.device) for kind in MOMENTS}
            if any(state[kind].shape != parameter.shape for kind in MOMENTS):
                raise KeyError(name)
            optimizer.state[parameter] = state
    except (KeyError, RuntimeError) as error:
        raise CorruptFileError(f"{snapshot.folder}: it is another model's, or not whole: {error}") from error


def _moments(decoder: Decoder, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    found, step = {}, torch.zeros(())
    for name, parameter in decoder.named_parameters():
        state = optimizer.state.get(parameter)
        for kind in MOMENTS:
            value = state[kind] if state else torch.zeros_like(parameter)
            found[f"{name}.{kind}"] = value.detach().to("cpu", copy=True).contiguous()
        step = state["step"].cpu().clone() if state else step
    return found | {"step": step}


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own kinds, and OSError
        raise CorruptFileError(f"{path}: {error}") from error


def _folders(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob(f"{PREFIX}[0-9]*") if path.is_dir())
