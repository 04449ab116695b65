"""The curves are of the form the book reads, a limit that is not there costs no other, and products are products."""

import json

import pytest
import torch
from typer.testing import CliRunner

from miniserve.bench import ceilings, products
from miniserve.bench.record import device_slug
from miniserve.cli import app
from miniserve.errors import InvalidRequestError
from miniserve.notebook import load_results

CPU = torch.device("cpu")


@pytest.fixture
def short(monkeypatch):
    """The same curves with few, small points."""
    monkeypatch.setitem(ceilings.CURVE_BYTES, "cpu", [2**14, 2**20])
    monkeypatch.setitem(ceilings.CURVE_SIZES, "cpu", [32, 64])
    monkeypatch.setattr(ceilings, "BUDGET_S", 0.01)


def test_ceilings_are_speeds_a_machine_could_have():
    measured = ceilings.measure_ceilings(CPU, torch.float32, repeats=3)
    assert 1e8 < measured.read_bytes_per_s < 1e13
    assert 1e8 < measured.flops_per_s < 1e15


def test_the_command_writes_curves_that_the_book_reads(short, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["bench", "ceilings", "--device", "cpu", "--threads", "1"])
    assert result.exit_code == 0, result.output
    run = load_results(f"{device_slug('cpu')}/ceilings", tmp_path / "results")
    assert [row["bytes"] for row in run["read"]] == [row["bytes"] for row in run["copy"]] == [2**14, 2**20]
    assert all(1e7 < row["bytes_per_s"] < 1e13 for row in run["read"] + run["copy"])
    assert [(row["dtype"], row["size"]) for row in run["gemm"]] == [
        (dtype, size) for dtype in products.PRODUCTS["cpu"] for size in (32, 64)
    ]
    assert all(1e6 < row.get("flops_per_s", 1e9) < 1e15 for row in run["gemm"])
    assert 1e-8 < run["launch"]["eager_s"] < 1e-3
    assert (run["launch"]["graph_s"], run["skinny"], run["threads"]) == (None, [], 1)
    for word in ("1 MiB", "fp32", "GB/s", "FLOP/s", "µs"):
        assert word in result.output


def test_what_is_unsupported_is_recorded_and_the_rest_goes_on(short, monkeypatch):
    real = ceilings.product_seconds

    def refuse(dtype, *args, **options):
        if dtype == "bf16":
            raise RuntimeError("no bf16 here\nand a long trace")
        return real(dtype, *args, **options)

    monkeypatch.setattr(ceilings, "product_seconds", refuse)
    rows = ceilings.bench_ceilings(CPU, lambda done, what: None)["gemm"]
    assert [row["unsupported"] for row in rows if row["dtype"] == "bf16"] == ["RuntimeError: no bf16 here"] * 2
    assert all(row["flops_per_s"] > 0 for row in rows if row["dtype"] == "fp32")


def test_a_product_that_would_take_long_is_not_tried(short, monkeypatch):
    tried = []
    monkeypatch.setattr(ceilings, "product_seconds", lambda dtype, device, m, n, k, **_: tried.append(m) or 0.5)
    rows = list(ceilings._gemm(CPU, lambda done, what: None))
    assert tried == [32] * 4
    assert [row.get("unsupported") for row in rows] == [None, "one product would take 4.0 s"] * 4


def test_progress_goes_up_to_the_end(short):
    shares = []
    data = ceilings.bench_ceilings(CPU, lambda done, what: shares.append(done))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert json.loads(json.dumps(data)) == data


@pytest.mark.parametrize("dtype", products.STORED)
def test_a_product_is_that_of_a_linear_layer(dtype):
    torch.manual_seed(0)
    x, weight = (products._random(products.STORED[dtype], CPU, rows, 64) for rows in (32, 48))
    expected = x.double() @ weight.double().t()
    error = (products._product(x, weight)().double() - expected).abs().max() / expected.abs().max()
    assert error == 0 if dtype == "int8" else error < 0.02


def test_no_other_format_stands_in():
    with pytest.raises(InvalidRequestError, match="no number format 'fp3'; there is fp32, tf32"):
        products.product_seconds("fp3", CPU, 8, 8, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_tensor_cores_outrun_exact_float32():
    seconds = {
        name: products.product_seconds(name, torch.device("cuda"), 4096, 4096, 4096) for name in ("fp32", "fp16")
    }
    assert seconds["fp16"] < seconds["fp32"]
