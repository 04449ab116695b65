"""What others have published of whole systems, each with its source: for simulations to stand beside.

`published.toml`, read strictly: an unknown key, a source that is not listed, hardware that is not in the catalogue or
a number that is none is an error that names the place. Nothing in a simulation was fitted to any of it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from miniserve.errors import CorruptFileError, InvalidRequestError
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.figures import Source, read_sources
from miniserve.hardware.formats import number_format
from miniserve.simulate.models import shape_by_name
from miniserve.tables import from_table, read_toml

FILE = Path(__file__).with_name("published.toml")


@dataclass(frozen=True)
class TimesAt:
    """So many times as much, where a user gets so many tokens a second."""

    speed: float
    times: float
    source: str


@dataclass(frozen=True)
class Claim:
    """Of a newer and an older device: tokens a second, dollars for a million, and multiples, as stated."""

    newer: str
    older: str
    tokens_per_s: tuple[float, ...]
    usd_per_million: tuple[float, ...]
    cost_times: float
    energy_times: float
    source: str
    cost_times_at: tuple[TimesAt, ...]


@dataclass(frozen=True)
class LongContext:
    """Of a newer and an older device: at most so many times cheaper for a token, with such lengths."""

    newer: str
    older: str
    prompt: int
    output: int
    cost_times: float
    source: str


@dataclass(frozen=True)
class Guesses:
    """Of a draft head: the share of first guesses that are right, from and to; one user's gain from some guesses."""

    first: tuple[float, ...]
    first_source: str
    hardware: str
    devices: int
    prompt: int
    output: int
    guesses: int
    times: float
    source: str


@dataclass(frozen=True)
class MeasuredPoint:
    """Of DeepSeek-R1 on a device: all tokens a second, and the median time of a user's token."""

    hardware: str
    weights: str
    reach: int
    apart: bool
    prompt: int
    output: int
    tokens_per_s: float
    tpot_ms: float
    source: str


@dataclass(frozen=True)
class Domains:
    """Of DeepSeek-R1 on two devices, whose links join many and few: all tokens a second of each, at users' speeds."""

    newer: str
    older: str
    prompt: int
    output: int
    weights: str
    speeds: tuple[float, ...]
    newer_tokens_per_s: tuple[float, ...]
    older_tokens_per_s: tuple[float, ...]
    source: str


@dataclass(frozen=True)
class BenchmarkResult:
    """Of a model on a system: output tokens a second offline, and with the server scenario's limits.

    `prompts`: the mean is taken to be between these; `tpot_ms`: the limit on a token's time, where it is known.
    """

    model: str
    hardware: str
    devices: int
    weights: str
    prompts: tuple[int, ...]
    output: int
    output_source: str
    offline: float
    server: float
    source: str
    tpot_ms: float | None = None


@dataclass(frozen=True)
class PerMegawatt:
    """Tokens a second and megawatt as a multiple of the generation before, at a user's speed."""

    speed: float
    times_per_megawatt: float
    source: str


@dataclass(frozen=True)
class Published:
    """All of it."""

    claim: Claim
    long_context: LongContext
    guesses: Guesses
    points: tuple[MeasuredPoint, ...]
    domains: Domains
    mlperf: tuple[BenchmarkResult, ...]
    rubin: tuple[PerMegawatt, ...]


@cache
def load_published(path: Path = FILE) -> tuple[Published, Mapping[str, Source]]:
    """The figures, and their sources by key. Raises CorruptFileError, naming the place, for what is not sound."""
    raw = read_toml(path)
    try:
        sources: Mapping[str, Source] = read_sources(raw.pop("sources", {}))
        found = from_table(Published, raw)
        _check(found, sources, "")
        domains = found.domains
        if not len(domains.speeds) == len(domains.newer_tokens_per_s) == len(domains.older_tokens_per_s):
            raise InvalidRequestError("domains: each speed has one figure of either device")
    except InvalidRequestError as error:
        raise CorruptFileError(f"{path}: {error}") from None
    return found, sources


def _check(entry: Any, sources: Mapping[str, Source], where: str) -> None:
    for field in fields(entry):
        value, place = getattr(entry, field.name), f"{where}{field.name}"
        for each in value if isinstance(value, tuple) else (value,):
            if each is None:
                continue
            if is_dataclass(each):
                _check(each, sources, f"{place}.")
            elif field.name.endswith("source") and each not in sources:
                raise InvalidRequestError(f"{place}: the source '{each}' is not listed")
            elif field.name in ("hardware", "newer", "older"):
                load_catalog().accelerator(each)
            elif field.name == "weights":
                number_format(each)
            elif field.name == "model":
                shape_by_name(each)
            elif isinstance(each, int | float) and not isinstance(each, bool) and not 0 < each < math.inf:
                raise InvalidRequestError(f"{place} is {each}: it must be above 0, and finite")
