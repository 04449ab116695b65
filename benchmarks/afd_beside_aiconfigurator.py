"""Attention and feed-forward parts on devices apart: our cost model beside aiconfigurator's, case by case.

Qwen3-235B-A22B in FP8 on H200s, decode alone, three batches in turn. `aiconfigurator cli estimate --estimate-mode afd`
says, from its own kernel timings, how long a batch takes in a layer on attention's devices, on those of the experts,
and on its way there and back, and what comes of that for a token. The same cases by `simulate.afd`, from the timings of
another of its data sets that this project's curves were fitted to. Nothing is fitted to the cases.

The two draw a line at different places. There, a row crosses once and is passed on among the experts' devices, which
compute nothing meanwhile; here it crosses once for each of its experts, while they compute for another batch. So
compare the sum of both, and expect a token to take less here.

    python benchmarks/afd_beside_aiconfigurator.py --aiconfigurator /path/to/aiconfigurator

Writes results/afd_beside_aiconfigurator.json. aiconfigurator 0.12 installs from the Python package index.
"""

import argparse
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import track

from miniserve.bench.record import write_record
from miniserve.hardware.afd import Sides
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.cost import Part
from miniserve.hardware.shape import Precision
from miniserve.simulate.afd import PingPong
from miniserve.simulate.deployment import Deployment, efficiency_for
from miniserve.simulate.models import shape_by_name

MODEL, SHAPE, HARDWARE, NODE = "Qwen/Qwen3-235B-A22B-FP8", "qwen3-235b-a22b", "h200", 8
OUTPUT, BATCHES = 1000, 3
PRECISION = Precision.of("fp8_block", "fp8")  # aiconfigurator's choice for that checkpoint, too: by the memory it says
SAID = {
    "attention_s": r"T_a_layer:\s+([\d.]+) ms",
    "experts_s": r"T_f_layer:\s+([\d.]+) ms",
    "crossing_s": r"T_c_layer:\s+([\d.]+) ms",
    "token_s": r"TPOT:\s+([\d.]+) ms",
}


class Case(NamedTuple):
    """Nodes of eight devices on either side, requests of each attention device, prompt tokens of each."""

    attention: int
    experts: int
    requests: int
    prompt: int


CASES = [
    Case(1, 1, 32, 4000), Case(1, 1, 64, 4000), Case(1, 1, 128, 4000), Case(1, 1, 64, 1000), Case(1, 1, 64, 8000),
    Case(2, 1, 64, 4000), Case(1, 2, 64, 4000), Case(2, 1, 128, 4000), Case(3, 1, 128, 4000),
]  # fmt: skip


def theirs(command: str, case: Case) -> dict[str, float]:
    """As aiconfigurator says; of a layer but the token's."""
    said = subprocess.run(
        [
            *(command, "cli", "estimate", "--estimate-mode", "afd", "--model-path", MODEL, "--system", "h200_sxm"),
            *("--n-a-nodes", str(case.attention), "--n-f-nodes", str(case.experts)),
            *("--a-batch-size", str(case.requests), "--isl", str(case.prompt), "--osl", str(OUTPUT)),
            *("--f-moe-ep-size", str(case.experts * NODE), "--num-microbatches", str(BATCHES)),
            "--no-afd-combined-with-pd",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = {}
    for name, pattern in SAID.items():
        match = re.search(pattern, said)
        if not match:
            raise SystemExit(f"aiconfigurator does not say {name}:\n{said}")
        found[name] = float(match[1]) / 1e3
    return found


def ours(case: Case) -> dict[str, float]:
    """As simulated here."""
    device, shape = load_catalog().accelerator(HARDWARE), shape_by_name(SHAPE)
    sides = Sides(case.attention * NODE, case.experts * NODE, BATCHES)
    where = Deployment(device, shape, PRECISION, efficiency=efficiency_for(device), sides=sides)
    context = case.prompt + OUTPUT // 2
    parts = [Part(context, 1)] * case.requests
    step_time = where.step_time
    assert isinstance(step_time, PingPong)
    turns, layers = step_time.turns(parts), shape.layers
    longest = max(turns, key=lambda turn: turn.around_s)
    return {
        "attention_s": longest.here_s / layers,
        "experts_s": longest.there_s / layers,
        "crossing_s": longest.away_s / layers,
        "token_s": step_time.seconds(parts),
    }


def main() -> None:
    """Ask both, and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--aiconfigurator", default="aiconfigurator")
    command = parser.parse_args().aiconfigurator
    version = subprocess.run([command, "version"], capture_output=True, text=True, check=True).stdout
    points: list[dict[str, Any]] = []
    for case in track(CASES, "cases"):
        both = {"ours": ours(case), "theirs": theirs(command, case)}
        for side in both.values():
            side["experts_and_crossing_s"] = side["experts_s"] + side["crossing_s"]
        ratio = {name: value / both["theirs"][name] for name, value in both["ours"].items()}
        points.append(case._asdict() | both | {"ratio": ratio})
        print(case, {name: f"{value:.2f}" for name, value in ratio.items()})
    data = {
        "model": MODEL, "hardware": HARDWARE, "node": NODE, "batches": BATCHES, "output": OUTPUT,
        "aiconfigurator": version.split()[-1], "points": points,
    }  # fmt: skip
    path = Path(__file__).parents[1] / "results" / "afd_beside_aiconfigurator.json"
    write_record(path, data, "python benchmarks/afd_beside_aiconfigurator.py", simulated="NVIDIA H200, by two models")


if __name__ == "__main__":
    main()
