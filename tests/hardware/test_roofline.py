"""Times: the roofline by hand, curves that never promise more than it, and their error on timings held out."""

import importlib.util
import math
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniserve.errors import CorruptFileError, InvalidRequestError
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.cost import Operator, Part, collective, gemm
from miniserve.hardware.efficiency import Curve, efficiency_of, load_efficiencies
from miniserve.hardware.roofline import Roofline
from miniserve.hardware.shape import Experts, Parallel, Precision, Shape
from miniserve.hardware.step import step_operators

ROOT = Path(__file__).resolve().parents[2]
TIMINGS = ROOT.parent / "shared" / "data" / "kernel_timings"
LLAMA_8B = Shape(32, 4096, 32, 8, 128, 14336, 128256)
MIXTRAL = Shape(32, 4096, 32, 8, 128, 14336, 32000, experts=Experts(8, 2, 14336))
FITTED = ("a100-80", "h100", "b200")

# Median error on held-out timings. The aim was 15%: what lies above is named here, with what it came to.
AIM = 0.15
ABOVE = {
    ("a100-80", "moe", "bf16"): 0.19,  # only a skewed load was timed, and the model's is even
    ("a100-80", "all_gather", "nccl"): 0.17,
    ("h100", "decode_attention", "fp8"): 0.17,
    ("b200", "moe", "fp8"): 0.17,
    ("b200", "moe", "nvfp4"): 0.21,
}


@dataclass
class Toy:
    bandwidth: float = 100.0
    memory_bytes: float = 1e6
    link_bandwidth: float = 10.0
    link_domain: float = math.inf
    network_bandwidth: float = math.nan

    def flops(self, format):
        return {"bf16": 1000.0, "fp8": 2000.0}[format]


def operator(flops=0.0, weight_bytes=0.0, **more):
    return Operator("toy", "gemm", "bf16", "bf16", 1, flops=flops, weight_bytes=weight_bytes, **more)


def test_the_roofline_by_hand():
    roofline = Roofline(Toy())
    assert roofline.ridge("bf16") == 10
    assert roofline.ridge("fp8") == 20
    slow, fast = operator(500, 100), operator(5000, 100)
    assert (slow.intensity, fast.intensity) == (5, 50)
    assert (roofline.bound(slow), roofline.bound(fast)) == ("memory", "compute")
    assert (roofline.seconds(slow), roofline.seconds(fast)) == (1.0, 5.0)
    assert roofline.step_seconds([slow, fast._replace(times=3)]) == 16
    ring = collective("all_reduce", 40, 4)
    assert (ring.link_bytes, roofline.seconds(ring), roofline.bound(ring)) == (60, 6.0, "link")


def test_a_curve_by_hand():
    op = operator(800, 60, activation_bytes=20, depth=50)
    curve = Curve(launch_s=2, compute=0.5, memory=0.8, sharpness=1, step_s=0.1, knee=50)
    assert curve.seconds(op, Toy()) == pytest.approx(2 + 0.1 * 50 / 2 + 800 / 500 + 80 / 80)
    assert Curve(compute=0.5, memory=0.8, sharpness=2).seconds(op, Toy()) == pytest.approx(math.hypot(1.6, 1.0))
    attention = operator(800, kv_bytes=100, context=10, head_dim=64)
    assert Curve(tile=10, sharpness=1).seconds(attention, Toy()) == pytest.approx(2**0.25 * (0.8 + 1))
    assert Curve(softmax=32, sharpness=1).seconds(attention, Toy()) == pytest.approx(1.5 * 1.8)
    hops = Curve(launch_s=1, hop_s=0.5, memory=0.5).seconds(collective("all_gather", 40, 4), Toy())
    assert hops == pytest.approx(1 + 4 * 0.5 + 30 / 5)


@given(
    st.sampled_from(FITTED), st.sampled_from([LLAMA_8B, MIXTRAL]),
    st.lists(st.builds(Part, st.integers(0, 8000), st.integers(1, 2000), st.integers(0, 1)), min_size=1, max_size=5),
)  # fmt: skip
def test_kernels_take_longer_than_the_roofline(key, shape, parts):
    device = load_catalog().accelerator(key)
    for op in step_operators(shape, parts, Precision.of("bf16"), Parallel(2)):
        assert Roofline(device, efficiency_of(key)).seconds(op) >= Roofline(device).seconds(op) > 0


