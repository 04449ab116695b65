"""`bench tiers`: the time to a first token when the device has forgotten a conversation: computed again, loaded from
host memory, loaded from disk.

Several conversations take turns, and whatever the device remembers is forgotten before each, as it would be if others
had needed the room. Files are pushed out of the system's page cache before each turn: what is read from disk is read
from disk. All is loaded that is found. Limits are measured in the same run: a copy in memory, and reading a file of the
same directory.
"""

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from miniserve.bench.timing import seconds_per_call
from miniserve.bench.workloads import chats
from miniserve.core.loading import Recompute
from miniserve.core.sampling_params import SamplingParams
from miniserve.llm import LLM
from miniserve.model.load import LoadedModel

LIMIT_BYTES = 2**26
SWEEP = (16, 128)
REPEATS = 3
ROOM_MIB = 1024


def bench_tiers(model: LoadedModel, folder: Path | None, num_chats: int = 2, *, turns: int = 4) -> dict[str, Any]:
    """The same conversations three times, and prompts of growing length.

    Args:
        model: loaded.
        folder: on the disk that is to be measured; None: where temporary files go.
        num_chats, turns: how many conversations, of how many turns.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        tiers: dict[str, dict[str, Any]] = {
            "recompute": {},
            "host": {"kv_host_mib": ROOM_MIB},
            "disk": {"kv_disk_dir": place / "kv", "kv_disk_mib": ROOM_MIB},
        }
        found: dict[str, Any] = {"limits": measured_limits(place)}
        found["turns"] = {tier: _conversations(model, how, num_chats, turns) for tier, how in tiers.items()}
        found["sweep"] = {tier: _sweep(model, how) for tier, how in tiers.items()}
    for tier, limit in (("host", "copy_bytes_per_s"), ("disk", "disk_read_bytes_per_s")):
        run = found["turns"][tier]
        run["share_of_limit"] = run["load_bytes_per_s"] / found["limits"][limit]
        computed = found["turns"]["recompute"]["ttft_s"]
        run["recompute_over_load"] = [slow / fast for slow, fast in zip(computed, run["ttft_s"], strict=True)]
    return found | {"crossover": _crossover(model, found)}


def measured_limits(place: Path) -> dict[str, float]:
    """Bytes a second of a copy in memory (counted once), and of reading a file in `place` that is on disk alone."""
    source, target = (torch.ones(LIMIT_BYTES, dtype=torch.uint8) for _ in range(2))
    copy_s = seconds_per_call([lambda: target.copy_(source)], torch.device("cpu"), repeats=10)
    file, buffer = place / "limit", bytearray(LIMIT_BYTES)
    file.write_bytes(bytes(buffer))
    times = []
    for _ in range(REPEATS):
        forget_pages(place)
        began_s = time.perf_counter()
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(memoryview(buffer)[: 2**20]):
                pass
        times.append(time.perf_counter() - began_s)
    file.unlink()
    read_s = statistics.median(times)
    return {"copy_bytes_per_s": LIMIT_BYTES / copy_s, "disk_read_bytes_per_s": LIMIT_BYTES / read_s}


def forget_pages(folder: Path) -> None:
    """Have the system write a folder's files to disk and drop them from memory."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def first_token(llm: LLM, prompt: list[int], settle: Callable[[], object]) -> tuple[float, list[int]]:
    """A prompt's time to first token, and the tokens; `settle` is called when nothing is under way any more."""
    (output,) = llm.generate([prompt], SamplingParams(max_tokens=8, ignore_eos=True))
    while llm.has_work:  # blocks that are being saved
        llm.step()
    settle()
    assert output.timings.ttft_s is not None, "it has tokens"
    return output.timings.ttft_s, output.token_ids


