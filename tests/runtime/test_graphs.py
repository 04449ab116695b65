"""CUDA graphs against eager steps: the same tokens, whatever the batch; nothing left behind. Needs a GPU."""

import pytest
import torch

from miniserve.core.sampling_params import SamplingParams
from miniserve.llm import LLM
from miniserve.model.generate import generate_cached
from miniserve.model.load import load_model

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="needs a GPU with Triton"
)
PROMPTS = [[(7 * i + 3 * at) % 120 + 3 for at in range(length)] for i, length in enumerate([1, 5, 16, 17, 31, 64, 70])]


def run(model, prompts=PROMPTS, **options):
    params = [SamplingParams(max_tokens=5 + 3 * index, ignore_eos=True) for index in range(len(prompts))]
    with LLM(model, kv_cache_memory=2**24, block_size=16, **options) as llm:
        outputs = llm.generate(prompts, params, progress=False)
        assert all(not view.holders for view in llm.blocks())
        return [output.token_ids for output in outputs], llm.settings


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe"])
def test_graphs_give_the_eager_tokens(tiny_directory, family):
    """In float32. In bfloat16 a padded batch may be cut into other slices, and near ties may fall otherwise."""
    model = load_model(str(tiny_directory(family)[0]), device="cuda", dtype="float32")
    graphed, settings = run(model, max_num_seqs=7)
    eager, other = run(model, max_num_seqs=7, cuda_graphs=False)
    assert (settings.cuda_graphs, other.cuda_graphs) == (True, False)
    assert graphed == eager


def test_a_batch_smaller_than_its_graph_and_one_that_grows(tiny_directory):
    """Padding of 1 to 7 rows as requests come and go."""
    model = load_model(str(tiny_directory("llama")[0]), device="cuda", dtype="float32")
    assert run(model, max_num_seqs=64)[0] == run(model, max_num_seqs=64, cuda_graphs=False)[0]
    assert run(model, max_num_seqs=3)[0] == run(model, max_num_seqs=3, cuda_graphs=False)[0]


def test_tokens_equal_the_cpus_in_float32(tiny_directory):
    directory = str(tiny_directory("llama")[0])
    on_gpu, _ = run(load_model(directory, device="cuda", dtype="float32"))
    on_cpu, _ = run(load_model(directory, device="cpu", dtype="float32", backend="torch"))
    assert on_gpu == on_cpu


def test_sampled_requests_share_a_graph_with_greedy_ones(tiny_directory):
    model = load_model(str(tiny_directory("llama")[0]), device="cuda", dtype="float32")
    params = [SamplingParams(max_tokens=12, ignore_eos=True, temperature=1.0 * (i % 2), seed=i) for i in range(7)]
    found = []
    for graphs in (True, False):
        with LLM(model, kv_cache_memory=2**24, cuda_graphs=graphs) as llm:
            found.append([output.token_ids for output in llm.generate(PROMPTS, params, progress=False)])
    assert found[0] == found[1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_steps_launched_ahead_give_the_tokens_of_steps_waited_for(tiny_directory, temperature):
    model = load_model(str(tiny_directory("llama")[0]), device="cuda", dtype="float32")
    params = [SamplingParams(max_tokens=5 + 3 * i, temperature=temperature * (i % 2), seed=i) for i in range(7)]
    found = []
    for overlap in (True, False):
        with LLM(model, kv_cache_memory=2**24, max_num_seqs=5, overlap=overlap) as llm:
            found.append([output.token_ids for output in llm.generate(PROMPTS, params)])
            assert not llm.has_work
    assert found[0] == found[1]


def test_memory_is_given_back(tiny_directory):
    directory = str(tiny_directory("llama")[0])
    with LLM(directory, device="cuda", kv_cache_memory=2**24) as llm:
        llm.generate([PROMPTS[0]], SamplingParams(max_tokens=2), progress=False)
    del llm
    torch.cuda.empty_cache()
    before, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    with LLM(directory, device="cuda", kv_cache_memory=2**26) as llm:
        llm.generate([PROMPTS[0]], SamplingParams(max_tokens=2), progress=False)
        assert llm.settings.kv_cache_bytes > 2**23
        assert torch.cuda.memory_allocated() >= before + llm.settings.kv_cache_bytes
    assert torch.cuda.memory_allocated() <= before + 2**20
    assert torch.cuda.memory_reserved() <= reserved + 2**21  # the system has it back, not only PyTorch


@pytest.mark.parametrize("quantization", ["none", "fp8"])
def test_fp8_weights_stay_near(tiny_directory, quantization):
    """Logits of a long prompt and of a short one (many rows, few rows) with E4M3 weights, against float32's."""
    if quantization == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs compute capability 8.9")
    directory = str(tiny_directory("llama")[0])
    params = SamplingParams(max_tokens=1, prompt_logprobs=1)
    prompts = [PROMPTS[6], PROMPTS[1]]
    found = []
    for options in ({"device": "cpu", "dtype": "float32"}, {"device": "cuda", "quantization": quantization}):
        with LLM(directory, kv_cache_memory=2**24, **options) as llm:
            outputs = llm.generate(prompts, params, progress=False)
        found.append([p.logprob for output in outputs for p in output.prompt_logprobs if p is not None])
    error = (torch.tensor(found[0]) - torch.tensor(found[1])).abs()
    assert error.mean() < (0.05 if quantization == "fp8" else 0.02)


WAYS = {
    "one by one": {"max_num_seqs": 1},
    "chunked": {"max_num_batched_tokens": 24},
    "preempted": {"kv_cache_memory": None, "blocks": 10},
    "from the prefix cache": {"twice": True},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_the_same_tokens_whatever_the_way(tiny_directory, family, way):
    """Against the CPU's, computed one sequence at a time in contiguous memory."""
    directory, options = str(tiny_directory(family)[0]), dict(WAYS[way])
    on_cpu = load_model(directory, device="cpu", dtype="float32", backend="torch")
    truth = [list(generate_cached(on_cpu.decoder, prompt, 16)) for prompt in PROMPTS]
    model = load_model(directory, device="cuda", dtype="float32")
    blocks, twice = options.pop("blocks", 64), options.pop("twice", False)
    options["kv_cache_memory"] = blocks * 16 * model.config.kv_bytes_per_token(4)
    params = SamplingParams(max_tokens=16, ignore_eos=True)
    with LLM(model, block_size=16, max_model_len=128, **options) as llm:
        llm.engine.on_step = lambda _: llm.engine.scheduler.check()
        for _ in range(2 if twice else 1):
            outputs = llm.generate(PROMPTS, params, progress=False)
            assert [output.token_ids for output in outputs] == truth
        metrics = llm.engine.metrics
        assert metrics.num_preemptions > 0 or way != "preempted"
        assert (metrics.num_cached_tokens > 0) == twice
