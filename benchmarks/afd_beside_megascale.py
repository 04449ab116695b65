"""Attention and experts apart, and together, in MegaScale-Infer's setting: simulated ratios beside its published ones.

Mixtral 8x22B, DBRX and a mixture of 317 billion parameters in bfloat16 on A100s of 80 GB, decode alone, 650 tokens of
context (the median prompt and half of the median output), 150 ms a token at most (`published/megascale.toml`).

- Together: each layer split over the eight GPUs of a node (TP8), as engines of the comparison are run; where one node
  cannot hold the model, two have half of the layers each, and two groups of requests take turns (TP8 PP2). And the best
  of every split that fits as many GPUs, expert parallelism among them.
- Apart: every number of attention ranks of 1, 2, 4 or 8 GPUs, with experts on as many GPUs as share them out alike, two
  to four batches in turn, 64 GPUs at most; rows cross the network, at its bandwidth.

Each side has as many requests as keep to the limit and fit. Kernels are our curves for the A100, fitted to another
engine's timings and to nothing of this paper; the network is its roofline, and once more with what a crossing of
DeepEP's takes besides its bytes. How busy an engine keeps its GPUs between kernels is not modelled: `reasons`.

    python benchmarks/afd_beside_megascale.py

Writes results/afd_beside_megascale.json.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import track

from miniserve.bench.record import write_record
from miniserve.errors import InvalidRequestError
from miniserve.hardware.afd import Sides, Way
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.devices import Accelerator
from miniserve.hardware.shape import Experts, Parallel, Precision, Shape
from miniserve.simulate.deployment import Deployment, efficiency_for
from miniserve.simulate.models import shape_by_name
from miniserve.tables import read_toml

ROOT = Path(__file__).parent
NODE, TENSOR, TURNS = 8, (1, 2, 4, 8), (2, 3, 4)
LATENCY_S = (
    39e-6  # of DeepEP's exchange on H800s, as fitted (hardware/stated.toml): no figure of this network's is known
)
REASONS = [
    "The published ratios are of whole engines of 2024. What those lost to launches, scheduling and exchanges that "
    "nothing hid, against one whose kernels were fused for this, is in them; in the simulated ones both have the same "
    "kernels and lose nothing between them.",
    "The published ones are the most that a figure shows; how many requests each engine had is not known.",
    "How the compared engines were split over GPUs was not at hand; TP8 in a node and a pipeline of nodes is what both "
    "can do. TensorRT-LLM could share out the experts, too: the best split together is beside it.",
    "Experts are chosen evenly here. In the paper's traces they are not, and it makes copies of the busy ones.",
]


class Found(NamedTuple):
    """A way to serve, and what one GPU does."""

    tokens_per_s: float
    name: str
    requests: int
    devices: float
    token_s: float


def within(where: Deployment, name: str, context: int, limit_s: float, nodes: int = 1) -> Found:
    """With as many requests of a rank as have a token within the limit.

    `nodes`: of as many, each with its share of the layers, `where` is one: there are as many groups of requests, which
    go through all nodes in turn.
    """
    most = where.num_blocks * where.block_size // (context * nodes)
    seconds = where.step_time.decode_seconds
    batch = bisect_right(range(1, most + 1), limit_s / nodes, key=lambda n: seconds(n, n * context, context))
    devices = where.num_devices * nodes
    if not batch:
        return Found(0.0, name, 0, devices, 0.0)
    token_s = nodes * seconds(batch, batch * context, context)
    return Found(nodes * batch / token_s / devices, name, nodes * batch, devices, token_s)


def in_nodes(template: Deployment, nodes: int, context: int, limit_s: float) -> Found:
    """TP8 in each; a pipeline where there are several."""
    share = replace(template.shape, layers=template.shape.layers // nodes)
    where = replace(template, shape=share, parallel=Parallel(NODE))
    return within(where, f"TP{NODE}" + (f" PP{nodes}" if nodes > 1 else ""), context, limit_s, nodes)


def together(template: Deployment, nodes: int) -> Iterator[tuple[str, Deployment]]:
    """Every split over so many nodes, or fewer GPUs."""
    for tensor in TENSOR:
        for ranks in (2**at for at in range(8)):
            if tensor * ranks <= nodes * NODE:
                try:
                    parallel = Parallel(tensor, ranks)
                    yield f"TP{tensor} EP{ranks}", replace(template, parallel=parallel)
                except InvalidRequestError:
                    continue


def apart(template: Deployment, way: Way, turns: tuple[int, ...], most: int) -> Iterator[tuple[str, Deployment]]:
    """Every ratio and size of the two sides."""
    experts = template.shape.experts
    assert experts
    for ffn in (each for each in range(1, experts.count + 1) if experts.count % each == 0):
        for tensor in TENSOR:
            for ranks in range(1, (most - ffn) // tensor + 1):
                for batches in turns:
                    sides = Sides(ranks, ffn, batches)
                    name = f"{ranks} x TP{tensor} + {ffn}, {batches} in turn"
                    yield name, replace(template, parallel=Parallel(tensor), sides=sides, way=way)


def best(candidates: Iterator[tuple[str, Deployment]], context: int, limit_s: float) -> Found:
    """Of those that fit, the one that does most."""
    found = []
    for name, where in candidates:
        try:
            found.append(within(where, name, context, limit_s))
        except InvalidRequestError:
            continue
    return max(found)


def device_of(setting: dict[str, Any]) -> Accelerator:
    """The catalogue's, with the setting's links."""
    device = load_catalog().accelerator(setting["hardware"])
    links = {
        "link_bandwidth_bytes_per_s": setting["link_bytes_per_s"],
        "network_bandwidth_bytes_per_s": setting["network_bytes_per_s"],
    }
    figures = {name: replace(device.figures[name], value=value) for name, value in links.items()}
    return replace(device, figures={**device.figures, **figures})


def shape_of(model: dict[str, Any]) -> Shape:
    """A known one, or as the file says."""
    if "shape" not in model:
        return shape_by_name(model["name"])
    sizes = dict(model["shape"])
    return Shape(**(sizes | {"experts": Experts(**sizes["experts"])}))


def compared(setting: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """A model's rates in every way, and their ratios."""
    context, limit_s = setting["prompt"] + setting["output"] // 2, setting["token_limit_s"]
    device = device_of(setting)
    template = Deployment(
        device, shape_of(model), Precision.of(setting["weights"]), efficiency=efficiency_for(device), block_size=16
    )
    baseline = in_nodes(template, model["nodes"], context, limit_s)
    any_split = max(baseline, best(together(template, model["nodes"]), context, limit_s))
    ways = {"roofline": Way(setting["network_bytes_per_s"]), "latency": Way(setting["network_bytes_per_s"], LATENCY_S)}
    sides = {
        f"{name}, {turns} in turn": best(apart(template, way, (turns,), setting["most_devices"]), context, limit_s)
        for name, way in ways.items()
        for turns in (1, *TURNS)
    }
    of = {name: max(found for key, found in sides.items() if key.startswith(name)) for name in ways}
    return {
        "model": model["name"],
        "parameters": template.shape.parameters,
        "published": {name: model[name] for name in ("over_vllm", "over_tensorrt_llm", "third_batch")},
        "together_as_compared": baseline._asdict(),
        "together_best": any_split._asdict(),
        "apart": {name: found._asdict() for name, found in of.items()},
        "turns": {name: found._asdict() for name, found in sides.items()},
        "over_as_compared": {name: found.tokens_per_s / baseline.tokens_per_s for name, found in of.items()},
        "over_best_together": {name: found.tokens_per_s / any_split.tokens_per_s for name, found in of.items()},
        "third_batch": {
            name: sides[f"{name}, 3 in turn"].tokens_per_s / sides[f"{name}, 2 in turn"].tokens_per_s for name in ways
        },
    }


def main() -> None:
    """Simulate, print, and write the record."""
    setting = read_toml(ROOT / "published" / "megascale.toml")
    models = [compared(setting, model) for model in track(setting.pop("models"), "models")]
    for row in models:
        print(row["model"], row["published"], row["over_as_compared"], row["over_best_together"], row["third_batch"])
        print("  ", row["together_as_compared"], row["together_best"], row["apart"], sep="\n   ")
    data = {**setting, "latency_s": LATENCY_S, "models": models, "reasons": REASONS}
    path = ROOT.parent / "results" / "afd_beside_megascale.json"
    write_record(path, data, "python benchmarks/afd_beside_megascale.py", simulated="NVIDIA A100 of the catalogue")


if __name__ == "__main__":
    main()
