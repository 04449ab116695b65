"""The comparison with other engines: ours runs, a peer that fails is reported with its reason, nobody stays behind.

Peers here are ours with a tiny model and scripts written for the occasion: no network, no other engine.
"""

import importlib
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from miniserve.model.cache import NoCache
from miniserve.model.checkpoint_gguf import GGUFCheckpoint
from miniserve.model.weights import load_weights
from miniserve.notebook import load_results
from support import tiny_models

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "cpu_peers.py"
HONEST = """
    import os, time
    from protocol import Outputs, Peer, serve

    class Fake(Peer):
        packages = ("numpy",)

        def __init__(self, options):
            super().__init__()
            self.choose(options, {"pace": ["slow", "fast"], "luck": ["good", "bad"]})

        def run(self, jobs):
            if self.settings["luck"] == "bad":
                os.abort()
            time.sleep(0.2 if self.settings["pace"] == "slow" else 0.0)
            return Outputs([[7] * job.max_tokens for job in jobs], 0.01)
"""


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    """The benchmark's modules can be imported, by us and by the scripts of the tests."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "peers"))
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS / "peers"))


@pytest.fixture
def script(tmp_path):
    """`script(name, text)` -> path of a peer's script."""

    def write(name, text, ending="serve(Fake)"):
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(text) + f"\n{ending}\n")
        return str(path)

    return write


def command(folder, peers, *more):
    quick = ["--quick", "--threads", "1", "--venvs", str(folder / "peers")]
    return [sys.executable, str(SCRIPT), "--peers", ",".join(peers), *quick, *more]


