"""Decode steps and prefill of a large model, by batch size and by what launches the kernels."""

from collections.abc import Callable
from typing import Any

import torch

from miniserve.bench.timing import seconds_per_call
from miniserve.core.executor import Scheduled, Step
from miniserve.core.request import Request
from miniserve.core.sampling_params import Limits
from miniserve.kernels import reference
from miniserve.kernels.formats import E4M3, INT8, Format
from miniserve.model.config import ModelConfig
from miniserve.model.decoder import Decoder
from miniserve.model.mixture import SparseMLP
from miniserve.runtime.graphs import DecodeGraphs
from miniserve.runtime.kv_cache import KVCache
from miniserve.runtime.model_runner import ModelRunner
from whole_model.setting import BLOCK, Row, Setting, decode_step, free, random_tokens


def steps(setting: Setting) -> list[Row]:
    """Decode steps of the large model with 1024 tokens of context: eager torch, eager Triton, Triton graphs."""
    return _steps(setting, setting.large, None, (1, 8, 64, 256))


def fp8(setting: Setting) -> list[Row]:
    """`steps` with weights in E4M3, a scale a row."""
    return _steps(setting, setting.large, E4M3, (1, 8, 64, 256))


def int8(setting: Setting) -> list[Row]:
    """`steps` with weights in INT8, a scale a row."""
    return _steps(setting, setting.large, INT8, (1, 8, 64, 256))


def mixture(setting: Setting) -> list[Row]:
    """`steps` of a mixture of experts, which reads the experts that its tokens chose: in bf16, and in E4M3."""
    return [row for form in (None, E4M3) for row in _steps(setting, setting.mixture, form, (1, 8, 64))]


def _steps(setting: Setting, config: ModelConfig, form: Format | None, batches: tuple[int, ...]) -> list[Row]:
    free()  # the decoder before this one
    context, batches = (40, (1, 2)) if setting.tiny else (1024, batches)
    found, decoder = [], setting.decoder(config, form)
    cache = KVCache(
        config, 2 + max(batches) * (context // BLOCK + 2), BLOCK, dtype=setting.dtype, device=setting.device
    )
    for each in cache.keys + cache.values:
        each.normal_()
    for batch in batches:
        step = decode_step(batch, context, config.vocab_size)
        kv = batch * context * config.kv_bytes_per_token(setting.dtype.itemsize)
        ways: dict[str, ModelRunner] = {"triton eager": ModelRunner(decoder, cache, BLOCK)}
        moved = weight_bytes_of(decoder, lambda r=ways["triton eager"], s=step: r.launch(s).result()) + kv
        row: Row = {"batch": batch, "context": context, "weights": form.name if form else "none", "bytes": moved}
        if not setting.tiny:
            graphs = DecodeGraphs(decoder, cache, max_batch=batch, max_blocks=context // BLOCK + 2, block_size=BLOCK)
            ways["triton graphs"] = ModelRunner(decoder, cache, BLOCK, graphs)
            graphs(step)  # so that the graph's inputs are this step's
            captured = graphs._graphs[batch].graph
            row["graph_s"] = seconds_per_call([captured.replay], setting.device, graph=False)
            row["mbu"] = moved / row["graph_s"] / setting.read_bytes_per_s
        for name, runner in ways.items():
            row[f"{name}: step_s"] = setting.wall_seconds(lambda r=runner, s=step: r.launch(s).result())
        if form is None and batch <= 8:
            decoder_ops = decoder.ops
            set_ops(decoder, reference)
            plain = ModelRunner(decoder, cache, BLOCK)
            row["torch eager: step_s"] = setting.wall_seconds(lambda r=plain, s=step: r.launch(s).result(), 3)
            set_ops(decoder, decoder_ops)
        best = min(value for key, value in row.items() if key.endswith("step_s"))
        row |= {"tokens_per_s": batch / best, "mbu_wall": moved / best / setting.read_bytes_per_s}
        found.append(row)
        print(row, flush=True)
    return found


def weight_bytes_of(decoder: Decoder, step: Callable[[], object]) -> int:
    """Weights that `step` has to read: all but those of the experts that none of its tokens chose."""
    mixtures = [module for module in decoder.modules() if isinstance(module, SparseMLP)]
    for module in mixtures:
        module.counts = torch.zeros(module.moe.num_experts + 1, dtype=torch.int64, device=decoder.device)
    step()
    nbytes = decoder.weight_bytes
    for module in mixtures:
        assert module.counts is not None
        idle = int((module.counts[1:] == 0).sum())
        nbytes -= idle * sum(stack.nbytes for stack in module.stacks) // module.moe.num_experts
        module.counts = None
    return nbytes


def prefill(setting: Setting) -> list[Row]:
    """One prompt of the large model, in one step: its share of the measured product rate. And of a mixture."""
    lengths = (64,) if setting.tiny else (512, 2048, 8192)
    return [row for config in (setting.large, setting.mixture) for row in _prefill(setting, config, lengths)]


def _prefill(setting: Setting, config: ModelConfig, lengths: tuple[int, ...]) -> list[Row]:
    free()
    found, decoder = [], setting.decoder(config)
    for length in lengths:
        cache = KVCache(config, length // BLOCK + 2, BLOCK, dtype=setting.dtype, device=setting.device)
        runner = ModelRunner(decoder, cache, BLOCK)
        request = Request("r", random_tokens(length, config.vocab_size), Limits(4))
        request.block_table.extend(range(1, length // BLOCK + 2))
        step = Step([Scheduled(request, 0, length)])
        seconds = setting.wall_seconds(lambda r=runner, s=step: r.launch(s).result(), 7)
        layers = config.num_active_parameters() - 2 * config.vocab_size * config.hidden_size
        attention = 2 * config.num_layers * config.num_heads * config.head_dim * length * (length + 1)
        flops = 2 * layers * length + 2 * config.vocab_size * config.hidden_size + attention
        rate = flops / seconds
        row: Row = {"model": config.architecture, "tokens": length, "step_s": seconds}
        found.append(row | {"flops_per_s": rate, "mfu": rate / setting.flops_per_s})
        print(found[-1], flush=True)
    return found


def set_ops(decoder: Decoder, ops: Any) -> None:
    """Let the decoder's parts compute with other operators."""
    for module in decoder.modules():
        if hasattr(module, "ops"):
            module.ops = ops