@given(st.sampled_from(FITTED), st.integers(1, 64), st.integers(1, 20000), st.integers(1, 64), st.integers(1, 5000))
def test_time_grows_with_batch_and_context(key, batch, context, more, longer):
    timer = Roofline(load_catalog().accelerator(key), efficiency_of(key))

    def step(batch, context):
        return timer.step_seconds(step_operators(LLAMA_8B, [Part(context, 1)] * batch, Precision.of("bf16")))

    assert step(batch, context) < step(batch + more, context)
    assert step(batch, context) < step(batch, context + longer)


def test_an_all_to_all_beyond_the_links_goes_over_the_network_too():
    """6 groups of 2 devices where 4 are joined: of 60 bytes, a group's 50 for the others are 10 near and 40 far.

    Each of the two takes 20 of the far ones through its own end of the network; then the links bring it the other's.
    """
    machine = Toy(link_bandwidth=10.0)
    machine.link_domain, machine.network_bandwidth = 4, 1.0
    op = collective("all_to_all", 60, 6, stride=2)
    assert Roofline(machine).seconds(op) == pytest.approx(20 + 2)
    machine.network_bandwidth = 1000.0
    assert Roofline(machine).seconds(op) == pytest.approx(1 + 2)
    machine.link_domain = 12
    assert Roofline(machine).seconds(op) == pytest.approx(5)


