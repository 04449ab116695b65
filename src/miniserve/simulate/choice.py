"""One service on many devices: what each yields and costs, and at which price those without one would cost the same.

Devices whose kernels were timed are compared by those timings, all of them by the roofline. Only like is put beside
like: the roofline is a bound that no kernel reaches, and how near a device's software comes to it is the open question.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from miniserve.errors import InvalidRequestError
from miniserve.hardware.devices import Accelerator
from miniserve.hardware.efficiency import IDEAL, Efficiency
from miniserve.hardware.shape import Parallel, Precision
from miniserve.simulate.deployment import Deployment, efficiency_for
from miniserve.simulate.models import shape_by_name
from miniserve.simulate.money import break_even, usd_per_million
from miniserve.simulate.report import DEFAULT_PRICE
from miniserve.simulate.steady import Lengths, Steady, Yield

SEATS = 512  # of an engine, as `plan` has it


@dataclass(frozen=True)
class Service:
    """What is to be served.

    Attributes:
        model: by name; see `shape_by_name`.
        weights: their format.
        lengths: of the mean request.
        speed: tokens a second that each user must get.
        splits: ways to split an engine, of which a device takes the best.
        found: share of each prompt whose KV is there already.
    """

    model: str
    weights: str
    lengths: Lengths
    speed: float
    splits: tuple[Parallel, ...]
    found: float = 0.0

    def __post_init__(self) -> None:
        """Raise InvalidRequestError for a model or a format that is not known: no device would be to blame for it."""
        shape_by_name(self.model)
        Precision.of(self.weights)

    def engine(self, device: Accelerator, parallel: Parallel, efficiency: Efficiency | None = None) -> Steady:
        """One rank of an engine, by default with kernels as they were timed, or at the roofline where none were."""
        where = Deployment(
            device, shape_by_name(self.model), Precision.of(self.weights), parallel,
            efficiency or efficiency_for(device), max_num_seqs=SEATS,
        )  # fmt: skip
        return Steady(where, self.lengths, found=self.found)

    def on(self, device: Accelerator, efficiency: Efficiency | None = None) -> Yield | None:
        """What a device yields with the split that yields most; None: with none does it fit and get fast enough."""
        found: list[Yield] = []
        for parallel in self.splits:
            try:
                each = self.engine(device, parallel, efficiency).within(self.speed)
            except InvalidRequestError:
                continue
            found += [each] if each else []
        return max(found, key=lambda each: each.output_per_s, default=None)


class Offer(NamedTuple):
    """A device for a service.

    Attributes:
        device: which.
        usd_per_hour: its price; None: the catalogue has none.
        timed: with kernels as they were timed; None: none were, or it cannot serve.
        bound: at the roofline; None: it cannot serve even so.
    """

    device: Accelerator
    usd_per_hour: float | None
    timed: Yield | None
    bound: Yield | None

    @property
    def usd_per_million(self) -> float | None:
        """Output tokens, with kernels as they were timed."""
        return self._usd_per_million(self.timed)

    @property
    def least_usd_per_million(self) -> float | None:
        """The same at the roofline."""
        return self._usd_per_million(self.bound)

    def fair_price(self, other: "Offer") -> float:
        """$ an hour at which it costs what another one does, if kernels of both come equally near to their rooflines.

        Raises:
            InvalidRequestError: the other has no price, or one of them cannot serve.
        """
        if not (self.bound and other.bound and other.usd_per_hour):
            raise InvalidRequestError(f"no price of a {self.device.name} follows from that of a {other.device.name}")
        return break_even(self.bound.output_per_s, other.bound.output_per_s, other.usd_per_hour)

    def reach(self, other: "Offer") -> float | None:
        """The share of its roofline from which on it costs less than another one as timed; None: not known."""
        if self.least_usd_per_million is None or other.usd_per_million is None:
            return None
        return self.least_usd_per_million / other.usd_per_million

    def _usd_per_million(self, found: Yield | None) -> float | None:
        if found is None or self.usd_per_hour is None:
            return None
        return usd_per_million(self.usd_per_hour, found.output_per_s)


def offers(service: Service, devices: Iterable[Accelerator], price: str = DEFAULT_PRICE) -> dict[str, Offer]:
    """Of each device, by its key in the catalogue.

    Args:
        service: what is to be served.
        devices: by which.
        price: which of the catalogue's prices an hour.

    Example:
        >>> from miniserve.hardware.catalog import load_catalog
        >>> from miniserve.hardware.shape import Parallel
        >>> from miniserve.simulate.choice import Service, offers
        >>> from miniserve.simulate.steady import Lengths
        >>> service = Service("qwen3-8b", "fp8", Lengths(1024, 256), speed=50.0, splits=(Parallel(1), Parallel(2)))
        >>> devices = [load_catalog().accelerator(name) for name in ("h100", "mi300x")]
        >>> {key: (offer.timed is not None, offer.bound is not None) for key, offer in offers(service, devices).items()}
        {'h100': (True, True), 'mi300x': (False, True)}
    """
    found = {}
    for device in devices:
        timed = service.on(device) if efficiency_for(device) is not IDEAL else None
        usd = device.usd_per_hour[price].value if price in device.usd_per_hour else None
        found[device.key] = Offer(device, usd, timed, service.on(device, IDEAL))
    return found
