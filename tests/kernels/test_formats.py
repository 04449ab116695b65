"""Number formats and rounding, bit for bit against independent ones: ml_dtypes, torch's casts, a search among values."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.kernels.formats import (
    BF16,
    E2M1,
    E4M3,
    E5M2,
    FORMATS,
    FP16,
    INT8,
    TF32,
    round_to,
)  # fmt: skip

MANY = settings(derandomize=True, deadline=None, max_examples=200)
ML_DTYPES = {
    "BF16": ml_dtypes.bfloat16, "FP16": np.float16, "E4M3": ml_dtypes.float8_e4m3fn,
    "E5M2": ml_dtypes.float8_e5m2, "E2M1": ml_dtypes.float4_e2m1fn,
}  # fmt: skip
by_name = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)


def every_kind(fmt, count=1_000_000):
    """Random bits of float32 (every octave, subnormals), random numbers in the format's range, its values, the points
    half-way between them with their neighbours, and the special values. float32."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, count, dtype=np.uint32).view(np.float32)
    near = rng.standard_normal(count) * 2.0 ** rng.uniform(fmt.min_exponent - 12, fmt.max_exponent + 2, count)
    values = fmt.values().double().numpy()
    top = [fmt.max, fmt.max * (1 + fmt.epsilon / 4), fmt.max + 2.0 ** (fmt.max_exponent - fmt.mantissa_bits - 1)]
    with np.errstate(over="ignore"):
        ties = np.concatenate(((values[1:] + values[:-1]) / 2, top, np.negative(top))).astype(np.float32)
        around = [np.nextafter(ties, np.float32(end)) for end in (-np.inf, np.inf)]
        edges = [np.nan, np.inf, np.finfo(np.float32).max, 2.0**-126, 2.0**-149, 0.0]
        parts = (bits, near, values, ties, *around, edges, np.negative(edges))
        return np.concatenate([np.asarray(part).astype(np.float32) for part in parts])


def same_bits(got, expected):
    """Equal as bits; any NaN is equal to any other."""
    got, expected = np.asarray(got), np.asarray(expected)
    both_nan = np.isnan(got) & np.isnan(expected)
    return bool(np.all((got.view(np.uint32) == expected.view(np.uint32)) | both_nan))


@pytest.mark.parametrize("fmt", [f for f in FORMATS if f.name in ML_DTYPES], ids=lambda fmt: fmt.name)
def test_rounding_equals_ml_dtypes(fmt):
    x = every_kind(fmt)
    x = x if fmt.has_nan else x[~np.isnan(x)]
    assert len(x) > 1_900_000
    with np.errstate(all="ignore"):
        expected = x.astype(ML_DTYPES[fmt.name]).astype(np.float32)
    got = round_to(torch.from_numpy(x), fmt, saturate=False).numpy()
    assert same_bits(got, expected)


@pytest.mark.parametrize(
    ("fmt", "dtype", "saturate"),
    [
        (BF16, torch.bfloat16, False),
        (FP16, torch.float16, False),
        (E5M2, torch.float8_e5m2, False),
        (E4M3, torch.float8_e4m3fn, None),
    ],
    ids=lambda each: getattr(each, "name", ""),
)
def test_rounding_equals_torchs_casts(fmt, dtype, saturate):
    """Which of the two modes torch's E4M3 takes beyond 448 differs between its versions: it says so itself."""
    if saturate is None:
        saturate = not bool(torch.tensor(1e4).to(dtype).float().isnan())
    x = torch.from_numpy(every_kind(fmt))
    assert same_bits(round_to(x, fmt, saturate=saturate), x.to(dtype).float())


def test_tf32_equals_the_bits_rule():
    """TF32 is float32 with the last 13 bits rounded away: half-even, as integer arithmetic on the bits."""
    x = every_kind(TF32)
    bits = x.view(np.uint32).astype(np.uint64)
    expected = ((bits + 0x0FFF + ((bits >> 13) & 1)) & 0xFFFFE000).astype(np.uint32).view(np.float32)
    expected = np.where(np.isnan(x), x, expected)
    assert same_bits(round_to(torch.from_numpy(x), TF32, saturate=False), expected)


def test_int8_is_rounding_to_integers():
    x = torch.from_numpy(every_kind(INT8))
    x = x[~x.isnan()]
    assert torch.equal(round_to(x, INT8), x.round().clamp(-127, 127))