def _opened(model: LoadedModel, num_tokens: int, how: dict[str, Any]) -> tuple[LLM, Callable[[], object]]:
    """An engine whose device holds one request of so many tokens; and what ends a request's aftermath."""
    block = 16
    memory = (-(-num_tokens // block) + 1) * block * model.config.kv_bytes_per_token(model.decoder.dtype.itemsize)
    options: dict[str, Any] = {"kv_load": "always"} if how else {}
    llm = LLM(
        model, max_num_seqs=1, max_model_len=num_tokens, block_size=block, kv_cache_memory=memory, **how, **options
    )

    def settle() -> None:
        if llm.tiers:
            llm.tiers.flush()
        if "kv_disk_dir" in how:
            forget_pages(how["kv_disk_dir"])

    return llm, settle


def _conversations(model: LoadedModel, how: dict[str, Any], num_chats: int, turns: int) -> dict[str, Any]:
    said = chats(num_chats, model.config.vocab_size, turns=turns, system=0, user=120)
    longest = turns * (120 + 8)
    llm, settle = _opened(model, longest, how)
    with llm:
        history: list[list[int]] = [[] for _ in said]
        times: list[list[float]] = [[] for _ in range(turns)]
        for turn in range(turns):
            for chat, talk in enumerate(said):
                history[chat] += talk[turn].prompt_token_ids
                llm.engine.scheduler.pool.clear_cache()
                seconds, reply = first_token(llm, history[chat], settle)
                times[turn].append(seconds)
                history[chat] += reply
        metrics = llm.engine.metrics
        counts = next(iter(metrics.tiers.values()), None)
        found: dict[str, Any] = {
            "prompt_tokens": [120 + turn * 128 for turn in range(turns)],
            "ttft_s": [statistics.median(each) for each in times],
            "cached_tokens": metrics.num_cached_tokens,
            "loaded_tokens": metrics.num_loaded_tokens,
        }
        if counts:
            found["load_bytes_per_s"] = counts.loaded_bytes / counts.load_s
            found["loaded_bytes"] = counts.loaded_bytes
    return found


def _sweep(model: LoadedModel, how: dict[str, Any]) -> dict[str, list[Any]]:
    """Medians for prompts whose first so many tokens a tier has, and of which one token is computed in any case."""
    rng = random.Random(1)
    llm, settle = _opened(model, SWEEP[-1] + 16, how)
    found: dict[str, list[Any]] = {"tokens": list(SWEEP), "ttft_s": []}
    with llm:
        for length in SWEEP:
            times = []
            for _ in range(REPEATS):
                prompt = [rng.randrange(model.config.vocab_size) for _ in range(length + 1)]
                for _ in range(2 if how else 1):  # the second time it has been seen
                    llm.engine.scheduler.pool.clear_cache()
                    seconds, _ = first_token(llm, prompt, settle)
                times.append(seconds)
            found["ttft_s"].append(statistics.median(times))
    return found


def _crossover(model: LoadedModel, found: dict[str, Any]) -> dict[str, Any]:
    """From which bandwidth, and from which length on, loading is faster: predicted from rates, and seen in the sweep.

    Predicted: a token's KV over the tier's measured rate against its share of the time of the sweep's longest prompt.
    """
    sweep, config = found["sweep"], model.config
    computed = dict(zip(sweep["recompute"]["tokens"], sweep["recompute"]["ttft_s"], strict=True))
    per_token = config.kv_bytes_per_token(model.decoder.dtype.itemsize)
    recompute = Recompute.measured(
        2.0 * config.num_active_parameters(), 4.0 * config.num_layers * config.num_heads * config.head_dim,
        SWEEP[-1], computed[SWEEP[-1]],
    )  # fmt: skip
    seen = {tier: next(_faster(computed, sweep[tier]), None) for tier in ("host", "disk")}
    predicted = {}
    for tier in ("host", "disk"):
        rate = found["turns"][tier]["load_bytes_per_s"]
        predicted[tier] = next((n for n in SWEEP if n * per_token / rate < recompute(0, n)), None)
    return {
        "bytes_per_token": per_token,
        "break_even_bytes_per_s": SWEEP[-1] * per_token / computed[SWEEP[-1]],
        "predicted_tokens": predicted,
        "measured_tokens": seen,
    }


def _faster(computed: dict[int, float], loaded: dict[str, list[Any]]) -> Iterator[int]:
    """The lengths of the sweep that were faster to load."""
    for length, seconds in zip(loaded["tokens"], loaded["ttft_s"], strict=True):
        if seconds < computed[length]:
            yield length
