"""The mixture of experts: few tokens against the memory's bandwidth, many against the tensor cores, beside torch."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial

import torch
import torch.nn.functional as F

from kernels.setting import Row, Setting
from miniserve.kernels import reference
from miniserve.kernels.expert_stack import ExpertStack
from miniserve.kernels.formats import E4M3, INT8, Format
from miniserve.kernels.linear_weight import LinearWeight
from miniserve.kernels.scaled_gemm import quantise_rows
from miniserve.kernels.triton.configs import GemmConfig, capability, gemm_config
from miniserve.kernels.triton.moe import moe

EXPERTS, CHOICES, HIDDEN, INNER = 128, 8, 2048, 768  # Qwen3-30B-A3B
TINY = 4, 2, 64, 32
FEW = [
    GemmConfig(*tiles)
    for tiles in [
        (16, 64, 128, 4, 4), (16, 64, 128, 4, 3), (16, 32, 128, 4, 4), (16, 32, 256, 4, 3), (16, 64, 64, 4, 5),
        (16, 128, 64, 4, 4), (16, 128, 128, 8, 3), (32, 64, 128, 4, 3), (32, 128, 64, 4, 4),
    ]
]  # fmt: skip
MANY = [
    GemmConfig(*tiles)
    for tiles in [
        (128, 128, 64, 8, 3), (128, 128, 64, 8, 2), (128, 64, 64, 4, 3), (64, 128, 64, 4, 3), (64, 64, 64, 4, 4),
        (128, 128, 32, 8, 4), (64, 128, 64, 8, 3), (128, 128, 64, 8, 4), (64, 64, 128, 4, 3), (128, 64, 128, 8, 3),
    ]
]  # fmt: skip


def compile_for(config: GemmConfig) -> None:
    """Compile what the section needs, for its search to find it."""
    device = torch.device("cuda")
    x, weights, ids = _tokens(device, 16, (EXPERTS, CHOICES, HIDDEN, INNER))
    moe(x, weights, ids, *_weights(device, (EXPERTS, CHOICES, HIDDEN, INNER)), config=config)


def experts(setting: Setting) -> Iterator[Row]:
    """Microseconds of a whole layer, its bytes and FLOPs a second, ours, with experts of 8 bits too, and torch's."""
    shape = TINY if setting.tiny else (EXPERTS, CHOICES, HIDDEN, INNER)
    gate_up, down = _weights(setting.device, shape)
    rounded = {form.name: [_rounded(each, form) for each in (gate_up, down)] for form in (E4M3, INT8)}
    for tokens in (5,) if setting.tiny else (1, 2, 8, 64, 256, 2048, 8192):
        sets = [_tokens(setting.device, tokens, shape) for _ in range(1 if setting.tiny else max(1, 16 // tokens))]
        num_active = sum(len(ids.unique()) for _, _, ids in sets) / len(sets)
        nbytes = num_active * 3 * shape[2] * shape[3] * 2 + 4 * tokens * shape[2]
        flops = 6.0 * tokens * shape[1] * shape[2] * shape[3]
        table = gemm_config(capability(setting.device), tokens * shape[1], shape[0], 2)
        tried = [] if setting.tiny else FEW if tokens <= 256 else MANY

        def measure(config: GemmConfig | None, sets: list = sets) -> float:
            return setting.time([partial(moe, *each, gate_up, down, config=config) for each in sets])

        seconds, failed = setting.best([None, *tried], measure)  # None: as the engine does it
        best = min(seconds, key=seconds.__getitem__)
        row: Row = {"tokens": tokens, "active_experts": num_active, "bytes": nbytes, "flops": flops}
        for name, config in (("table", None), ("best", best)):
            row[name] = asdict(config or table) | _rates(setting, seconds[config], nbytes, flops)
        row["search"] = [asdict(config or table) | {"us": s * 1e6} for config, s in seconds.items()]
        for form in (E4M3, INT8):
            few_bits = nbytes - num_active * 3 * shape[2] * shape[3]
            stacks = rounded[form.name]
            each_s = setting.time([partial(moe, *each, *stacks) for each in sets])
            row[form.name.lower()] = _rates(setting, each_s, few_bits, flops)
        for name, work, graph in (("grouped_mm", grouped, True), ("loop", reference.moe, False)):
            try:
                each_s = setting.time([partial(work, *each, gate_up, down) for each in sets], graph=graph)
                row[name] = _rates(setting, each_s, nbytes, flops) | {"graph": graph}
            except Exception as error:
                row[name] = {"unsupported": f"{type(error).__name__}: {error}"[:200]}
        yield row | {"failed": failed}


def grouped(
    x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """The same layer with torch's grouped product: sorted tokens and each expert's end."""
    choices, flat = ids.shape[1], ids.flatten()
    order = flat.argsort()
    counts = torch.zeros(len(down), dtype=torch.int32, device=x.device)
    ends = counts.scatter_add_(0, flat, torch.ones_like(flat, dtype=torch.int32)).cumsum(0).int()
    hidden = F.grouped_mm(x[order // choices], gate_up.transpose(1, 2), offs=ends)
    answers = F.grouped_mm(reference.silu_mul(hidden), down.transpose(1, 2), offs=ends)
    answers = answers * weights.flatten()[order, None].to(x.dtype)
    return torch.zeros_like(x).index_add_(0, order // choices, answers)


def _weights(device: torch.device, shape: tuple[int, int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    count, _, hidden, inner = shape
    gate_up, down = (
        torch.randn(count, rows, columns, device=device, dtype=torch.bfloat16) / columns**0.5
        for rows, columns in ((2 * inner, hidden), (hidden, inner))
    )
    return gate_up, down


def _rounded(experts: torch.Tensor, form: Format) -> ExpertStack:
    return ExpertStack(LinearWeight(*quantise_rows(experts.flatten(0, 1), form)), len(experts))


def _tokens(
    device: torch.device, tokens: int, shape: tuple[int, int, int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(tokens, shape[2], device=device, dtype=torch.bfloat16)
    return x, *reference.route(torch.randn(tokens, shape[0], device=device), shape[1], normalize=True)


def _rates(setting: Setting, seconds: float, nbytes: float, flops: float) -> Row:
    rates = {"us": seconds * 1e6, "bytes_per_s": nbytes / seconds, "flops_per_s": flops / seconds}
    return rates | {
        "bytes_share": setting.share("bytes_per_s", nbytes / seconds),
        "flops_share": setting.share("bf16_flops_per_s", flops / seconds),
    }