def test_ours_runs_and_peers_that_fail_are_reported(tmp_path, tiny_directory, script):
    old = script("old", "import sys\nsys.stdin.readline()", 'sys.exit("Error: /opt/engine/lib.so needs AVX-512")')
    rude = script("rude", HONEST.replace('"good", "bad"', '"bad", "good"'))
    lazy = script("lazy", HONEST.replace("[7] * job.max_tokens", "[7]"))
    angry = script(
        "angry", HONEST.replace("os.abort()", "pass").replace("time.sleep(", "raise ValueError('no\\nmore') or (")
    )
    out = tmp_path / "peers.json"
    more = ["--model", str(tiny_directory("llama")[0]), "--repeats", "2", "--workloads", "batch_1,batch_8"]
    more += ["--ours", "dtype=float32"]
    run = subprocess.run(
        command(tmp_path, ["ours", old, rude, lazy, angry], *more, "--out", str(out)),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    measurement = load_results("peers", root=tmp_path)
    assert measurement.label == "recorded"
    assert "numpy" in measurement.versions
    data = measurement.data
    assert data["threads"] == 1
    assert data["workloads"]["batch_8"]["requests"] == 8
    ours = data["peers"]["ours dtype=float32"]
    assert "error" not in ours
    assert ours["settings"]["dtype"] == "float32"
    for name, workload in data["workloads"].items():
        entry = ours["workloads"][name]
        assert len(entry["seconds"]) == 2
        speed = entry["tokens_per_s"]
        assert speed["min"] <= speed["median"] <= speed["max"]
        assert speed["max"] == pytest.approx(workload["output_tokens"] / min(entry["seconds"]))
        assert (entry["ratio_to_ours"], entry["agreement_first_32"]) == (1.0, 1.0)
    failed = {name: data["peers"][name]["error"] for name in ("old", "rude", "lazy", "angry")}
    assert failed["old"] == "exit status 1: Error: …/lib.so needs AVX-512"
    assert failed["rude"].startswith("warm-up: killed by SIGABRT")
    assert failed["lazy"].startswith("warm-up: gave 2 tokens where ")
    assert failed["angry"] == "warm-up: ValueError: no"
    assert all(reason in run.stdout.replace("\n", " ") for reason in ("AVX-512", "SIGABRT", "ValueError: no"))


def test_nothing_runs_is_a_failure_and_nothing_is_written_by_quick(tmp_path, tiny_directory, script):
    old = script("old", "import sys", 'sys.exit("too old")')
    more = ["--model", str(tiny_directory("llama")[0]), "--workloads", "batch_1"]
    run = subprocess.run(command(tmp_path, [old], *more), capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 1
    assert "too old" in run.stdout
    assert "written" not in run.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_ends_every_process(tmp_path, tiny_directory, script, sent):
    hangs = script("hangs", "import subprocess, time", 'subprocess.Popen(["sleep", "60"])\ntime.sleep(60)')
    more = ["--model", str(tiny_directory("llama")[0])]
    with subprocess.Popen(command(tmp_path, [hangs], *more), stdout=subprocess.DEVNULL) as process:
        ours = psutil.Process(process.pid)
        deadline = time.monotonic() + 60
        while len(started := ours.children(recursive=True)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(sent)
        assert process.wait(timeout=30) != 0
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive


def test_tuning_keeps_what_is_faster_and_survives_what_crashes(tmp_path, script):
    from peers.catalogue import Spec
    from peers.contestant import Contestant, Surroundings
    from peers.models import Models

    (tmp_path / "model").mkdir()
    around = Surroundings(tmp_path, Models("model", tmp_path / "model", tmp_path), 1, 30.0)
    contestant = Contestant("fake", Spec(Path(script("fake", HONEST))), {})
    said = []
    try:
        contestant.start(around)
        assert contestant.error is None
        contestant.tune([([1, 2], 3)], said.append)
        assert contestant.error is None
        assert contestant.about["settings"] == {"pace": "fast", "luck": "good", "threads": 1}
        assert contestant.run("work", [([1], 5)])["seconds"] < 0.2
        assert contestant.process.cpu_seconds() > 0
    finally:
        contestant.end()
    assert [trial.get("error", "")[:17] for trial in contestant.tuning] == ["", "", "killed by SIGABRT"]
    assert len(said) == 3


def test_a_peer_that_does_not_answer_is_ended(tmp_path, script):
    from peers.process import PeerError, PeerProcess

    path = script("hangs", "import time", "time.sleep(60)")
    peer = PeerProcess([sys.executable, path], {}, tmp_path / "log", 0.5)
    with pytest.raises(PeerError, match=r"no answer within 0\.5 s"):
        peer.start({})
    assert not peer.alive


class Arithmetic:
    """A model for the loop: the next token depends on all the tokens before, and each position may come only once."""

    num_slots, num_batch = 3, 7

    def clear(self):
        self.seen: dict[int, list[int]] = {}

    def remove(self, slot):
        del self.seen[slot]

    def decode(self, tokens, positions, slots, wanted):
        assert len(tokens) <= self.num_batch
        self.next = {}
        for row, (token, position, slot) in enumerate(
            zip(tokens.tolist(), positions.tolist(), slots.tolist(), strict=True)
        ):
            history = self.seen.setdefault(slot, [])
            assert position == len(history)
            history.append(token)
            if wanted[row]:
                self.next[row] = follows(history)
        assert len(self.seen) <= self.num_slots

    def logits(self, row):
        return np.eye(50, dtype=np.float32)[self.next[row]]


def follows(history):
    return (sum(history) + 3 * len(history)) % 50


def test_the_loop_for_llama_cpp_gives_every_sequence_its_own_tokens():
    batching = importlib.import_module("batching")
    protocol = importlib.import_module("protocol")
    jobs = [protocol.Job(list(range(1, 2 + 3 * i)), 1 + (5 * i) % 7) for i in range(8)]
    outputs = batching.run_jobs(Arithmetic(), jobs)
    for job, got in zip(jobs, outputs.token_ids, strict=True):
        history = list(job.prompt_token_ids)
        for token in got:
            assert token == follows(history)
            history.append(token)
        assert len(got) == job.max_tokens
    assert outputs.ttft_s > 0


@pytest.mark.parametrize(("kind", "near"), [("F16", 1e-2), ("Q8_0", 0.2)])
def test_exported_files_hold_the_same_model(tmp_path, kind, near):
    export = importlib.import_module("export")
    model = tiny_models.make("llama")
    tiny_models.export_gguf(model, "llama", tmp_path / "a.gguf")
    export.export_gguf(tmp_path / "a.gguf", kind, tmp_path / "b.gguf")
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        expected = model(ids).logits[0]
        decoder = load_weights(GGUFCheckpoint(tmp_path / "b.gguf"), dtype=torch.float32, device=torch.device("cpu"))
        got = decoder.logits(decoder(ids[0], torch.arange(3), NoCache(decoder.config)))
    assert torch.allclose(got, expected, atol=near)


def test_options_and_agreement():
    cpu_peers = importlib.import_module("cpu_peers")
    from peers.contestant import agreement
    from peers.environments import without_paths

    assert cpu_peers.parse_options("dtype=float32,max_num_seqs=8,eager=true,x=None") == {
        "dtype": "float32", "max_num_seqs": 8, "eager": True, "x": None,
    }  # fmt: skip
    chosen = cpu_peers.choose("ours,vllm", ["dtype=float32", "dtype=bfloat16"], ["vllm:compile=false"])
    assert [each.label for each in chosen] == ["ours dtype=float32", "ours dtype=bfloat16", "vllm compile=False"]
    for wrong in (["nobody"], ["ours", "vllm:x=1"]):
        with pytest.raises(Exception, match=r"no peer|does not name"):
            cpu_peers.choose(wrong[0], [], wrong[1:])
    assert agreement([[1, 2, 3, 4], [5, 6]], [[1, 2, 9, 4], [5, 6]]) == 0.75
    assert without_paths("cannot load '/usr/lib/x/y.so': a/b and/or 1/2") == "cannot load '…/y.so': a/b and/or 1/2"


def test_quick_workloads_are_smaller_and_counted_right():
    cpu_peers = importlib.import_module("cpu_peers")
    full, quick = (cpu_peers.make_workloads(49152, quick) for quick in (False, True))
    assert list(full) == ["batch_1", "batch_64", "prefill_2000"]
    assert [len(jobs) for jobs in full.values()] == [1, 64, 1]
    (job,) = full["batch_1"]
    assert (len(job.prompt_token_ids), job.max_tokens) == (128, 128)
    assert cpu_peers.counted_tokens("prefill_2000", full["prefill_2000"]) == 2000
    assert cpu_peers.counted_tokens("batch_1", full["batch_1"]) == 128
    assert list(quick) == ["batch_1", "batch_8", "prefill_200"]