@by_name
def test_description(fmt):
    """Counted from the bits: 2^bits codes, of which two are zeros, and infinities and NaNs have none of the rest."""
    values = fmt.values()
    assert values.dtype == torch.float32
    assert torch.equal(values, -values.flip(0))
    assert (values.diff() > 0).all()
    assert values[-1] == fmt.max
    assert values[values > 0].min() == fmt.smallest
    if fmt.exponent_bits:
        # Codes whose value is no finite number: the whole top octave (IEEE), E4M3's two NaNs, none.
        special = 2 ** (fmt.mantissa_bits + 1) if fmt.has_inf else 2 * fmt.has_nan
        assert len(values) == 2**fmt.bits - special - 1
        assert values[(values > 1)].min() == 1 + fmt.epsilon
    else:
        assert torch.equal(values, torch.arange(-127.0, 128.0))


@pytest.mark.parametrize("name", ML_DTYPES)
def test_description_equals_ml_dtypes(name):
    fmt, info = next(f for f in FORMATS if f.name == name), ml_dtypes.finfo(ML_DTYPES[name])
    found = (fmt.bits, fmt.mantissa_bits, fmt.max, fmt.smallest, fmt.smallest_normal, fmt.epsilon)
    facts = (info.bits, info.nmant, info.max, info.smallest_subnormal, info.smallest_normal, info.eps)
    assert [float(each) for each in found] == [float(each) for each in facts]


@by_name
def test_values_stay_and_special_values_are_as_stated(fmt):
    values = fmt.values()
    assert torch.equal(round_to(values, fmt), values)
    zeros = round_to(torch.tensor([0.0, -0.0, -fmt.smallest / 4]), fmt)
    assert zeros.tolist() == [0, 0, 0]
    assert zeros.signbit().tolist() == [False, True, True]
    large = torch.tensor([math.inf, -math.inf, 3.4e38])
    assert round_to(large, fmt)[:2].tolist() == [fmt.max, -fmt.max]
    unsaturated = round_to(large[:2], fmt, saturate=False)
    if fmt.has_inf:
        assert torch.equal(unsaturated, large[:2])
    elif fmt.has_nan:
        assert unsaturated.isnan().all()
    else:
        assert unsaturated.tolist() == [fmt.max, -fmt.max]
    nan = torch.tensor([1.0, math.nan])
    if fmt.has_nan:
        assert round_to(nan, fmt).isnan().tolist() == [False, True]
    else:
        with pytest.raises(InvalidRequestError, match=f"NaN, and {fmt.name} has none"):
            round_to(nan, fmt)


@MANY
@given(x=st.floats(width=32, allow_nan=False), fmt=st.sampled_from([E5M2, E4M3, E2M1, INT8]))
def test_rounded_is_the_nearest_value_and_the_even_one_of_two(x, fmt):
    values = fmt.values().double()
    got = round_to(torch.tensor([x]), fmt).item()
    if abs(x) >= fmt.max:  # so far off that float64 may not tell which value is the nearest
        assert got == math.copysign(fmt.max, x)
        return
    distance = (values - x).abs()
    nearest = values[distance == distance.min()].tolist()
    assert got in nearest
    if len(nearest) == 2:
        # The last bit of a value: its place among the positive ones, counted from zero.
        places = {value: (values[values >= 0] == abs(value)).nonzero().item() for value in nearest}
        assert places[got] % 2 == 0


@MANY
@given(
    a=st.floats(width=32, allow_nan=False), b=st.floats(width=32, allow_nan=False), fmt=st.sampled_from(FORMATS)
)  # fmt: skip
def test_rounding_keeps_order_and_sign_and_happens_once(a, b, fmt):
    low, high = round_to(torch.tensor([min(a, b), max(a, b)]), fmt)
    assert low <= high
    assert round_to(torch.tensor([-a]), fmt).item() == -round_to(torch.tensor([a]), fmt).item()
    assert torch.equal(round_to(low, fmt), low)


def test_narrow_inputs_count_as_what_they_are():
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
        assert torch.equal(round_to(x, E4M3), round_to(x.float(), E4M3))
    with pytest.raises(InvalidRequestError, match="float64"):
        round_to(torch.zeros(1, dtype=torch.float64), E4M3)
