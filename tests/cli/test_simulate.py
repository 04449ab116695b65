"""`miniserve simulate`, as typed."""

import json
import sys

import pytest
from typer.testing import CliRunner

from miniserve.cli import app
from miniserve.errors import InvalidRequestError, MiniserveError

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


def test_a_placeholder_of_a_price_is_said_beside_what_follows_from_it():
    shown = " ".join(run("--rate", "20", "--hardware", "gb300").stdout.split())
    assert "assumed the price of a gb300: $2.652 an hour, a placeholder: 1.2 × GB200" in shown
    assert "assumed" not in run("--rate", "20").stdout


def test_a_trace_and_a_split_cluster(tmp_path):
    trace = tmp_path / "trace.csv"
    rows = [f"2023-11-16 18:15:{second:02}.0000000,{100 + second},10" for second in range(20)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    shown = run("--trace", str(trace), "--prefill-engines", "2", "--engines", "1").stdout
    assert "2 prefill engines of 1 × h100 (bf16) + 1 decode engines of 1 × h100" in " ".join(shown.split())
    assert "20 in" in shown


def test_a_file_says_all_and_flags_override_it(tmp_path):
    options = "--workload chat --rate 4 --num-requests 6 --engines 2 --prefill-engines 1 --tier host:200GB:50GB/s:10us"
    saved = ["--outage", "2:1:3", "--slo", "ttft:500", "--save-config", str(tmp_path / "a.toml"), "--json"]
    first = json.loads(run(*options.split(), *saved).stdout)
    again = json.loads(CliRunner().invoke(app, ["simulate", str(tmp_path / "a.toml"), "--json"]).stdout)
    assert again == first
    assert set(again["hit_shares"]) >= {"device"}
    assert again["tasks"] == 6 < again["completed"]
    options = "--workload rag --rate 9 --engines 3 --hardware h200 --num-requests 5 --tier x:1TB:bluefield-4 --json"
    other = CliRunner().invoke(app, ["simulate", str(tmp_path / "a.toml"), *options.split()])
    scenario = json.loads(other.stdout)["scenario"]
    assert scenario["engines"] == [
        {"hardware": "h200", "role": "prefill"}, {"hardware": "h200", "number": 3, "role": "decode"},
    ]  # fmt: skip
    assert scenario["tiers"] == [{"name": "x", "num_bytes": 1e12, "bandwidth": 100e9}]
    assert scenario["workload"] == {"preset": "rag", "rate": 9.0, "output": "20", "requests": 5}
    assert scenario["outages"] == [{"at_s": 2.0, "engine": 1, "seconds": 3.0}]


def test_a_tier_by_its_name_is_what_the_catalogue_has_beside_the_device(tmp_path):
    """So much for each device, with its sources; in a file it is numbers, so that another catalogue changes nothing."""
    options = [
        "--workload",
        "chat",
        "--rate",
        "4",
        "--num-requests",
        "6",
        "--tp",
        "2",
        "--tier",
        "dram",
        "--tier",
        "nvme",
    ]
    data = json.loads(run(*options, "--save-config", str(tmp_path / "a.toml"), "--json").stdout)
    host, drive = data["scenario"]["tiers"]
    assert host == {"name": "dram", "num_bytes": 250e9, "bandwidth": 55.6e9, "latency_s": 6e-6, "per_device": True}
    assert drive["name"] == "nvme"
    assert data["figures"]["dram capacity_bytes"].startswith("2.5e+11 (vendor, MLPerf")
    again = json.loads(CliRunner().invoke(app, ["simulate", str(tmp_path / "a.toml"), "--json"]).stdout)
    assert again == data


def test_flags_about_engines_that_the_file_has_several_of(tmp_path):
    (tmp_path / "a.toml").write_text(
        'model = "llama-3.1-8b"\n[[engines]]\nhardware = "h100"\n[[engines]]\nhardware = "h200"\n'
    )
    for options, message in (
        (["--engines", "3"], "several"),
        (["--trace", str(tmp_path / "a.toml")], "a trace begins"),
    ):
        with pytest.raises(MiniserveError, match=message):
            run(str(tmp_path / "a.toml"), *options)
    shown = CliRunner().invoke(app, ["simulate", str(tmp_path / "a.toml"), "--num-requests", "2"]).stdout
    assert "of 1 × h100 (bf16) + 1 engines of 1 × h200" in " ".join(shown.split())


def test_attention_and_feed_forward_on_devices_of_their_own(tmp_path):
    options = ("--afd", "2x1", "--ffn-hardware", "h200", "--concurrency", "8")
    data = json.loads(run(*options, "--save-config", str(tmp_path / "apart.toml"), "--json").stdout)
    assert data["devices"] == 3
    assert set(data["kernels"]) == {"h100", "h200"}
    assert set(data["utilisation"]) == {"engine 0", "engine 1"}  # ranks of attention, which have requests
    again = CliRunner().invoke(app, ["simulate", str(tmp_path / "apart.toml"), "--json"])
    assert json.loads(again.stdout) == data
    assert "2 ranks of 1 and 1 × h200 beside" in " ".join(run(*options).stdout.split())


def test_chips_of_sram_beside_gpus_and_what_is_assumed_between_them(tmp_path):
    options = ("--weights", "fp8", "--afd", "2x128x2", "--ffn-hardware", "lp30", "--concurrency", "4")
    with pytest.raises(MiniserveError, match=r"must be assumed then.*--afd-link"):
        run(*options)
    options += ("--afd-link", "100GB/s:3us")
    data = json.loads(run(*options, "--save-config", str(tmp_path / "chips.toml"), "--json").stdout)
    assert data["assumed"] == {"between attention and feed-forward": "100 GB/s of each device, 3 us a crossing"}
    assert (data["devices"], data["kernels"]["lp30"]) == (258, "the roofline: a lower bound")
    again = CliRunner().invoke(app, ["simulate", str(tmp_path / "chips.toml"), "--json"])
    assert json.loads(again.stdout) == data
    shown = " ".join(run(*options).stdout.split())
    assert "128x2 × lp30 beside" in shown
    assert "assumed between attention and feed-forward: 100 GB/s of each device, 3 us a crossing" in shown


def test_a_sweep_marks_its_frontier(tmp_path):
    pytest.importorskip("matplotlib")
    result = run("--sweep", "1,4", "--plot", str(tmp_path / "a.svg"), "--json")
    points = json.loads(result.stdout)["points"]
    assert [(point["concurrency"], point["on_frontier"]) for point in points] == [(1, True), (4, True)]
    assert points[0]["speed"] > points[1]["speed"]
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
    assert "●" in run("--sweep", "1,4").stdout


def test_a_plot_needs_something_to_draw_with(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InvalidRequestError, match=r"--plot needs matplotlib: pip install 'miniserve\[notebook\]'"):
        run("--plot", str(tmp_path / "a.png"))
    assert not list(tmp_path.iterdir())


def test_sessions_find_what_they_said_before():
    data = json.loads(run("--workload", "agentic", "--num-requests", "3", "--json").stdout)
    assert data["completed"] > 50  # turns
    assert data["cached_share"] > 0.8


def test_a_device_without_timings_says_so():
    data = json.loads(run("--hardware", "t4", "--tp", "2", "--weights", "fp16", "--concurrency", "2", "--json").stdout)
    assert "lower bound" in data["kernels"]["t4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rate", "1", "--concurrency", "1"], "one of trace, rate and concurrency, not rate and concurrency"),
        (["--workload", "rag", "--concurrency", "1"], "not preset and concurrency"),
        (["--prefill-tp", "2"], "goes with --prefill-engines"),
        (["--tier", "cmx", "--workload", "chat"], "no memory tier 'cmx' beside a NVIDIA H100"),
        (["--tier", "ram", "--workload", "chat"], "tier 'ram' is not in the catalogue; it has dram, nvme, cmx"),
        (["--tier", "host:1TB"], "tier 'host:1TB' is not NAME:SIZE:BANDWIDTH"),
        (["--tier", "host:big:1GB/s"], "'big' is no number of B"),
        (["--tier", "host:1TB:1XB/s"], "'1XB/s' is no number of B/s"),
        (["--tier", "host:1TB:1GB/s:1h"], "'1h' is no number of s"),
        (["--tier", "host:1TB:bluefeld-4"], "bluefeld-4"),
        (["--tier", "host:0:1GB/s", "--workload", "chat"], "'host' has 0.0 bytes"),
        (["--tier", "host:1TB:0", "--workload", "chat"], "a link's bandwidth"),
        (["--tier", "host:1TB:1GB/s", "--rate", "1"], "nobody would read the tiers"),
        (["--outage", "1:0"], "outage '1:0' is not SECONDS:ENGINE:SECONDS"),
        (["--outage", "1:5:1"], "outage of engine 5: there are 1"),
        (["--sweep", "8-1"], "sweep '8-1'"),
        (["--sweep", "1-8", "--rate", "3"], "a sweep is over the number of users"),
        (["--plot", "x.pdf"], "a .svg or a .png file, not 'x.pdf'"),
        (["--workload", "web"], "workload 'web'"),
        (["--router", "best"], "router 'best' is not one of"),
        (["--hardware", "h1000"], "h1000"),
        (["--model", "llama-3.1-405b"], "it does not fit: weights of"),
        (["--tp", "3"], "cannot be split over 3"),
        (["--weights", "fp5"], "fp5"),
        (["--afd", "two"], "'two' is no pair of numbers such as 2x6"),
        (["--afd", "2x0"], "ffn of an engine in two parts is 0"),
        (["--afd", "1x3"], "intermediate .14336. cannot be split over 3"),
        (["--afd", "1x1", "--overlap"], "a step in two halves is not modelled"),
        (["--afd", "1x1", "--ffn-hardware", "h1000"], "h1000"),
        (["--ffn-hardware", "h200"], "ffn_hardware of engines goes with afd"),
        (["--afd-link", "1GB/s"], "afd_link of engines goes with afd"),
        (["--afd-link", "1:2us:3"], "afd-link '1:2us:3' is not BANDWIDTH"),
        (["--afd-link", "x"], "afd-link 'x': 'x' is no number of B/s: it is BANDWIDTH"),
        (["--afd-batches", "2"], "afd_batches of engines goes with afd"),
        (["--link-gbytes-per-s", "0", "--prefill-engines", "1"], "bandwidth"),
        (["--price", "ebay"], "no price 'ebay'"),
    ],
)
def test_nonsense_is_explained(options, message):
    with pytest.raises(InvalidRequestError, match=message):
        run(*options)
