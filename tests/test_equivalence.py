"""Guarantee 1: greedy, fp32, on a CPU: the same tokens however a request is computed.

The truth is `generate_cached`, one sequence at a time in contiguous memory, which is itself held against transformers.
Each way below first shows that it took place (chunks, hits, preemptions were counted), then compares token ids.
"""

import pytest
import torch

from miniserve.core.sampling_params import SamplingParams
from miniserve.llm import LLM
from miniserve.model.generate import generate_cached
from miniserve.model.layers import Linear
from miniserve.model.load import load_model

FAMILIES = ["llama", "smollm2", "mistral", "qwen2", "qwen3", "mixtral", "olmoe", "qwen3_moe", "qwen3_moe-mixed"]
SHARED = [7, 3, 99, 4, 18, 5, 90, 33, 21, 8, 64, 64, 64, 12, 77, 50, 41, 6, 29, 101]
PROMPTS = [
    [5],
    SHARED,
    [*SHARED, 11, 12, 13],
    [*SHARED[:16], 9],
    [9, 9, 9, 9],
    list(range(3, 60)),
    SHARED[:16],  # whole blocks, wholly cached
    list(range(40, 120)),
]
NEW = 20
BLOCK = 4


# Every family with the backend that this machine chooses, and one of each kind with plain torch.
@pytest.fixture(
    scope="module",
    params=[*((name, "auto") for name in FAMILIES), ("qwen3", "torch"), ("mixtral", "torch")],
    ids="-".join,
)
def model(request, tiny_directory):
    family, backend = request.param
    return load_model(str(tiny_directory(family)[0]), dtype="float32", device="cpu", backend=backend)


@pytest.fixture(scope="module")
def truth(model):
    return [list(generate_cached(model.decoder, prompt, NEW)) for prompt in PROMPTS]


def engine(model, **options):
    """An engine whose bookkeeping is checked after every step."""
    made = LLM(model, **{"block_size": BLOCK, "max_model_len": 128, "kv_cache_memory": 2**22, **options})
    made.engine.on_step = lambda _: made.engine.scheduler.check()
    return made


def generated(llm, prompts=PROMPTS, **params):
    outputs = llm.generate(prompts, SamplingParams(max_tokens=NEW, ignore_eos=True, **params))
    while llm.has_work:  # a tier may still read blocks
        llm.step()
    pool = llm.engine.scheduler.pool
    assert pool.num_free == pool.num_blocks, "blocks are back"
    return [output.token_ids for output in outputs]


def test_alone(model, truth):
    with engine(model, max_num_seqs=1, enable_prefix_caching=False) as llm:
        assert generated(llm) == truth
        assert llm.engine.metrics.batch_size.sum == llm.engine.metrics.num_steps


def test_batched(model, truth):
    with engine(model, enable_prefix_caching=False) as llm:
        assert generated(llm) == truth
        assert llm.engine.metrics.num_steps == NEW


def test_chunked(model, truth):
    with engine(model, max_num_batched_tokens=7, enable_prefix_caching=False) as llm:
        assert generated(llm) == truth
        assert llm.engine.metrics.num_steps > 2 * NEW


def test_cached(model, truth):
    with engine(model) as llm:
        assert generated(llm) == truth
        assert generated(llm) == truth
        assert llm.engine.metrics.num_cached_tokens > sum(map(len, PROMPTS)) // 2
        assert generated(llm, PROMPTS[::-1]) == truth[::-1]


def test_preempted(model, truth):
    small = 30 * BLOCK * model.config.kv_bytes_per_token(4)
    with engine(model, kv_cache_memory=small, max_model_len=110) as llm:
        assert generated(llm) == truth
        assert llm.engine.metrics.num_preemptions > 0


