"""`Recipe`: what a service of a mixture is made of: a chip, a number format, how far an engine may reach, whether
prompts are apart, whether tokens are guessed; and the most that it yields at a speed.

At each speed that engine counts which yields most, of all those that a recipe allows; nothing is fitted to anything.
Kernels that were never timed on a generation are taken to come as near to the roofline as Hopper's do, by their
authors' statements (`borrowed`): without, they would take no longer than the roofline, and flatter the newer chip.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from miniserve.errors import InvalidRequestError
from miniserve.hardware.devices import Accelerator
from miniserve.hardware.efficiency import Efficiency, load_efficiencies
from miniserve.hardware.shape import Parallel, Precision, Shape
from miniserve.simulate.deployment import Deployment, efficiency_for
from miniserve.simulate.money import usd_per_million
from miniserve.simulate.report import DEFAULT_PRICE, MILLION
from miniserve.simulate.speculation import Speculation
from miniserve.simulate.steady import Lengths, Steady, Yield

TENSOR = (1, 2, 4, 8, 16)
EXPERT = (4, 8, 16, 32, 64, 72)
BORROWED = ("latent_attention", "network_all_to_all")
SEATS = 4096
PROMPT_TOKENS = 16384  # of a step, in engines for prompts alone; so that halves of it can take turns


class Best(NamedTuple):
    """The engine that yields most, in words, and what it yields."""

    engine: str
    found: Yield


class Worth(NamedTuple):
    """What tokens a second of one device are worth; None where the catalogue lacks a price, or a power."""

    usd_per_million: float | None
    per_megawatt: float | None


def borrowed(device: Accelerator) -> Efficiency:
    """The curves of a device's generation, and Hopper's for kinds of kernels of which there are none."""
    own, others = efficiency_for(device), load_efficiencies()["h100"].curves
    return replace(own, curves={**{kind: others[kind] for kind in BORROWED}, **own.curves})


@dataclass(frozen=True)
class Recipe:
    """A service.

    Args:
        name: in words.
        device: all engines are made of.
        shape: the model.
        lengths: of its requests.
        weights: number format; keys and values are in FP8.
        attention: number format of attention's arithmetic.
        reach: devices that one engine may span.
        apart: prompts have engines of their own.
        acceptance: of a draft head, see `Speculation`; none: there is no head.
        efficiency: kernels' times; None: `borrowed`.
    """

    name: str
    device: Accelerator
    shape: Shape
    lengths: Lengths
    weights: str = "fp8_block"
    attention: str = "bf16"
    reach: int = 8
    apart: bool = False
    acceptance: tuple[float, ...] = ()
    efficiency: Efficiency | None = None

    @cached_property
    def services(self) -> Mapping[str, Steady]:
        """Every engine that it allows and that fits, in words. Raises InvalidRequestError where none does."""
        front = self._front if self.apart else None
        found = {name: Steady(where, self.lengths, front) for name, where in self._deployments(self._most_tokens)}
        if not found:
            raise InvalidRequestError(f"'{self.name}': no engine of up to {self.reach} {self.device.name} holds it")
        return found

    def best(self, speed: float) -> Best | None:
        """Of all engines, where each user gets `speed` tokens a second at least; None: nobody can have that."""
        found = ((name, service.within(speed)) for name, service in self.services.items())
        able = [Best(name, each) for name, each in found if each]
        return max(able, key=lambda best: best.found.output_per_s, default=None)

    @property
    def fastest(self) -> float:
        """Tokens a second of one user, alone on the fastest engine."""
        return max(service.at(1).speed for service in self.services.values())

    @cached_property
    def _front(self) -> Deployment:
        """The engine that computes a prompt in the fewest device-seconds."""
        fronts = [where for _, where in self._deployments(PROMPT_TOKENS)]
        if not fronts:
            raise InvalidRequestError(f"'{self.name}': no engine of up to {self.reach} {self.device.name} holds it")
        return min(fronts, key=lambda where: Steady(where, self.lengths).prompt_device_s)

    @property
    def _most_tokens(self) -> int:
        """Of a step: a prompt is computed at once, as long as it has no more than is usual for one."""
        return min(PROMPT_TOKENS, max(2048, self.lengths.prompt))

    def _deployments(self, step_tokens: int) -> Iterator[tuple[str, Deployment]]:
        precision = replace(Precision.of(self.weights, "fp8"), attention=self.attention)
        base = Deployment(
            self.device, self.shape, precision, efficiency=self.efficiency or borrowed(self.device),
            max_num_seqs=SEATS, max_num_batched_tokens=step_tokens,
            speculation=Speculation(self.acceptance) if self.acceptance else None,
        )  # fmt: skip
        for name, parallel, overlap in self._splits():
            try:
                where = replace(base, parallel=parallel, overlap=overlap)
                if Steady(where, self.lengths).room:
                    yield name, where
            except InvalidRequestError:
                continue  # it does not fit, or the model cannot be split so

    def _splits(self) -> Iterator[tuple[str, Parallel, bool]]:
        for tensor in TENSOR:
            if tensor <= min(self.reach, self.device.link_domain):
                yield f"TP{tensor}", Parallel(tensor=tensor), False
        for ranks in EXPERT if self.shape.experts else ():
            if ranks <= self.reach:
                copies = -self.shape.experts.count % ranks if self.shape.experts else 0
                parallel = Parallel(expert=ranks, redundant=copies)
                yield f"EP{ranks}", parallel, False
                yield f"EP{ranks}, two halves", parallel, True


def worth(device: Accelerator, tokens_per_s: float, price: str = DEFAULT_PRICE) -> Worth:
    """Of so many tokens a second of one device, by the catalogue's price of an hour and its power."""
    usd, watts = device.usd_per_hour.get(price), device.figures.get("all_in_power_w")
    return Worth(
        usd_per_million(usd.value, tokens_per_s) if usd else None,
        tokens_per_s / watts.value * MILLION if watts else None,
    )


def times_better(
    newer: Accelerator, older: Accelerator, times: float, price: str = DEFAULT_PRICE
) -> tuple[float, float]:
    """Where a device of the newer kind has `times` the tokens of an older one: the same for a dollar, and a joule.

    Raises InvalidRequestError where the catalogue lacks a price or a power of either.
    """
    (new_usd, new_energy), (old_usd, old_energy) = worth(newer, times, price), worth(older, 1.0, price)
    if new_usd is None or old_usd is None or new_energy is None or old_energy is None:
        raise InvalidRequestError(f"the catalogue lacks a price '{price}' or a power of {newer.name} or {older.name}")
    return old_usd / new_usd, new_energy / old_energy


def gains(recipes: Sequence[Recipe], speed: float) -> list[float]:
    """Of recipes that each add something to the one before: how many times as much each yields at a speed.

    The first is 1, whatever it yields. From nothing to something is infinity; from nothing to nothing is not a number.
    """
    yields = [best.found.output_per_s if (best := recipe.best(speed)) else 0.0 for recipe in recipes]
    after = [new / old if old else math.inf if new else math.nan for old, new in pairwise(yields)]
    return [1.0, *after]
