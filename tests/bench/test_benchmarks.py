"""The benchmarks run, their figures add up, and the soak notices what it is there to notice."""

import json
import os
import subprocess
import sys

import pytest
import torch

from miniserve import LLM, load_model
from miniserve.bench import tiers
from miniserve.bench.accuracy import bench_accuracy
from miniserve.bench.prefix import bench_prefix
from miniserve.bench.scheduler import Decode
from miniserve.bench.soak import soak
from miniserve.bench.speculation import compare
from miniserve.bench.throughput import bench_throughput
from miniserve.bench.workloads import chats, mixed
from miniserve.core.executor import Computed, StepResult
from miniserve.model.cache import NoCache
from miniserve.notebook import load_results
from miniserve.runtime.model_runner import ModelRunner
from support.yardstick import Yardstick


@pytest.fixture(scope="module")
def model(tiny_directory):
    return load_model(str(tiny_directory("llama")[0]), dtype="float32", device="cpu")


def test_workloads_are_fixed():
    jobs = mixed(64, 49152)
    assert jobs == mixed(64, 49152)
    assert all(64 <= len(job.prompt_token_ids) <= 256 and 64 <= job.max_tokens <= 256 for job in jobs)
    talks = chats(3, 100, turns=4, system=20, user=5, reply=7)
    assert [[len(turn.prompt_token_ids) for turn in talk] for talk in talks] == [[25, 5, 5, 5]] * 3
    assert len({tuple(talk[0].prompt_token_ids[:20]) for talk in talks}) == 1
    assert len({tuple(talk[0].prompt_token_ids) for talk in talks}) == 3


def test_throughput_adds_up(model):
    with LLM(model, kv_cache_memory=2**23, max_num_seqs=4) as llm:
        data = bench_throughput(llm, 3)
    jobs = mixed(3, model.config.vocab_size)
    run = data["batch_3"]
    assert run["output_tokens"] == sum(job.max_tokens for job in jobs)
    assert run["prompt_tokens"] == sum(len(job.prompt_token_ids) for job in jobs)
    assert run["num_steps"] == max(job.max_tokens for job in jobs)
    assert data["batch_1"]["num_steps"] == jobs[0].max_tokens
    assert set(run["step_s"]) == {"schedule", "prepare", "forward", "sample", "other"}
    assert sum(run["step_s"].values()) == pytest.approx(run["wall_s"])
    assert all(seconds > 0 for seconds in run["step_s"].values())
    assert 0 < run["mbu"] < 2
    assert 0 < run["mfu"] < 2


def test_accuracy_is_the_models_own(tiny_directory):
    """The first form against logits computed in one go; a form against itself; fewer bits cost more."""
    directory, text = str(tiny_directory("smollm2")[0]), "the quick brown fox jumps over the lazy dog " * 3
    forms = {"truth": {"backend": "torch"}, "again": {"backend": "torch"}, "int8": {}, "int4": {"quantization": "int4"}}
    forms["int8"] = {"quantization": "int8"}
    data = bench_accuracy(
        lambda **form: load_model(directory, device="cpu", **form), text, num_tokens=60, window=25, forms=forms
    )
    model = load_model(directory, dtype="float32", device="cpu", backend="torch")
    ids = torch.tensor(model.tokenizer.encode(text)[:60])
    logprobs = []
    for piece in ids.split(25):
        with torch.inference_mode():
            hidden = model.decoder(piece, torch.arange(len(piece)), NoCache(model.config))
            rows = model.decoder.logits(hidden[:-1]).double().log_softmax(-1)
        logprobs.append(rows.gather(-1, piece[1:, None]))
    assert data["num_tokens"] == 57
    truth, again, eight, four = data["forms"].values()
    assert truth["perplexity"] == pytest.approx(torch.cat(logprobs).mean().neg().exp().item(), rel=1e-5)
    assert again == truth
    assert (truth["mean_abs_logprob_difference"], truth["top_1_agreement"]) == (0, 1)
    assert 0 < eight["mean_abs_logprob_difference"] < four["mean_abs_logprob_difference"] < 1
    assert four["weight_bytes"] < eight["weight_bytes"] < truth["weight_bytes"] / 3