def test_offloaded_and_reloaded(model, truth, tmp_path):
    """A pool that forgets, host memory that holds part of it, a disk that holds all; then the same after a restart."""
    small = {"kv_cache_memory": 30 * BLOCK * model.config.kv_bytes_per_token(4), "max_model_len": 110}
    for restarted in (False, True):
        with engine(model, kv_load="always", kv_host_mib=1, kv_disk_dir=tmp_path, **small) as llm:
            assert generated(llm) == truth
            if not restarted:
                llm.engine.scheduler.pool.clear_cache()
                assert generated(llm) == truth
            assert llm.engine.metrics.num_loaded_tokens > sum(map(len, PROMPTS)) // 2
            host, disk = (llm.engine.metrics.tiers[name] for name in ("host", "disk"))
            assert (disk if restarted else host).hits > 0
            assert [host.corrupt, host.errors, disk.corrupt, disk.errors] == [0, 0, 0, 0]


def test_all_at_once(model, truth):
    """Tiny pool, tiny budget, prefix cache, arrivals one by one, and aborts beside."""
    small = 30 * BLOCK * model.config.kv_bytes_per_token(4)
    params = SamplingParams(max_tokens=NEW, ignore_eos=True)
    with engine(model, kv_cache_memory=small, max_model_len=110, max_num_batched_tokens=9, max_num_seqs=4) as llm:
        names, done = {}, {}
        for index, prompt in enumerate(PROMPTS):
            names[llm.add_request(prompt, params, priority=index % 2)] = index
            doomed = llm.add_request([*prompt[:3], 2], params)
            for _ in range(3):
                done |= {names[out.request_id]: out for out in llm.step() if out.finished and out.request_id in names}
            llm.abort(doomed)
        while llm.has_work:
            done |= {names[out.request_id]: out for out in llm.step() if out.finished and out.request_id in names}
        assert [done[index].token_ids for index in range(len(PROMPTS))] == truth
        assert llm.engine.scheduler.pool.num_free == llm.engine.scheduler.pool.num_blocks


def test_seeded_sampling_does_not_depend_on_batch_mates(model):
    params = SamplingParams(max_tokens=NEW, ignore_eos=True, temperature=1.0, top_p=0.95, seed=5)
    with engine(model, max_num_seqs=1, enable_prefix_caching=False) as llm:
        alone = [out.token_ids for out in llm.generate(PROMPTS, params)]
    small = 30 * BLOCK * model.config.kv_bytes_per_token(4)
    with engine(model, kv_cache_memory=small, max_model_len=110, max_num_batched_tokens=16) as llm:
        assert [out.token_ids for out in llm.generate(PROMPTS, params)] == alone
        assert llm.engine.metrics.num_preemptions > 0


def test_bfloat16_logits_stay_close(tiny_directory):
    """No promise about text where activations are bf16: log-probabilities of a fixed text within 0.05 of those alone."""
    model = load_model(str(tiny_directory("llama")[0]), dtype="bfloat16", device="cpu", backend="torch")
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)

    def logprobs(**options):
        with engine(model, enable_prefix_caching=False, **options) as llm:
            outputs = llm.generate(PROMPTS, params)
        return torch.tensor([entry.logprob for out in outputs for entry in out.prompt_logprobs[1:]])

    torch.testing.assert_close(logprobs(), logprobs(max_num_seqs=1, max_num_batched_tokens=7), atol=0.05, rtol=0)


@pytest.mark.parametrize("kv_cache_dtype", ["fp8", "int8"])
def test_eight_bit_kv_stays_close_however_computed(tiny_directory, kv_cache_dtype):
    """A sum in another order may round a key to the next code: log-probabilities within 0.02 of those alone."""
    model = load_model(str(tiny_directory("qwen3")[0]), dtype="float32", device="cpu", backend="torch")
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    how = {"kv_cache_dtype": kv_cache_dtype, "enable_prefix_caching": False}

    def logprobs(**options):
        with engine(model, **how, **options) as llm:
            outputs = llm.generate(PROMPTS, params)
        return torch.tensor([entry.logprob for out in outputs for entry in out.prompt_logprobs[1:]])

    alone = logprobs(max_num_seqs=1)
    for options in ({}, {"max_num_batched_tokens": 7}, {"max_num_batched_tokens": 9, "max_num_seqs": 3}):
        torch.testing.assert_close(logprobs(**options), alone, atol=0.02, rtol=0)


