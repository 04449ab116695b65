"""The directory that a frontend reads: the same tokenizer as the engine's, whatever the model's file."""

import json

from miniserve.dynamo.model_directory import model_directory
from miniserve.model.checkpoint_gguf import GGUFCheckpoint
from miniserve.model.tokenizer.tokenizer import Tokenizer


def test_a_gguf_file_gets_one_and_only_one(smollm2_gguf, tmp_path, monkeypatch):
    monkeypatch.setenv("MINISERVE_CACHE", str(tmp_path))
    directory = model_directory(str(smollm2_gguf))
    assert directory == model_directory(str(smollm2_gguf))
    assert sorted(path.name for path in directory.iterdir()) == [
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert json.loads((directory / "config.json").read_text())["max_position_embeddings"] == 8192


def test_a_directory_is_its_own(tiny_directory):
    directory, _ = tiny_directory("llama")
    assert model_directory(str(directory)) == directory


def test_its_tokenizer_is_the_models(smollm2_gguf, tmp_path, monkeypatch):
    monkeypatch.setenv("MINISERVE_CACHE", str(tmp_path))
    ours = GGUFCheckpoint(smollm2_gguf).tokenizer()
    theirs = Tokenizer.from_directory(model_directory(str(smollm2_gguf)))
    text = "  Naïve café, 12345 · 日本語 <|im_start|>\n\n\tx = {'a': 1}"
    assert theirs.encode(text) == ours.encode(text)
    assert theirs.eos_token_ids == ours.eos_token_ids
    chat = [{"role": "user", "content": "Say hello."}]
    assert theirs.encode_chat(chat) == ours.encode_chat(chat)