@given(st.integers(1, 200), st.sampled_from([1, 2, 4, 8]), st.sampled_from([2, 4, 8]), st.sampled_from([8, 16, 64]))
def test_a_tensor_groups_rows_cross_the_network_once(tokens, tensor, ranks, domain):
    """Whatever the split: of all ranks' rows, those for another domain's experts, through all devices alike."""
    domain = max(domain, tensor)
    ops = step_operators(MIXTRAL, [Part(0, 1)] * tokens, Precision.of("bf16"), Parallel(tensor, ranks))
    (dispatch,) = (op for op in ops if op.name == "dispatch")
    far = max(0, ranks - domain // tensor) / ranks  # of the experts, those that no link leads to
    one_rank = dispatch.times * tokens * 2 * 4096 * 2  # rows of 4,096 numbers in bfloat16, each to two experts
    idle_links = Toy(link_bandwidth=math.inf, link_domain=domain, network_bandwidth=1.0)
    through_one_nic = Roofline(idle_links).seconds(dispatch)
    assert through_one_nic * ranks * tensor == pytest.approx(far * one_rank * ranks)
    # Every device needs all rows that come to its group, whichever way: by the links what it did not get otherwise.
    idle_network = Toy(link_bandwidth=1.0, link_domain=domain, network_bandwidth=math.inf)
    by_links = Roofline(idle_network).seconds(dispatch)
    assert through_one_nic + by_links == pytest.approx(one_rank * (ranks - 1) / ranks)


@given(st.floats(1, 1e9), st.integers(2, 64), st.integers(1, 64))
def test_single_devices_gather_nothing(message, ranks, domain):
    """Without tensor parallelism: what goes over the links and what over the network, at once."""
    machine = Toy(link_bandwidth=10.0, link_domain=domain, network_bandwidth=1.0)
    each, near = message * (ranks - 1) / ranks / (ranks - 1), min(ranks, domain)
    expected = max(each * (near - 1) / 10, each * (ranks - near) / 1)
    assert Roofline(machine).seconds(collective("all_to_all", message, ranks)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("ranks", "dispatch_us", "combine_us"),
    [(16, 118, 195), (32, 155, 273), (64, 173, 314), (128, 192, 369), (256, 194, 360)],
)
def test_the_network_is_as_fast_as_deepep_was_timed(ranks, dispatch_us, combine_us):
    """128 tokens of 7,168 numbers to 8 experts each, FP8 there and bfloat16 back, on H800s (DeepEP's own table)."""
    timer = Roofline(load_catalog().accelerator("h800"), efficiency_of("h100"))
    for size, measured_us in ((1, dispatch_us), (2, combine_us)):
        op = collective("all_to_all", 128 * 8 * 7168 * size, ranks)
        assert timer.seconds(op) * 1e6 == pytest.approx(measured_us, rel=0.1)


def test_a_format_that_was_never_timed_is_refused():
    a100 = Roofline(load_catalog().accelerator("a100-80"), efficiency_of("a100-80"))
    op = gemm("", "fp16", 8, 8, 8, weight_bytes=2, activation_bytes=2)
    with pytest.raises(InvalidRequestError, match="no timings of gemm in fp16 on a100-80; there are bf16"):
        a100.seconds(op)
    with pytest.raises(InvalidRequestError, match="no kernel timings of 'h200'; there are some of a100-80, h100, b200"):
        efficiency_of("h200")


def test_parameters_are_what_they_are_called():
    for key, efficiency in load_efficiencies().items():
        assert load_catalog().accelerator(key)
        for kind, curves in efficiency.curves.items():
            for format, curve in curves.items():
                assert 0 < curve.compute <= 1
                assert 0 < curve.memory <= 1
                assert curve.sharpness >= 1
                assert 1e-7 < curve.launch_s < 1e-3
                if kind in efficiency.error:
                    assert efficiency.error[kind][format] <= ABOVE.get((key, kind, format), AIM)


def test_a_garbled_file_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "efficiency.toml"
    for text in (
        "devices = 3",
        "x = 1",
        "[devices.a.gemm.bf16]\nlaunch_s = 1",
        "[devices.a.gemm.bf16]\nerror = 1\nspeed = 2",
        "[",
    ):
        path.write_text(text)
        with pytest.raises(CorruptFileError, match=r"efficiency\.toml"):
            load_efficiencies(path)


def test_a_kernel_that_was_not_timed_has_a_source(tmp_path):
    path = tmp_path / "stated.toml"
    for text, message in (
        ("[devices.h100.moe.int8]\ncompute = 0.5", "source"),
        ("[devices.z80.moe.int8]\ncompute = 0.5\nsource = 'x'", "no timings were fitted for z80"),
    ):
        path.write_text(text)
        with pytest.raises(CorruptFileError, match=message):
            load_efficiencies(stated=path)


def test_a_simulator_can_afford_it():
    """Thousands of steps a second, with 64 requests each. A third of what it does on a slow machine."""
    timer = Roofline(load_catalog().accelerator("h100"), efficiency_of("h100"))
    parts = [Part(1000 + i, 1) for i in range(64)]
    best = math.inf
    for _ in range(20):
        started = time.perf_counter()
        timer.step_seconds(step_operators(LLAMA_8B, parts, Precision.of("bf16"), Parallel(2)))
        best = min(best, time.perf_counter() - started)
    assert best < 1e-3


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("pyarrow", reason="reading the timings needs pyarrow")
    if not TIMINGS.is_dir():
        pytest.skip(f"no kernel timings in {TIMINGS}")
    spec = importlib.util.spec_from_file_location("fit_kernel_timings", ROOT / "benchmarks" / "fit_kernel_timings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def timings(script):
    return list(script.load(TIMINGS))


def test_error_on_timings_the_fit_did_not_see(script, timings):
    """The file's curves, on the half held out: the errors the file states, and within the aim but where said above."""
    seen = set()
    for some in timings:
        efficiency = efficiency_of(some.device)
        curve = efficiency.curves[some.kind][some.format]
        error = script.error(curve, some, some.halves()[1], load_catalog().accelerator(some.device))
        key = some.device, some.kind, some.format
        assert error == pytest.approx(efficiency.error[some.kind][some.format], rel=0.01), key
        assert error <= ABOVE.get(key, AIM), key
        seen.add(key)
    assert seen == {(d, k, f) for d, e in load_efficiencies().items() for k, by in e.error.items() for f in by}


def test_the_fit_gives_the_files_curves(script, timings):
    """One device and kind again, from the start."""
    device = load_catalog().accelerator("a100-80")
    assert script.fit(timings[0], device) == efficiency_of("a100-80").curves["gemm"]["bf16"]
