"""The same code on a GPU: skipped where there is none, run wherever there is one."""

import pytest
import torch

from miniserve.model.choices import best_dtype
from miniserve.model.generate import generate_cached, generate_naive
from miniserve.model.load import load_model
from support import tiny_models

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
PROMPT = [5, 9, 30, 7, 64, 12]


@pytest.mark.parametrize("family", tiny_models.CONFIGS)
def test_float32_tokens_equal_the_cpu(family, tiny_directory):
    directory = str(tiny_directory(family)[0])
    tokens = [
        list(generate_cached(load_model(directory, dtype="float32", device=device).decoder, PROMPT, 24))
        for device in ("cpu", "cuda")
    ]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe"])
def test_auto_dtype_generates_both_ways(family, tiny_directory):
    model = load_model(str(tiny_directory(family)[0]), device="cuda")
    assert model.decoder.dtype is best_dtype(torch.device("cuda"), "torch")
    for generate in (generate_naive, generate_cached):
        tokens = list(generate(model.decoder, PROMPT, 8))
        assert len(tokens) == 8
        assert all(0 <= token < model.config.vocab_size for token in tokens)


def test_default_model_on_the_gpu(smollm2_gguf):
    model = load_model(str(smollm2_gguf), device="cuda")
    prompt_ids = model.tokenizer.encode_chat([{"role": "user", "content": "What is the capital of France?"}])
    tokens = list(generate_cached(model.decoder, prompt_ids, 32, stop_ids=model.tokenizer.eos_token_ids))
    assert "Paris" in model.tokenizer.decode(tokens)
