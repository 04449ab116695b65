"""Rules and dashboard: what they ask for is there to be asked, and they say what they should.

`promtool` and `prometheus` run where they are installed (Debian: `apt-get install prometheus`); there the rules are run
over made-up series, and over a real server that misses its objective (one process each, some 15 s).
"""

import contextlib
import json
import math
import re
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from miniserve.core.kv_counts import MoveCounts, TierCounts
from miniserve.core.metrics import Metrics
from miniserve.server.backend import EngineReport
from miniserve.server.messages import Report
from miniserve.server.metrics import exposition
from miniserve.server.monitor.ledger import Ledger
from miniserve.server.monitor.meter import Meter
from miniserve.server.monitor.series import served
from miniserve.server.rollout.series import directed
from miniserve.server.rollout.traffic import Traffic
from miniserve.workloads.service import SLO

DEPLOY = Path(__file__).parents[3] / "deploy"
RULES = DEPLOY / "prometheus" / "miniserve.rules.yml"
GROUPS = yaml.safe_load(RULES.read_text())["groups"]
RULE = {rule.get("alert") or rule["record"]: rule for group in GROUPS for rule in group["rules"]}
DASHBOARD = json.loads((DEPLOY / "grafana" / "miniserve.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
NAME = re.compile(r"\b[a-z]\w*:[\w:]+")
BURNS = {"MiniserveBudgetBurnsFast": 0.02, "MiniserveBudgetBurns": 0.05, "MiniserveBudgetBurnsSlowly": 0.10}

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")


@pytest.fixture(scope="module")
def exported():
    """Of everything that a server can export, the labels of each series by its name."""
    metrics = Metrics(tiers={"host": TierCounts()})
    reports = [EngineReport("2 p0", True, 0, 8, Report(metrics, 0, 0, 8, MoveCounts(), [[1, 2]]))]
    ledger = Ledger(SLO(1, 1, 1, 1), 1.0)
    ledger.enter("alice", "2", 200, Meter(), was_taken=True)
    more = [*served(ledger, "m", by_tenant=True), directed(Traffic("1", "2", 0.1, "3"), "m")]
    found = {"up": {"job", "instance"}}
    for family in text_string_to_metric_families(exposition(reports, "m", more)[0].decode()):
        for sample in family.samples:
            found[sample.name] = set(sample.labels) | {"job", "instance"}
    return found


def expressions():
    yield from ((name, rule["expr"]) for name, rule in RULE.items())
    for panel in PANELS:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    yield from (("variables", each["definition"]) for each in DASHBOARD["templating"]["list"] if "definition" in each)


def test_every_series_and_label_that_is_asked_for_is_exported(exported):
    for where, expression in expressions():
        names = NAME.findall(re.sub(r'"[^"]*"', '""', expression))
        assert names or expression.startswith(("up{", "vector("))
        for name in names:
            assert name in exported or "record" in RULE.get(name, {}), f"{where}: nobody exports {name}"
        for name, labels in re.findall(r"([\w:]+){([^}]*)}", expression):
            asked = set(re.findall(r"(\w+)\s*[=!]", labels))
            assert asked <= exported.get(name, asked), f"{where}: {name} has no {asked - exported.get(name, asked)}"


def test_burn_rates_are_what_spends_the_stated_share_of_thirty_days_in_the_long_window():
    hours = {"5m": 1 / 12, "30m": 0.5, "1h": 1.0, "6h": 6.0, "3d": 72.0}
    for name, budget in BURNS.items():
        found = re.findall(r"burn:rate(\w+) > ([\d.]+)", RULE[name]["expr"])
        (long, factor), (short, same) = ((hours[window], float(limit)) for window, limit in found)
        assert factor == same == pytest.approx(budget * 30 * 24 / long)
        assert short == pytest.approx(long / 12)
        (least,) = re.findall(r"increase\(miniserve:slo_requests_total\[(\w+)\]\)\) >= 20", RULE[name]["expr"])
        assert hours[least] == long


def test_every_alert_says_who_is_to_be_told_and_what():
    for name, rule in RULE.items():
        if "alert" in rule:
            assert name.startswith("Miniserve")
            assert rule["labels"] == {"severity": rule["labels"]["severity"]}
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert rule["annotations"]["summary"]


def test_the_dashboard_is_whole_and_belongs_to_no_grafana_in_particular():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    variables = {each["name"] for each in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$\{?(?!__)(\w+)", json.dumps(DASHBOARD))) <= variables
    assert set(re.findall(r'"uid": "([^"]*)"', json.dumps(DASHBOARD["panels"]))) == {"${datasource}"}
    assert DASHBOARD["schemaVersion"] >= 36
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert max(x for x, _ in cells) < 24
    for panel in PANELS:
        letters = [target["refId"] for target in panel["targets"]]
        assert len(letters) == len(set(letters)) > 0


# What the rules say of series that are made up.

MINUTES = 60


def counter(*parts):
    """Promtool's notation: with each step so many more, for so many steps."""
    total, found = 0, ["0"]
    for per_step, minutes in parts:
        found.append(f"{total + per_step}+{per_step}x{minutes - 1}")
        total += per_step * minutes
    return " ".join(found)


def gauge(*parts):
    return " ".join(f"{value}+0x{minutes - 1}" for value, minutes in parts)


def promtool(tmp_path, name, series, asked, step=1):
    """Run one group of tests: of each expression, its only value at some minute; None: there is none.

    `step` is how many minutes there are between two values of a series, and between two looks at the rules.
    """
    tests = [
        {
            "expr": expression,
            "eval_time": f"{minute}m",
            "exp_samples": [] if value is None else [{"labels": "{}", "value": value}],
        }
        for expression, minute, value in asked
    ]
    group = {
        "interval": f"{step}m", "name": name, "promql_expr_test": tests,
        "input_series": [{"series": each, "values": values} for each, values in series.items()],
    }  # fmt: skip
    (tmp_path / "rules.yml").write_text(RULES.read_text())
    written = {"rule_files": ["rules.yml"], "evaluation_interval": f"{step}m", "tests": [group]}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(written))
    done = subprocess.run(
        ["promtool", "test", "rules", "tests.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def firing(alert, minute, number=1):
    """So many of that alert fire then."""
    return f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})', minute, number or None


def silent(alert, minute):
    return firing(alert, minute, 0)


@needs_promtool
def test_promtool_takes_rules_and_configuration(tmp_path):
    for what, path in (("rules", RULES), ("config", DEPLOY / "prometheus" / "prometheus.yml")):
        done = subprocess.run(["promtool", "check", what, str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def burn(bad, minute, window):
    """The burn rate over a window of minutes, by hand; `bad` of 60 requests a minute from minute `START` on.

    Of a window that is longer than there have been requests, what there is counts.
    """
    window = max(min(window, minute), 1)
    return bad / 60 * min(max(minute - START, 0), window) / window / 0.01


START = 120  # minutes


@needs_promtool
@pytest.mark.parametrize("bad", [3, 6, 15, 60])
def test_the_fast_alerts_fire_when_two_windows_say_so(tmp_path, bad):
    series = {
        'miniserve:slo_requests_total{model_name="m"}': counter((60, 10 * MINUTES)),
        'miniserve:slo_good_total{model_name="m"}': counter((60, START), (60 - bad, 8 * MINUTES)),
    }
    asked = []
    for alert, long, short, factor in (
        ("MiniserveBudgetBurnsFast", 60, 5, 14.4),
        ("MiniserveBudgetBurns", 360, 30, 6.0),
    ):
        times = [
            minute for minute in range(600) if burn(bad, minute, long) > factor and burn(bad, minute, short) > factor
        ]
        if times:
            asked += [silent(alert, times[0] - 3), firing(alert, times[0] + 3)]
        else:
            asked += [silent(alert, minute) for minute in range(START, 600, 30)]
    assert any(value for *_, value in asked) == (bad > 3)
    promtool(tmp_path, f"{bad} of 60 are bad", series, asked)


@needs_promtool
def test_an_alert_ends_soon_after_what_it_was_about(tmp_path):
    series = {
        'miniserve:slo_requests_total{model_name="m"}': counter((60, 300)),
        'miniserve:slo_good_total{model_name="m"}': counter((60, 120), (0, 30), (60, 150)),
    }
    alert = "MiniserveBudgetBurnsFast"
    promtool(tmp_path, "half an hour", series, [firing(alert, 140), firing(alert, 149), silent(alert, 156)])


@needs_promtool
def test_the_slow_alert_and_few_requests(tmp_path):
    few = 'model_name="few"'
    series = {
        'miniserve:slo_requests_total{model_name="m"}': counter((1000, 400)),
        'miniserve:slo_good_total{model_name="m"}': counter((980, 400)),  # a burn rate of 2
        f"miniserve:slo_requests_total{{{few}}}": counter((0, 398), (5, 2)),
        f"miniserve:slo_good_total{{{few}}}": counter((0, 400)),
    }
    asked = [
        ('sum(round(model:miniserve_slo_burn:rate3d{model_name="m"}))', 4000, 2), firing("MiniserveBudgetBurnsSlowly", 3990),
        (f"sum(round(model:miniserve_slo_burn:rate3d{{{few}}}))", 4000, 100), firing("MiniserveBudgetBurnsSlowly", 4000),
        silent("MiniserveBudgetBurns", 4000),
    ]  # fmt: skip
    promtool(tmp_path, "slowly", series, asked, step=10)


@needs_promtool
def test_engines_and_capacity(tmp_path):
    of = 'model_name="m", instance="a", job="miniserve"'
    series = {
        f"up{{{of}}}": gauge((1, 30), (0, 10), (1, 160)),
        f'miniserve:engine_up{{{of}, engine="1"}}': gauge((1, 50), (0, 10), (1, 140)),
        f'miniserve:engine_restarts_total{{{of}, engine="1"}}': counter((0, 50), (1, 4), (0, 146)),
        f'miniserve:kv_cache_usage_perc{{{of}, engine="1"}}': gauge((0.99, 100), (0.5, 100)),
        f'miniserve:num_requests_waiting{{{of}, engine="1"}}': gauge((0, 60), (4, 140)),
        f'miniserve:num_preemptions_total{{{of}, engine="1"}}': counter((1, 100), (50, 100)),
        f'miniserve:request_success_total{{{of}, engine="1", finished_reason="stop"}}': counter((20, 200)),
        f'miniserve:request_success_total{{{of}, engine="1", finished_reason="length"}}': counter((20, 200)),
        f'miniserve:kv_tier_corrupt_total{{{of}, tier="disk"}}': counter((0, 40), (1, 1), (0, 159)),
        f'miniserve:kv_tier_errors_total{{{of}, tier="disk"}}': counter((0, 40), (5, 10), (0, 150)),
        f'miniserve:served_requests_total{{{of}, status="2xx"}}': counter((100, 200)),
        f'miniserve:served_requests_total{{{of}, status="429"}}': counter((0, 100), (20, 100)),
        f'miniserve:served_requests_total{{{of}, status="5xx"}}': counter((1, 100), (10, 20), (0, 80)),
    }
    asked = [
        silent("MiniserveServerDown", 29), firing("MiniserveServerDown", 35), silent("MiniserveServerDown", 41),
        silent("MiniserveEngineDown", 51), firing("MiniserveEngineDown", 55), silent("MiniserveEngineDown", 61),
        silent("MiniserveEngineRestarts", 49), firing("MiniserveEngineRestarts", 53), silent("MiniserveEngineRestarts", 120),
        silent("MiniserveEngineRestartsOften", 51), firing("MiniserveEngineRestartsOften", 56),
        silent("MiniserveKVPoolFull", 59), firing("MiniserveKVPoolFull", 75), silent("MiniserveKVPoolFull", 101),
        silent("MiniservePreemptionStorm", 99), firing("MiniservePreemptionStorm", 130),
        silent("MiniserveTierCorrupt", 39), firing("MiniserveTierCorrupt", 43), silent("MiniserveTierCorrupt", 110),
        silent("MiniserveTierErrors", 40), firing("MiniserveTierErrors", 50), silent("MiniserveTierErrors", 80),
        silent("MiniserveRequestsFail", 99), firing("MiniserveRequestsFail", 115), silent("MiniserveRequestsFail", 130),
        silent("MiniserveRequestsRefused", 99), firing("MiniserveRequestsRefused", 140),
    ]  # fmt: skip
    promtool(tmp_path, "engines", series, asked)


@needs_promtool
def test_a_hit_rate_below_half_of_yesterday_s(tmp_path):
    day = 24 * 6  # of ten minutes
    series = {
        'miniserve:prefix_cache_queries_total{model_name="m"}': counter((100, 2 * day)),
        'miniserve:prefix_cache_hits_total{model_name="m"}': counter((60, day + 60), (20, day - 60)),
        'miniserve:prefix_cache_queries_total{model_name="poor"}': counter((100, 2 * day)),
        'miniserve:prefix_cache_hits_total{model_name="poor"}': counter((10, day + 60), (0, day - 60)),
    }
    alert, fell = "MiniserveHitRateDrops", (day + 60) * 10
    promtool(tmp_path, "hits", series, [silent(alert, fell - 10), firing(alert, fell + 120)], step=10)


@needs_promtool
def test_a_canary_is_held_against_the_stable_version(tmp_path):
    def of(name, version, more=""):
        return f'miniserve:{name}{{model_name="m", version="{version}"{more}}}'

    series = {
        of("traffic_share", "1", ', role="stable"'): gauge((0.9, 300)),
        of("traffic_share", "2", ', role="canary"'): gauge((0.1, 300)),
        of("served_requests_total", "1", ', status="2xx"'): counter((90, 300)),
        of("served_requests_total", "1", ', status="5xx"'): counter((1, 300)),
        of("served_requests_total", "2", ', status="2xx"'): counter((10, 100), (8, 100), (10, 100)),
        of("served_requests_total", "2", ', status="5xx"'): counter((0, 100), (2, 100), (0, 100)),
        of("slo_requests_total", "1"): counter((90, 300)),
        of("slo_good_total", "1"): counter((90, 300)),
        of("slo_requests_total", "2"): counter((10, 300)),
        of("slo_good_total", "2"): counter((10, 200), (8, 100)),
        'miniserve:traffic_share{model_name="n", version="9", role="canary"}': gauge((0.1, 300)),
        'miniserve:traffic_share{model_name="n", version="8", role="stable"}': gauge((0.9, 300)),
        'miniserve:served_requests_total{model_name="n", version="9", status="5xx"}': counter((1, 300)),  # 30 in 30 min
        'miniserve:served_requests_total{model_name="n", version="8", status="2xx"}': counter((90, 300)),
    }
    asked = [
        silent("MiniserveCanaryFails", 99), firing("MiniserveCanaryFails", 140), silent("MiniserveCanaryFails", 240),
        silent("MiniserveCanarySlower", 199), firing("MiniserveCanarySlower", 240),
    ]  # fmt: skip
    promtool(tmp_path, "canary", series, asked)


@needs_promtool
def test_costs_of_tenants_are_together_the_price(tmp_path):
    series = {
        f'miniserve:served_engine_seconds_total{{model_name="m", tenant="{tenant}", version="{version}"}}': counter(
            (per, 200)
        )
        for tenant, version, per in (("a", "1", 10), ("a", "2", 5), ("b", "1", 45))
    }
    series |= {f'miniserve:price_per_hour{{model_name="m", instance="{each}"}}': gauge((2, 200)) for each in "xy"}
    cost = "tenant:miniserve_cost:per_hour"
    promtool(
        tmp_path,
        "cost",
        series,
        [(f"round(sum({cost}), 0.001)", 150, 4), (f'round(sum({cost}{{tenant="a"}}), 0.001)', 150, 1)],
    )


# A real Prometheus over a real server.


@needs_prometheus
def test_prometheus_scrapes_a_server_and_the_alert_fires_while_its_objective_is_missed(start, tmp_path):
    with start("--max-model-len", "512", "--slo", "ttft:0.001", "--kv-host-mib", "8") as server:
        config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [server.url.removeprefix("http://")]
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        (tmp_path / RULES.name).write_text(RULES.read_text())
        with prometheus(tmp_path) as http:

            def alerts():
                found = http.get("/api/v1/alerts").json()["data"]["alerts"]
                return {each["labels"]["alertname"]: each for each in found if each["state"] == "firing"}

            def ask():
                asked = {"model": "tiny", "prompt": "a", "max_tokens": 1}
                assert server.http.post("/v1/completions", json=asked).status_code == 200

            ask()  # the series are there from now on
            server.until(lambda: value(http, "miniserve:slo_requests_total") == 1)
            assert not alerts()
            for _ in range(40):
                ask()
            server.until(lambda: "MiniserveBudgetBurnsFast" in alerts())
            assert math.isclose(value(http, "model:miniserve_slo_burn:rate5m"), 100)
            assert alerts().keys() == {"MiniserveBudgetBurnsFast", "MiniserveBudgetBurns", "MiniserveBudgetBurnsSlowly"}
            assert alerts()["MiniserveBudgetBurnsFast"]["labels"]["severity"] == "page"
            assert value(http, "miniserve:kv_tier_corrupt_total") == 0


def value(http, expression):
    found = http.get("/api/v1/query", params={"query": expression}).json()["data"]["result"]
    return float(found[0]["value"][1]) if found else None


@contextlib.contextmanager
def prometheus(directory):
    """One that has read `prometheus.yml` there, on a free port; a client for it."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        "prometheus",
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
                deadline = time.monotonic() + 30
                while True:
                    with contextlib.suppress(httpx.TransportError):
                        if http.get("/-/ready").status_code == 200:
                            break
                    assert process.poll() is None, (directory / "log").read_text()
                    assert time.monotonic() < deadline, (directory / "log").read_text()
                    time.sleep(0.1)
                yield http
        finally:
            process.kill()
            process.wait()
