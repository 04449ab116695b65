"""Numbers for people: three significant digits, SI prefixes where the field uses them.

`format_value` here and `formatValue` in `explorer.js` give the same text for the same number; a test compares them.
It formats and does nothing else: no parsing, no conversion between units.
"""

import math
from decimal import ROUND_HALF_UP, Decimal

#: Units that take an SI prefix. Everything else is written out with thousands separators.
SI_UNITS = ("B", "B/s", "FLOP", "FLOP/s", "Hz", "J", "W", "bit/s", "s")
_PREFIXES = {-9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P", 18: "E"}


def _round(value: float) -> Decimal:
    exact = Decimal(value)
    return exact.quantize(Decimal(1).scaleb(exact.adjusted() - 2), ROUND_HALF_UP)


def _plain(number: Decimal) -> str:
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _scaled(value: float) -> tuple[str, str]:
    rounded = _round(value)
    power = max(-9, min(18, 3 * math.floor(rounded.adjusted() / 3)))
    return _plain(rounded.scaleb(-power)), _PREFIXES[power]


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{Decimal(value).quantize(Decimal(1), ROUND_HALF_UP):,}"
    return _plain(_round(value))


def format_value(value: float, unit: str = "") -> str:
    """`value` with its unit, e.g. `12.3 ms`, `1.98 TB/s`, `2,048 tokens`, `$0.15/M tokens`, `40%`, `3.5×`.

    Three significant digits; from 1000 on, numbers without an SI unit are shown to the whole number.

    Example:
        >>> from miniserve.notebook import format_value
        >>> format_value(0.0123, "s"), format_value(3.35e12, "B/s"), format_value(2048, "tokens")
        ('12.3 ms', '3.35 TB/s', '2,048 tokens')
    """
    if not math.isfinite(value):
        return f"{value} {unit}".rstrip()
    if unit in SI_UNITS:
        number, prefix = _scaled(value) if value else ("0", "")
        return f"{number} {prefix}{unit}"
    number = _number(value) if value else "0"
    if unit.startswith("$"):
        return f"-${number[1:]}{unit[1:]}" if value < 0 else f"${number}{unit[1:]}"
    return number + (unit if unit in ("", "%", "×") else f" {unit}")