# How far log-probabilities may be, at most, from those of the float32 weights; and from a reference with the same weights
# and the same KV, which differs in arithmetic alone. Random weights are harsher than a trained model's.
TOLERANCES = {
    "float32": ({"dtype": "float32"}, 1e-4, 1e-4),
    "bfloat16": ({"dtype": "bfloat16"}, 0.05, 0.02),
    "int8": ({"dtype": "float32", "quantization": "int8"}, 0.05, 1e-3),
    "int4": ({"dtype": "float32", "quantization": "int4"}, 1.0, 0.05),  # activations are rounded too
}


@pytest.mark.parametrize("form", TOLERANCES)
@pytest.mark.parametrize("family", ["llama", "smollm2", "qwen2", "qwen3"])
def test_fewer_bits_stay_within_their_tolerance(compiled, tiny_directory, family, form):
    directory, (how, to_float32, to_reference) = str(tiny_directory(family)[0]), TOLERANCES[form]
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)

    def logprobs(model):
        with engine(model) as llm:
            outputs = llm.generate(PROMPTS, params)
        return torch.tensor([entry.logprob for out in outputs for entry in out.prompt_logprobs[1:]])

    model = load_model(directory, device="cpu", backend="cpu", **how)
    reference = load_model(directory, dtype="float32", device="cpu", backend="torch")
    got = logprobs(model)
    assert (got - logprobs(reference)).abs().max() < to_float32
    for theirs, ours in zip(linears(reference), linears(model), strict=True):
        theirs.weight.copy_(ours.matrix.dense())
    assert (got - logprobs(reference)).abs().max() < to_reference


@pytest.mark.parametrize("family", FAMILIES)
def test_what_auto_chooses_stays_near_float32(tiny_directory, family):
    """Every family as a user gets it. Of nine tokens in ten: rounding may send a token to another expert."""
    directory, params = str(tiny_directory(family)[0]), SamplingParams(max_tokens=1, prompt_logprobs=0)
    found = []
    for how in ({}, {"dtype": "float32", "backend": "torch"}):
        with engine(load_model(directory, device="cpu", **how)) as llm:
            outputs = llm.generate(PROMPTS, params)
        found.append(torch.tensor([entry.logprob for out in outputs for entry in out.prompt_logprobs[1:]]))
    assert (found[0] - found[1]).abs().quantile(0.9) < 0.03


def linears(model):
    return [module for module in model.decoder.modules() if isinstance(module, Linear)]


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_few_bits_give_the_same_tokens_however_computed(compiled, tiny_directory, quantization):
    """The C++ products do not depend on the batch, so what holds for float32 holds for all forms."""
    model = load_model(str(tiny_directory("qwen3")[0]), device="cpu", backend="cpu", quantization=quantization)
    with engine(model, max_num_seqs=1, enable_prefix_caching=False) as llm:
        alone = generated(llm)
    for options in ({}, {"max_num_batched_tokens": 7}):
        with engine(model, **options) as llm:
            assert generated(llm) == alone
            assert generated(llm) == alone


def test_smollm2(smollm2_gguf):
    """The real model: four ways, one text each, against one sequence at a time."""
    model = load_model("smollm2", dtype="float32", device="cpu")
    texts = ["The capital of France is", "def fibonacci(n):\n", "Once upon a time, in a small village,"]
    prompts = [model.tokenizer.encode(text) for text in texts]
    expected = [list(generate_cached(model.decoder, prompt, 24)) for prompt in prompts]
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    for options in ({}, {"max_num_batched_tokens": 3}, {"kv_cache_memory": 9 * 4 * 46080, "max_model_len": 36}):
        with engine(model, **{"max_model_len": 64, "kv_cache_memory": 2**26, **options}) as llm:
            for _ in range(2):  # the second time from the cache
                assert [out.token_ids for out in llm.generate(prompts, params)] == expected
