"""The default model, end to end: our greedy text against transformers' own reading of the same file.

transformers opens the GGUF with its own code (dequantisation order, Q/K permutation, tokenizer), so that agreement over
64 greedy tokens says that loader, decoder and tokenizer are all right.
"""

import time

import pytest
import torch

from miniserve.model.generate import generate_cached, generate_naive
from miniserve.model.layers import Linear
from miniserve.model.load import load_model

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n",
    "In 1969, 3 astronauts",
    "Gravity is the reason why",
    "<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n",
]


@pytest.fixture(scope="module")
def ours(smollm2_gguf):
    return load_model(str(smollm2_gguf), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def reference(smollm2_gguf):
    import transformers as hf

    model = hf.AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32
    )
    return model.eval()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_equal_transformers(prompt, ours, reference):
    prompt_ids = ours.tokenizer.encode(prompt)
    with torch.inference_mode():
        out = reference.generate(
            torch.tensor([prompt_ids]),
            max_new_tokens=64,
            do_sample=False,
            eos_token_id=sorted(ours.tokenizer.eos_token_ids),
        )
    expected = out[0, len(prompt_ids) :].tolist()
    got = list(generate_cached(ours.decoder, prompt_ids, 64, stop_ids=ours.tokenizer.eos_token_ids))
    assert got == expected
    assert ours.tokenizer.decode(got).strip()


def test_naive_and_cached_agree(ours):
    prompt_ids = ours.tokenizer.encode(PROMPTS[0])
    stop_ids = ours.tokenizer.eos_token_ids
    naive = list(generate_naive(ours.decoder, prompt_ids, 16, stop_ids=stop_ids))
    assert naive == list(generate_cached(ours.decoder, prompt_ids, 16, stop_ids=stop_ids))


def test_it_knows_the_capital_of_france(ours):
    prompt_ids = ours.tokenizer.encode_chat([{"role": "user", "content": "What is the capital of France?"}])
    tokens = list(generate_cached(ours.decoder, prompt_ids, 32, stop_ids=ours.tokenizer.eos_token_ids))
    assert "Paris" in ours.tokenizer.decode(tokens)
    assert tokens[-1] in ours.tokenizer.eos_token_ids


def test_loads_in_five_seconds(smollm2_gguf):
    """The stated bound, in CPU seconds of all threads: no less than the wall's on an idle machine, and blind to others."""
    seconds = []
    for _ in range(2):
        started = time.process_time()
        load_model(str(smollm2_gguf), dtype="float32", device="cpu")
        seconds.append(time.process_time() - started)
    assert min(seconds) < 5, seconds


def test_config_is_the_published_one(ours):
    config = ours.config
    sizes = (config.num_layers, config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim)
    assert sizes == (30, 576, 9, 3, 64)
    assert (config.intermediate_size, config.vocab_size, config.max_position_embeddings) == (1536, 49152, 8192)
    assert config.rope.theta == 100000.0
    assert config.rms_norm_eps == 1e-5
    assert config.tie_embeddings
    assert config.num_parameters() == 134_515_008
    assert ours.decoder.weight_bytes == 4 * config.num_parameters()


def test_the_files_blocks_are_kept_exactly(compiled, ours, smollm2_gguf):
    """Layers of 4 bits and an embedding of 8: every weight is what the file says."""
    kept = load_model(str(smollm2_gguf), device="cpu", backend="cpu")
    assert kept.choices.quantization == "file"
    pairs = zip(linears(kept.decoder), linears(ours.decoder), strict=True)
    for mine, theirs in pairs:
        assert torch.equal(mine.matrix.dense(), theirs.matrix.dense())
    assert {str(each.matrix.data.dtype) for each in linears(kept.decoder)} == {"torch.uint8", "torch.int8"}
    assert kept.decoder.weight_bytes < 100e6


def linears(decoder):
    return [module for module in decoder.modules() if isinstance(module, Linear)]
