"""`miniserve simulate`, as typed."""

import json

import pytest
from typer.testing import CliRunner

from miniserve.cli import app
from miniserve.errors import InvalidRequestError

SMALL = ["simulate", "-m", "llama-3.1-8b", "--hardware", "h100", "--num-requests", "40", "--output-len", "20"]


def run(*options):
    result = CliRunner().invoke(app, [*SMALL, *options])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_json_is_the_same_every_time():
    data = json.loads(run("--rate", "20", "--slo", "ttft:1000", "--json").stdout)
    assert data == json.loads(run("--rate", "20", "--slo", "ttft:1000", "--json").stdout)
    assert data["label"] == "simulated"
    assert data["completed"] == 40
    assert data["slo_attainment"] == 1
    assert data["usd_per_million_output_tokens"] > 0
    other = json.loads(run("--rate", "20", "--slo", "ttft:1000", "--json", "--seed", "1").stdout)
    assert other["ttft_s"] != data["ttft_s"]


def test_a_trace_and_a_split_cluster(tmp_path):
    trace = tmp_path / "trace.csv"
    rows = [f"2023-11-16 18:15:{second:02}.0000000,{100 + second},10" for second in range(20)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    shown = run("--trace", str(trace), "--prefill-engines", "2", "--engines", "1").stdout
    assert "2 prefill + 1 engines" in " ".join(shown.split())
    assert "20 in" in shown


def test_sessions_find_what_they_said_before():
    data = json.loads(run("--workload", "agentic", "--num-requests", "3", "--json").stdout)
    assert data["completed"] > 50  # turns
    assert data["cached_share"] > 0.8


def test_a_device_without_timings_says_so():
    data = json.loads(run("--hardware", "t4", "--tp", "2", "--weights", "fp16", "--concurrency", "2", "--json").stdout)
    assert "lower bound" in data["kernels"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rate", "1", "--concurrency", "1"], "one of --rate"),
        (["--workload", "rag", "--concurrency", "1"], "goes with --rate"),
        (["--workload", "web"], "workload 'web'"),
        (["--router", "best"], "router 'best' is not one of"),
        (["--hardware", "h1000"], "h1000"),
        (["--model", "llama-3.1-405b"], "it does not fit: weights of"),
        (["--tp", "3"], "cannot be split over 3"),
        (["--weights", "fp5"], "fp5"),
        (["--link-gbytes-per-s", "0", "--prefill-engines", "1"], "bandwidth"),
        (["--price", "ebay"], "no price 'ebay'"),
    ],
)
def test_nonsense_is_explained(options, message):
    with pytest.raises(InvalidRequestError, match=message):
        run(*options)
