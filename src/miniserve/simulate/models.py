"""Models by name: a simulation needs their sizes, and no weights.

Those in `models.toml`, and any directory with a config.json of a family whose sizes are known.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from miniserve.errors import InvalidRequestError
from miniserve.hardware.shape import Experts, Latent, Shape
from miniserve.model.shape import read_shape
from miniserve.tables import read_toml


@dataclass(frozen=True)
class KnownModel:
    """An entry of the table: its sizes, where they are from, and how many parameters its card says it has."""

    shape: Shape
    source: str
    parameters: float


@cache
def known_models() -> Mapping[str, KnownModel]:
    """The table."""
    return {name: _known(entry) for name, entry in read_toml(Path(__file__).with_name("models.toml")).items()}


def shape_by_name(name: str) -> Shape:
    """The sizes of a model in the table, or of one in a directory.

    Raises:
        InvalidRequestError: there is none by that name. Names those near it.

    Example:
        >>> from miniserve.simulate.models import shape_by_name
        >>> shape_by_name("llama-3.1-70b").layers
        80
        >>> shape_by_name("lama-3.1-70b")
        Traceback (most recent call last):
            ...
        miniserve.errors.InvalidRequestError: model 'lama-3.1-70b' is neither ...; near it: llama-3.1-70b, ...
    """
    table = known_models()
    if name.lower() in table:
        return table[name.lower()].shape
    if (Path(name) / "config.json").is_file():
        return read_shape(Path(name) / "config.json")
    near = difflib.get_close_matches(name.lower(), table, n=3, cutoff=0.3)
    there = f"near it: {', '.join(near)}" if near else f"known are {', '.join(table)}"
    raise InvalidRequestError(
        f"model '{name}' is neither a directory with a config.json nor known by its sizes; {there}"
    )


def _known(entry: dict[str, Any]) -> KnownModel:
    sizes = dict(entry)
    source, parameters = str(sizes.pop("source")), float(sizes.pop("parameters")) * 1e9
    for name, kind in (("experts", Experts), ("latent", Latent)):
        if name in sizes:
            sizes[name] = kind(**sizes[name])
    return KnownModel(Shape(**sizes), source, parameters)
