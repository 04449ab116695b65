"""`uniform`: a request's random numbers, each a hash of its seed and its place in the output.

There is no generator, whose state could get out of step: a number can be had at any time, in any order, on any machine.
"""


def uniform(seed: int, index: int) -> float:
    """A request's random number for its output token `index`: in [0, 1), a multiple of 2^-53."""
    golden = 0x9E3779B97F4A7C15
    return (_mix(_mix(seed + golden) + (index + 1) * golden) >> 11) * 2.0**-53


def _mix(z: int) -> int:
    """Scatter 64 bits so that each bit of the result hangs on each of z.

    Source: SplitMix64, Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators", with the constants
    of Stafford's variant 13.
    """
    z &= 2**64 - 1
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)