def test_guesses_change_the_number_of_steps_and_no_token(model):
    prompts = {"quoting": [[5, 6, 7] * 5, [8, 9] * 6], "new": [[1, 2, 3, 4]]}
    data = compare(model, "ngram:3", prompts, batches=(1, 2), max_tokens=20, repeats=1)
    for name in ("quoting_batch_1", "quoting_batch_2", "new_batch_1", "new_batch_2"):
        run = data[name]
        without, guessing = run["without"], run["with"]
        assert run["same_tokens"]
        assert without["output_tokens"] == guessing["output_tokens"]
        assert without["tokens_per_step"] == 1
        assert guessing["tokens_per_step"] >= 1
        assert all(right <= made for right, made in zip(guessing["accepted"], guessing["drafted"], strict=True))
        # A part of a step that samples gives one token, and one more for each right guess that the end does not cut.
        parts = guessing["output_tokens"] / guessing["tokens_per_step"]
        assert parts + sum(guessing["accepted"]) >= guessing["output_tokens"]


def test_the_hit_rate_is_the_exact_one(model):
    data = bench_prefix(model, 3, turns=3, system=100)
    assert data["cached"]["hit_rate"] == pytest.approx(data["exact_hit_rate"], abs=1e-12)
    assert data["exact_hit_rate"] > 0.5
    assert data["uncached"]["hit_rate"] == 0


@pytest.mark.parametrize(
    ("running", "waiting", "limit"), [(1, 0, 9.5), (8, 0, 6.3), (64, 0, 6.3), (256, 0, 6.3), (64, 10_000, 6.3)]
)
def test_scheduler_stays_within_its_budget(running, waiting, limit):
    """In multiples of a loop that does a little with as many objects. The limits are half as much again as it takes."""
    times = max(1, 16 // running)  # enough at a time to be measured
    cost = Yardstick(running).measure(Decode(running, waiting).step, times, pairs=min(60, 390 // times))
    assert cost < limit


def test_soak_passes_on_a_sound_engine(model):
    data = soak(model, 3)
    assert data["counts"]["answered"] > 0
    assert data["counts"]["refused"] > 0


def test_soak_notices_a_changed_answer(model, monkeypatch):
    honest = ModelRunner.launch

    def liar(self, step):
        in_flight = honest(self, step)
        if len(step.scheduled) > 1:  # right alone, wrong in company
            tokens = in_flight.result().tokens
            return Computed(StepResult([[(token + 1) % 128 for token in each] for each in tokens]))
        return in_flight

    monkeypatch.setattr(ModelRunner, "launch", liar)
    with pytest.raises(AssertionError, match="changed its answer"):
        soak(model, 20)


def test_the_command_writes_what_the_book_reads(tmp_path):
    out = tmp_path / "scheduler.json"
    result = subprocess.run(
        [sys.executable, "-m", "miniserve", "bench", "scheduler", "--json", "--out", str(out)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    run = load_results("scheduler", tmp_path)
    assert json.loads(result.stdout) == run.data
    assert run.label == "recorded"
    assert run.command.startswith("miniserve bench scheduler")


def test_the_command_shows_tables(tiny_directory):
    model = str(tiny_directory("llama")[0])
    result = subprocess.run(
        [sys.executable, "-m", "miniserve", "bench", "throughput", "--model", model, "--num-requests", "2"],
        capture_output=True, text=True, timeout=120, check=True, env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip
    assert "llama0 on cpu (" in result.stdout
    assert "MBU" in result.stdout
    assert "forward" in result.stdout


def test_tiers_load_what_the_device_forgot(model, tmp_path, monkeypatch):
    monkeypatch.setattr(tiers, "LIMIT_BYTES", 2**20)
    monkeypatch.setattr(tiers, "SWEEP", (16, 32))
    monkeypatch.setattr(tiers, "REPEATS", 1)
    data = tiers.bench_tiers(model, tmp_path, 2, turns=2)
    assert not list(tmp_path.iterdir()), "nothing stays behind"
    assert all(rate > 0 for rate in data["limits"].values())
    runs = data["turns"]
    assert runs["recompute"]["prompt_tokens"] == [120, 248]
    assert runs["recompute"]["cached_tokens"] == runs["recompute"]["loaded_tokens"] == 0
    for tier in ("host", "disk"):
        run = runs[tier]
        assert run["loaded_tokens"] == 2 * 112, "of each second turn, the first's whole blocks"
        assert run["loaded_bytes"] == run["loaded_tokens"] * model.config.kv_bytes_per_token(4)
        assert run["share_of_limit"] > 0
        assert len(run["recompute_over_load"]) == 2
        assert data["sweep"][tier]["tokens"] == data["sweep"]["recompute"]["tokens"]
    assert data["crossover"]["break_even_bytes_per_s"] > 0
    json.dumps(data)
