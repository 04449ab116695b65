"""How even the work of ranks is that hold experts whole, by where a placement puts them.

The experts are those that a model's router chooses in a text. Placements are made by the loads of its first half and
judged on its second, and on a text of another kind: answers of the busiest rank as a multiple of the mean, by the rule
that the engine goes by. Over all of a text, which a placement can do something about; and step by step, which is what
is waited for. `expert_parallel.py` runs it.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from miniserve.kernels import reference
from miniserve.model.cache import NoCache
from miniserve.model.expert_parallel import ExpertExchange
from miniserve.model.expert_plan import ExpertPlan
from miniserve.model.load import LoadedModel
from miniserve.model.mixture import SparseMLP

DEVICES = (2, 4, 8)
STEP_TOKENS = 256  # of a step whose balance is looked at


@torch.inference_mode()
def routing(model: LoadedModel, tokens: list[int]) -> list[Tensor]:
    """The experts chosen for each token in each sparse layer, the text read in windows: [T, K] each."""
    chosen: list[list[Tensor]] = []
    hooks = []
    for layer in model.decoder.layers:
        if isinstance(layer.mlp, SparseMLP):
            chosen.append([])
            hooks.append(layer.mlp.router.register_forward_hook(_keep(chosen[-1], layer.mlp.moe.experts_per_token)))
    for window in windows(tokens, min(512, model.config.max_position_embeddings)):
        ids = torch.tensor(window)
        model.decoder(ids, torch.arange(len(ids)), NoCache(model.config))
    for hook in hooks:
        hook.remove()
    return [torch.cat(each) for each in chosen]


def _keep(into: list[Tensor], choices: int) -> Callable[..., None]:
    def hook(_module: torch.nn.Module, _given: object, scores: Tensor) -> None:
        into.append(reference.route(scores, choices, False)[1])

    return hook


def windows(tokens: list[int], size: int) -> Iterator[list[int]]:
    """Whole windows only."""
    return (tokens[at : at + size] for at in range(0, len(tokens) - size + 1, size))


def answers_by_rank(ids: Tensor, held: Sequence[Sequence[int]], num_experts: int) -> Tensor:
    """Answers that each rank gives in each step of `STEP_TOKENS` tokens: ids [T, K] -> [steps, ranks]."""
    size = len(held)
    ends = [
        ExpertExchange(held, num_experts, SimpleNamespace(rank=rank, size=size), torch.device("cpu"))
        for rank in range(size)
    ]
    found = torch.zeros(len(ids) // STEP_TOKENS, size)
    for step in range(len(found)):
        here = ids[step * STEP_TOKENS : (step + 1) * STEP_TOKENS]
        for end, share in zip(ends, here.chunk(size), strict=True):
            found[step] += torch.bincount(end.ranks_asked(share).flatten(), minlength=size)
    return found


def imbalances(answers: Tensor) -> dict[str, float]:
    """[steps, ranks] -> the busiest as a multiple of the mean: of all steps together, and the steps' mean."""
    busiest = answers.amax(-1) / answers.mean(-1)
    total = answers.sum(0)
    return {"whole": float(total.max() / total.mean()), "steps": float(busiest.mean())}


def balance(model: LoadedModel, tokens: list[int], other: list[int]) -> dict[str, Any]:
    """Placements by the first half's loads, judged on both and on the other text."""
    moe, chosen = model.config.moe, routing(model, tokens)
    assert moe
    half = len(chosen[0]) // 2 // STEP_TOKENS * STEP_TOKENS
    texts = {"seen": [ids[:half] for ids in chosen], "unseen": [ids[half : 2 * half] for ids in chosen]}
    texts["other"] = routing(model, other)
    loads = {
        name: [torch.bincount(ids.flatten(), minlength=moe.num_experts).tolist() for ids in layers]
        for name, layers in texts.items()
    }
    rows = []
    for devices in (each for each in DEVICES if moe.num_experts % each == 0):
        for redundant, known in ((0, None), (0, loads["seen"]), (devices, loads["seen"]), (2 * devices, loads["seen"])):
            if redundant > moe.num_experts * (devices - 1):
                continue
            plan = ExpertPlan.of(model.config, devices, redundant, known)
            row: dict[str, Any] = {"devices": devices, "redundant": redundant, "by": "loads" if known else "turns"}
            for name, ids in texts.items():
                held = [ranks for ranks in plan.layers if ranks]
                pairs = zip(ids, held, strict=True)
                layers = [imbalances(answers_by_rank(each, ranks, moe.num_experts)) for each, ranks in pairs]
                row[name] = {kind: statistics.mean(each[kind] for each in layers) for kind in ("whole", "steps")}
                row[name]["worst_layer"] = max(each["whole"] for each in layers)
            rows.append(row)
    return {
        "tokens": {name: len(layers[0]) for name, layers in texts.items()}, "step_tokens": STEP_TOKENS,
        "experts": moe.num_experts, "experts_per_token": moe.experts_per_token, "loads": loads, "placements": rows,
    }  # fmt: skip
