"""Files garbled at random: each ends in a typed error or loads, within bounded time and memory. Never anything else.

The mutations are drawn from fixed seeds, so a failure repeats. One child process runs them all under a memory limit:
an allocation that a garbled length asked for fails there as MemoryError, and the test with it.
"""

import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import tiny_models

CASES = 120  # of each kind: 360 files
SECONDS_PER_FILE = 5
MEMORY_LIMIT = 3 * 2**30


def mutate(data: bytes, rng: random.Random, header: int) -> bytes:
    """One to four faults, most of them in the first `header` bytes, where the structure is."""
    blob = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(header, len(blob))) if rng.random() < 0.9 else rng.randrange(len(blob))
        kind = rng.randrange(6)
        if kind == 0:
            blob[at] = rng.randrange(256)
        elif kind == 1:
            blob[at : at + 8] = rng.choice([0, 1, 2**31, 2**32 - 1, 2**60, 2**64 - 1]).to_bytes(8, "little")
        elif kind == 2:
            del blob[at : at + rng.randint(1, 64)]
        elif kind == 3:
            blob[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 16)))
        elif kind == 4:
            blob = blob[:at]
        else:
            blob[at] ^= 1 << rng.randrange(8)
        if not blob:
            return b""
    return bytes(blob)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Replace, rename or drop values of a JSON object, so that the result still parses."""
    value = json.loads(data)
    odd = [
        None,
        True,
        0,
        -1,
        1,
        7,
        10**9,
        10**30,
        1.5,
        1e308,
        "",
        "x" * 1000,
        [],
        {},
        [1, 2],
        {"rope_type": "llama3"},
        "NaN",
    ]
    for _ in range(rng.randint(1, 3)):
        key = rng.choice(list(value))
        action = rng.randrange(3)
        if action == 0:
            value[key] = rng.choice(odd)
        elif action == 1:
            value[key + rng.choice("_xyz")] = value.pop(key)
        elif len(value) > 1:
            del value[key]
    return json.dumps(value).encode()


def try_files(root: Path) -> None:
    """Run in the child: load everything, print one line per outcome."""
    import torch

    from miniserve.errors import MiniserveError
    from miniserve.model.load import open_checkpoint
    from miniserve.model.sources.resolve import resolve
    from miniserve.model.weights import load_weights

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT + 2**32, MEMORY_LIMIT + 2**32))
    for case in sorted(root.iterdir()):
        started, outcome = time.perf_counter(), "loaded"
        try:
            checkpoint = open_checkpoint(resolve(str(case), progress=False))
            checkpoint.tokenizer()
            load_weights(checkpoint, dtype=torch.float32, device=torch.device("cpu"))
        except MiniserveError as error:
            outcome = "refused"
            if case.stem not in str(error) and case.name not in str(error):
                outcome = f"refused without naming the file: {error}"
        except BaseException as error:
            outcome = f"escaped: {type(error).__name__}: {error}"
        print(json.dumps([case.name, outcome, time.perf_counter() - started]), flush=True)


def run_child(root: Path) -> list[tuple[str, str, float]]:
    result = subprocess.run(
        [sys.executable, __file__, str(root)],
        capture_output=True, text=True, timeout=240, check=False, env={"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    return [tuple(json.loads(line)) for line in result.stdout.splitlines()]


def check(outcomes, expected_count):
    assert len(outcomes) == expected_count
    wrong = [o for o in outcomes if o[1] not in ("loaded", "refused")]
    assert not wrong, wrong[:5]
    slow = [o for o in outcomes if o[2] > SECONDS_PER_FILE]
    assert not slow, slow
    refused = sum(o[1] == "refused" for o in outcomes)
    assert refused > expected_count / 4, "mutations that are nearly all harmless test nothing"


@pytest.fixture
def seed_directory(tmp_path, tiny_directory):
    return tiny_directory("qwen3_moe")[0]


def copy_with(seed: Path, target: Path, replaced: str, content: bytes) -> None:
    target.mkdir()
    for file in seed.iterdir():
        (target / file.name).write_bytes(content if file.name == replaced else file.read_bytes())


@pytest.mark.parametrize("kind", ["config.json", "model.safetensors"])
def test_garbled_directories(kind, tmp_path, seed_directory):
    root = tmp_path / "cases"
    root.mkdir()
    original = (seed_directory / kind).read_bytes()
    for number in range(CASES):
        rng = random.Random(number)
        if kind == "config.json":
            content = mutate_json(original, rng) if number % 2 else mutate(original, rng, len(original))
        else:
            content = mutate(original, rng, 8 + int.from_bytes(original[:8], "little"))
        copy_with(seed_directory, root / f"case{number:03}", kind, content)
    check(run_child(root), CASES)


def test_garbled_gguf(tmp_path):
    seed = tmp_path / "seed.gguf"
    tiny_models.export_gguf(tiny_models.make("mixtral"), "mixtral", seed)
    original = seed.read_bytes()
    root = tmp_path / "cases"
    root.mkdir()
    for number in range(CASES):
        (root / f"case{number:03}.gguf").write_bytes(mutate(original, random.Random(number), 8000))
    check(run_child(root), CASES)


if __name__ == "__main__":
    try_files(Path(sys.argv[1]))
