"""Random numbers: even, independent of their neighbours, and the same tomorrow."""

import numpy as np

from miniserve.core.sampling_params import SamplingParams
from miniserve.runtime import uniform as module
from miniserve.runtime.uniform import uniform
from support.slow_sampler import chi_square


def test_numbers_are_even_along_seeds_and_positions_and_for_neighbours():
    along = {
        "seeds": [(uniform(seed, 0), uniform(seed + 1, 0)) for seed in range(20000)],
        "positions": [(uniform(5, index), uniform(5, index + 1)) for index in range(20000)],
        "the diagonal": [(uniform(at, at), uniform(at + 1, at)) for at in range(20000)],
        "choices": [(uniform(SamplingParams(seed=seed).seed_of(0), 0), uniform(SamplingParams(seed=seed).seed_of(1), 0)) for seed in range(5000)],
    }  # fmt: skip
    for name, pairs in along.items():
        cells = [int(first * 8) * 8 + int(second * 8) for first, second in pairs]
        assert chi_square(np.bincount(cells, minlength=64), [1 / 64] * 64), name
        assert all(0 <= number < 1 for pair in pairs for number in pair)


def test_the_hash_is_splitmix64():
    """The first numbers of its stream from seed 1234567, as published with other implementations of it."""
    golden = 0x9E3779B97F4A7C15
    stream = [module._mix(1234567 + step * golden) for step in (1, 2, 3)]
    assert stream == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_numbers_stay_what_they_are():
    """A seed that someone wrote down means the same tomorrow."""
    assert [uniform(*at) for at in ((0, 0), (0, 1), (1, 0), (2**63 - 1, 1000))] == [
        0.6524484863740322, 0.7012121095215252, 0.36818951565166946, 0.260144116597694,
    ]  # fmt: skip
