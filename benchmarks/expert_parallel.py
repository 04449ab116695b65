"""Experts whole on several ranks: what travels, what share of a step that takes, and how even the ranks' work is.

Bytes: what rank 0 sends for its own tokens and gets back for them, a token and sparse layer, beside what the shape says
of experts chosen evenly and independently (`expected_bytes`).

Time: engines of 1, 2 and 4 ranks on this CPU in turn, one thread each, with prompts and with decode steps; of 2 and 4
also with a slice of every expert on each rank. The share is rank 0's in exchanges, waits for slower ranks included.

Balance: of placements, on texts (`expert_balance.py`).

    python benchmarks/train/plays.py artifacts/plays
    python benchmarks/expert_parallel.py [--model tiny-moe] [--text FILE] [--other FILE] [--out FILE]

writes results/expert_parallel.json. Some minutes on two cores. The text is a play that tiny-moe was not trained on.
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from expert_balance import balance
from rich.console import Console
from torch import Tensor

from miniserve.bench.record import write_record
from miniserve.core.sampling_params import SamplingParams
from miniserve.llm import LLM
from miniserve.model.communicator import Communicator
from miniserve.model.config import ModelConfig
from miniserve.model.decoder import Decoder
from miniserve.model.expert_parallel import ID_BYTES
from miniserve.model.load import load_model

TEXT, OTHER = Path("artifacts/plays/winters_tale.txt"), Path("README.md")
RANKS = (1, 2, 4)
PROMPTS, PROMPT_TOKENS = 2, 128  # one step of prompts
STREAMS, NEW_TOKENS = 16, 24  # decode steps
ROUNDS = 5


class Meter:
    """A communicator that counts seconds, and bytes on behalf of this rank's tokens; to itself it sends for nothing."""

    def __init__(self, inner: Communicator) -> None:
        self.inner, self.rank, self.size = inner, inner.rank, inner.size
        self.reset()

    def reset(self) -> None:
        """Count from nothing."""
        self.seconds = {"exchange": 0.0, "all_reduce": 0.0}
        self.bytes = dict.fromkeys(("counts", "dispatch", "combine", "gather"), 0)
        self.tokens = 0

    def all_reduce(self, x: Tensor) -> Tensor:
        """Timed."""
        return self._timed("all_reduce", lambda: self.inner.all_reduce(x))

    def all_to_all(self, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Counts and rows of this rank's tokens leave it; answers for them come."""
        row_bytes = x.shape[1] * x.element_size()
        kind = {torch.int64: "counts", torch.uint8: "dispatch"}.get(x.dtype, "combine")
        rows = received if kind == "combine" else sent
        self.bytes[kind] += row_bytes * (sum(rows) - rows[self.rank])
        return self._timed("exchange", lambda: self.inner.all_to_all(x, sent, received))

    def all_gather(self, x: Tensor) -> Tensor:
        """Every row to every other rank."""
        self.tokens += len(x)
        self.bytes["gather"] += x.nbytes * (self.size - 1)
        return self._timed("exchange", lambda: self.inner.all_gather(x))

    def _timed(self, kind: str, call: Callable[[], Tensor]) -> Tensor:
        began = time.perf_counter()
        result = call()
        self.seconds[kind] += time.perf_counter() - began
        return result


def meter(decoder: Decoder) -> Meter:
    """Put one in the place of a decoder's communicator."""
    metered = Meter(decoder.communicator)
    for module in decoder.modules():
        for owner in (module, getattr(module, "exchange", None)):
            if owner is not decoder and getattr(owner, "communicator", None) is decoder.communicator:
                owner.communicator = metered
    return metered


def expected_bytes(config: ModelConfig, ranks: int, element_bytes: int) -> dict[str, float]:
    """Bytes a token and layer, if each token chose its K of E experts evenly and independently, E/N to a rank.

    A row goes to each other rank on which at least one of its experts is; an answer comes for each expert elsewhere.
    """
    assert config.moe
    experts, choices, row = config.moe.num_experts, config.moe.experts_per_token, config.hidden_size * element_bytes
    none_there = math.comb(experts - experts // ranks, choices) / math.comb(experts, choices)
    return {
        "dispatch": (ranks - 1) * (1 - none_there) * (row + ID_BYTES * choices),
        "combine": choices * (ranks - 1) / ranks * row,
        "gather": (ranks - 1) * row,
    }


def exchanges(model: str, tokens: list[int], console: Console) -> dict[str, Any]:
    """Steps on 1, 2 and 4 ranks in turn."""
    ways = [(ranks, whole) for ranks in RANKS for whole in ((False, True) if ranks > 1 else (False,))]
    decode = [tokens[8 * each : 8 * each + 8] for each in range(STREAMS)]
    prompts = [tokens[PROMPT_TOKENS * each :][:PROMPT_TOKENS] for each in range(PROMPTS)]
    work = {"prompts": (prompts, 1), "decode": (decode, NEW_TOKENS)}
    found: dict[tuple[int, bool], dict[str, list[dict[str, float]]]] = {
        way: {kind: [] for kind in work} for way in ways
    }
    meters, answers = {}, set()
    with ExitStack() as stack:
        engines = {}
        for ranks, whole in ways:
            console.print(f"{ranks} ranks, experts {'whole' if whole else 'in slices'}")
            llm = LLM(
                model, dtype="float32", device="cpu", tensor_parallel_size=ranks, expert_parallel=whole,
                kv_cache_memory=2**26, enable_prefix_caching=False, max_model_len=256,
            )  # fmt: skip
            engines[ranks, whole] = stack.enter_context(llm)
            meters[ranks, whole] = meter(llm.model.decoder)
        for turn in range(ROUNDS + 1):
            for way, llm in engines.items():
                for kind, (texts, new) in work.items():
                    meters[way].reset()
                    began = time.perf_counter()
                    outputs = llm.generate(texts, SamplingParams(max_tokens=new, ignore_eos=True))
                    measured = {"seconds": time.perf_counter() - began} | meters[way].seconds
                    answers.add((kind, tuple(tuple(out.token_ids) for out in outputs)))
                    if turn:  # the first warms up
                        found[way][kind].append(measured)
        assert len(answers) == len(work), "all ways give the same tokens"
        decoder = engines[RANKS[-1], True].model.decoder
        rows = [_row(way, found[way], meters[way], decoder) for way in ways]
    return {"threads_per_rank": 1, "rounds": ROUNDS, "same_tokens": True, "ways": rows}


def _row(
    way: tuple[int, bool], found: dict[str, list[dict[str, float]]], metered: Meter, decoder: Decoder
) -> dict[str, Any]:
    ranks, whole = way
    row: dict[str, Any] = {"ranks": ranks, "experts": "whole" if whole else "sliced" if ranks > 1 else "alone"}
    for kind, rounds in found.items():
        row[kind] = {
            "seconds": statistics.median(each["seconds"] for each in rounds),
            "exchange_share": statistics.median(each["exchange"] / each["seconds"] for each in rounds),
            "all_reduce_share": statistics.median(each["all_reduce"] / each["seconds"] for each in rounds),
        }
    if whole:
        measured = {kind: each / metered.tokens for kind, each in metered.bytes.items()}
        expected = expected_bytes(decoder.config, ranks, decoder.compute_dtype.itemsize)
        row["bytes_per_token_and_layer"] = {"of": "decode", "measured": measured, "expected": expected}
    return row


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-moe")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--other", type=Path, default=OTHER)
    parser.add_argument("--out", type=Path, default=Path("results/expert_parallel.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(stderr=True)
    model = load_model(args.model, dtype="float32", device="cpu")
    tokens, other = (model.tokenizer.encode(each.read_text(encoding="utf-8")) for each in (args.text, args.other))
    config = model.config
    shape = {
        "hidden": config.hidden_size, "layers": config.num_layers, "kv_heads": config.num_kv_heads,
        "sparse_layers": sum(map(config.is_sparse, range(config.num_layers))),
    }  # fmt: skip
    data = {"model": model.files.name, "shape": shape, "text": args.text.name, "other": args.other.name}
    data["balance"] = balance(model, tokens, other)
    data["exchange"] = exchanges(args.model, tokens, console) | {"load_average_after": os.getloadavg()[0]}
    Console().print_json(data=data)
    write_record(args.out, data, f"python benchmarks/expert_parallel.py --model {args.model}", "cpu")


if __name__ == "__main__":
    main()
