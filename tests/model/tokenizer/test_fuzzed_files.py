"""Files of a tokenizer, altered at random: each works, or ends in an error that is expected."""

import contextlib
import copy
import json
import random

import pytest

from miniserve.errors import MiniserveError
from miniserve.model.tokenizer.detokenizer import Detokenizer
from miniserve.model.tokenizer.tokenizer import Tokenizer
from support import tiny_tokenizers


def use(tokenizer: Tokenizer) -> None:
    """Everything a server does with a tokenizer; any failure must be an expected one."""
    ids = tokenizer.encode("The fox <|end|> 12 é🙂")
    tokenizer.decode(ids)
    stream = Detokenizer(tokenizer, prompt_ids=ids[:2])
    assert isinstance("".join([*map(stream.push, ids), stream.finish()]), str)
    if tokenizer.chat_template is not None:
        tokenizer.encode_chat([{"role": "user", "content": "408 🙂"}])


JUNK = [None, True, -1, 0, 2**31, 2**70, 1.5, float("nan"), "", "x", "\ud800", "🙂", [], [1], ["a", "a"], {}, {"a": 1}]


def mutate(value, rng: random.Random):
    """Return a copy of a JSON-like value with one random place changed, removed, repeated or swapped."""
    value = copy.deepcopy(value)
    if not value:
        return value
    parent, at, here = None, None, value
    while isinstance(here, dict | list) and here and (parent is None or rng.random() < 0.7):
        at = rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
        parent, here = here, here[at]
    action = rng.randrange(4)
    if action == 0:
        del parent[at]
    elif action == 1 and isinstance(parent, list):
        parent.insert(at, rng.choice(parent))
    elif action == 2 and isinstance(here, str):
        parent[at] = "".join(rng.sample(here, len(here))) + rng.choice(["", " ", "a", "Ġ"])
    else:
        parent[at] = rng.choice(JUNK)
    return value


@pytest.mark.parametrize("seed", range(100))
def test_fuzzed_metadata_ends_in_an_expected_error_or_works(seed, tmp_path):
    rng = random.Random(seed)
    metadata = tiny_tokenizers.gguf_metadata(rng.choice(["gpt-2", "smollm", "llama-bpe", "qwen2", "default"]))
    for _ in range(rng.randint(1, 3)):
        metadata = mutate(metadata, rng)
    with contextlib.suppress(MiniserveError):
        use(Tokenizer.from_gguf(metadata, tmp_path / "m.gguf"))


@pytest.mark.parametrize("seed", range(100))
def test_fuzzed_files_end_in_an_expected_error_or_work(seed, tmp_path):
    rng = random.Random(seed)
    backend = rng.choice([tiny_tokenizers.byte_level, tiny_tokenizers.sentencepiece_like])()
    files = {
        "tokenizer.json": json.loads(backend.to_str()),
        "tokenizer_config.json": {
            "eos_token": {"content": backend.id_to_token(0)},
            "chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}],
        },
        "generation_config.json": {"eos_token_id": [0, 1]},
        "config.json": {"eos_token_id": 0},
    }
    victim = rng.choice(["tokenizer.json", "tokenizer.json", *files])
    for _ in range(rng.randint(1, 3)):
        files[victim] = mutate(files[victim], rng)
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value), encoding="utf-8", newline="")
    if seed % 5 == 0:  # and, now and then, a file that was cut off or has one flipped byte
        data = bytearray((tmp_path / victim).read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (tmp_path / victim).write_bytes(data[: rng.randrange(len(data))] if seed % 10 else data)
    with contextlib.suppress(MiniserveError):
        use(Tokenizer.from_directory(tmp_path))
