"""Decode steps and prefill of a large model, by batch size and by what launches the kernels."""

from typing import Any

from miniserve.bench.timing import seconds_per_call
from miniserve.core.executor import Scheduled, Step
from miniserve.core.request import Request
from miniserve.core.sampling_params import Limits
from miniserve.kernels import reference
from miniserve.model.decoder import Decoder
from miniserve.runtime.graphs import DecodeGraphs
from miniserve.runtime.kv_cache import KVCache
from miniserve.runtime.model_runner import ModelRunner
from whole_model.setting import BLOCK, Row, Setting, decode_step, random_tokens


def steps(setting: Setting, quantization: str = "none") -> list[Row]:
    """Decode steps of the large model with 1024 tokens of context: eager torch, eager Triton, Triton graphs."""
    context, found = (40 if setting.tiny else 1024), []
    batches = (1, 2) if setting.tiny else (1, 8, 64, 256)
    decoder = setting.decoder(setting.large, quantization)
    with_cache = KVCache(
        setting.large, 2 + max(batches) * (context // BLOCK + 2), BLOCK, dtype=setting.dtype, device=setting.device
    )
    for each in with_cache.keys + with_cache.values:
        each.normal_()
    for batch in batches:
        step = decode_step(batch, context, setting.large.vocab_size)
        kv = batch * context * setting.large.kv_bytes_per_token(setting.dtype.itemsize)
        moved = decoder.weight_bytes + kv
        row: Row = {"batch": batch, "context": context, "weights": quantization, "bytes": moved}
        ways: dict[str, ModelRunner] = {"triton eager": ModelRunner(decoder, with_cache, BLOCK)}
        if not setting.tiny:
            graphs = DecodeGraphs(
                decoder, with_cache, max_batch=batch, max_blocks=context // BLOCK + 2, block_size=BLOCK
            )
            ways["triton graphs"] = ModelRunner(decoder, with_cache, BLOCK, graphs)
            graphs(step)  # so that the graph's inputs are this step's
            captured = graphs._graphs[batch].graph
            row["graph_s"] = seconds_per_call([captured.replay], setting.device, graph=False)
            row["mbu"] = moved / row["graph_s"] / setting.read_bytes_per_s
        for name, runner in ways.items():
            row[f"{name}: step_s"] = setting.wall_seconds(lambda r=runner, s=step: r.launch(s).result())
        if quantization == "none" and batch <= 8:
            decoder_ops = decoder.ops
            set_ops(decoder, reference)
            plain = ModelRunner(decoder, with_cache, BLOCK)
            row["torch eager: step_s"] = setting.wall_seconds(lambda r=plain, s=step: r.launch(s).result(), 3)
            set_ops(decoder, decoder_ops)
        best = min(value for key, value in row.items() if key.endswith("step_s"))
        row |= {"tokens_per_s": batch / best, "mbu_wall": moved / best / setting.read_bytes_per_s}
        found.append(row)
        print(row, flush=True)
    return found


def fp8(setting: Setting) -> list[Row]:
    """`steps` with FP8 weights."""
    return steps(setting, "fp8")


def prefill(setting: Setting) -> list[Row]:
    """One prompt of the large model, in one step: its share of the measured product rate."""
    found = []
    decoder = setting.decoder(setting.large)
    for length in (64,) if setting.tiny else (512, 2048, 8192):
        cache = KVCache(setting.large, length // BLOCK + 2, BLOCK, dtype=setting.dtype, device=setting.device)
        runner = ModelRunner(decoder, cache, BLOCK)
        request = Request("r", random_tokens(length, setting.large.vocab_size), Limits(4))
        request.block_table.extend(range(1, length // BLOCK + 2))
        step = Step([Scheduled(request, 0, length)])
        seconds = setting.wall_seconds(lambda r=runner, s=step: r.launch(s).result(), 7)
        config = setting.large
        layers = config.num_active_parameters() - 2 * config.vocab_size * config.hidden_size
        attention = 2 * config.num_layers * config.num_heads * config.head_dim * length * (length + 1)
        flops = 2 * layers * length + 2 * config.vocab_size * config.hidden_size + attention
        rate = flops / seconds
        found.append({"tokens": length, "step_s": seconds, "flops_per_s": rate, "mfu": rate / setting.flops_per_s})
        print(found[-1], flush=True)
    return found


def set_ops(decoder: Decoder, ops: Any) -> None:
    """Let the decoder's parts compute with other operators."""
    for module in decoder.modules():
        if hasattr(module, "ops"):
            module.ops = ops
