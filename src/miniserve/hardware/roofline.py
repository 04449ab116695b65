"""How long operators and steps take on a device, and what bounds them.

`Roofline(device)` gives the least time that FLOPs and bytes allow: attainable = min(peak, intensity · bandwidth)
(Williams, Waterman, Patterson 2009). `Roofline(device, efficiency_of("h100"))` gives what kernels were timed at. A
step's operators follow one another; nothing overlaps. For a simulator: some 50 µs a step, and 1 µs a request.
"""

from collections.abc import Iterable
from typing import Literal

from miniserve.hardware.cost import Operator
from miniserve.hardware.efficiency import COLLECTIVES, IDEAL, Device, Efficiency


class _Snapshot:
    """A device's limits, looked up once."""

    def __init__(self, device: Device) -> None:
        self._device, self._peaks = device, dict[str, float]()
        self.bandwidth, self.memory_bytes = device.bandwidth, device.memory_bytes

    def flops(self, format: str) -> float:
        if format not in self._peaks:
            self._peaks[format] = self._device.flops(format)
        return self._peaks[format]

    @property
    def link_bandwidth(self) -> float:
        return self._device.link_bandwidth

    @property
    def link_domain(self) -> float:
        return self._device.link_domain

    @property
    def network_bandwidth(self) -> float:
        return self._device.network_bandwidth


class Roofline:
    """Times operators.

    Args:
        device: the limits.
        efficiency: how close kernels come to them; `IDEAL` is the roofline itself.

    Example:
        >>> from miniserve.hardware.catalog import load_catalog
        >>> from miniserve.hardware.cost import gemm
        >>> from miniserve.hardware.efficiency import efficiency_of
        >>> from miniserve.hardware.roofline import Roofline
        >>> h100 = load_catalog().accelerator("h100")
        >>> product = gemm("up", "bf16", m=16, n=12288, k=4096, weight_bytes=2, activation_bytes=2)
        >>> ideal, timed = Roofline(h100), Roofline(h100, efficiency_of("h100"))
        >>> ideal.bound(product), round(ideal.ridge("bf16"))
        ('memory', 295)
        >>> f"{1e6 * ideal.seconds(product):.0f} µs at least, {1e6 * timed.seconds(product):.0f} µs by kernels' timings"
        "30 µs at least, 39 µs by kernels' timings"
    """

    def __init__(self, device: Device, efficiency: Efficiency = IDEAL) -> None:
        self.device, self.efficiency = _Snapshot(device), efficiency

    def seconds(self, op: Operator) -> float:
        """Of an operator, as often as the step does it.

        Raises InvalidRequestError where the device has no peak, or the timings no curve, for its format.
        """
        return op.times * self.efficiency.seconds(op, self.device)

    def step_seconds(self, operators: Iterable[Operator]) -> float:
        """Of a step: its operators one after another."""
        return sum(map(self.seconds, operators))

    def ridge(self, format: str) -> float:
        """FLOPs a byte at which the peak in `format` and the memory's bandwidth take equally long."""
        return self.device.flops(format) / self.device.bandwidth

    def bound(self, op: Operator) -> Literal["compute", "memory", "link"]:
        """What the roofline says limits an operator."""
        if op.kind in COLLECTIVES:
            return "link"
        if op.peak == "none" or op.intensity < self.ridge(op.peak):
            return "memory"
        return "compute"
