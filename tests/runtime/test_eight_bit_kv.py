"""Keys and values in 8 bits: what is stored, what fits, that scales go where blocks go, and what is refused."""

from dataclasses import replace

import pytest
import torch

from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import InvalidRequestError
from miniserve.kernels import reference
from miniserve.llm import LLM
from miniserve.model.choices import Choices
from miniserve.model.load import load_model
from miniserve.runtime.kv_cache import KV_DTYPES, KVCache, block_bytes, choose_kv_dtype
from support.paged import in_eight_bits, paged_batch, relative_error

PREFIX = list(range(5, 69))
PROMPT = [*PREFIX, 9, 12, 77]
STEP = {"fp8": 2**-4, "int8": 0.5 / 127}  # half a step: of E4M3 relative to the number, of INT8 to the largest


@pytest.fixture(scope="module")
def model(tiny_directory):
    return load_model(str(tiny_directory("llama")[0]), dtype="float32", device="cpu", backend="torch")


@pytest.mark.parametrize("name", KV_DTYPES)
def test_round_trip(name):
    """Within half a step; heads of very different size do not share a scale, nor do tokens; zeros stay zeros."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([[1e-3, 1.0], [300.0, 1e4], [1.0, 0.0]])
    k, v = (torch.randn(3, 2, 64, generator=generator) * sizes[..., None] for _ in range(2))
    caches = [torch.zeros(4, 16, 2, 64).to(KV_DTYPES[name]) for _ in range(2)]
    scales = list(torch.full((2, 4, 2, 16), torch.nan))
    slots = torch.tensor([40, -1, 7])
    reference.store_kv(k, v, *caches, slots, *scales)
    for wide, codes, scale in zip((k, v), caches, scales, strict=True):
        for token, slot in ((0, 40), (2, 7)):
            block, place = divmod(slot, 16)
            got = codes[block, place].float() * scale[block, :, place, None]
            unit = wide[token].abs() if name == "fp8" else wide[token].abs().amax(-1, keepdim=True)
            smallest = scale[block, :, place, None] * 2**-10 if name == "fp8" else 0
            assert ((got - wide[token]).abs() <= unit * STEP[name] * 1.0001 + smallest).all()
        assert scale.isnan().sum() == scale.numel() - 4, "padding wrote a scale"


@pytest.mark.parametrize("kv_dtype", KV_DTYPES.values())
@pytest.mark.parametrize(("lengths", "news"), [([9, 16, 30], [9, 5, 1]), ([33, 1], [1, 1])])
def test_the_reference_reads_what_codes_and_scales_stand_for(kv_dtype, lengths, news):
    """Slots of nobody hold NaN, in codes and in scales."""
    narrow, scales, meant = in_eight_bits(paged_batch(lengths, news, slots=16), kv_dtype)
    assert relative_error(reference.paged_attention(*narrow, **scales), meant.expected()) < 1e-5


def test_block_bytes_is_what_the_tensors_take(model):
    config = model.config
    for dtype in (*KV_DTYPES.values(), torch.bfloat16):
        cache = KVCache(config, 5, 16, dtype=dtype, device=torch.device("cpu"))
        held = [*cache.keys, *cache.values, *(scale for both in cache.scales for scale in both)]
        assert sum(tensor.nbytes for tensor in held) == 5 * block_bytes(config, 16, dtype)


@pytest.mark.parametrize("name", KV_DTYPES)
def test_almost_twice_the_tokens_in_the_same_memory(model, name):
    """Of heads of 32 beside float16: 64 bytes, or 32 and a scale of 4."""
    half = replace(model, choices=replace(model.choices, dtype=torch.float16))
    options = {"kv_cache_memory": 2**18, "max_num_seqs": 999, "block_size": 16}
    with LLM(half, **options) as wide, LLM(half, **options, kv_cache_dtype=name) as narrow:
        assert narrow.settings.num_blocks == int(wide.settings.num_blocks * 64 / 36)
        assert narrow.settings.kv_cache_bytes <= 2**18
        assert str(narrow.settings).endswith(f", {name} KV")


def logprobs(llm, prompt=PROMPT):
    params = SamplingParams(max_tokens=8, ignore_eos=True, logprobs=5)
    (output,) = llm.generate([prompt], params)
    return output.token_ids, [entry.top for entry in output.outputs[0].logprobs]


@pytest.mark.parametrize("name", KV_DTYPES)
def test_a_prefix_from_the_cache_gives_the_very_same_logits(model, name):
    """The prefix is a chunk of its own on both sides, so that each product has the same shape: then no bit differs."""
    options = {"block_size": 16, "kv_cache_memory": 2**20, "max_num_batched_tokens": 64, "kv_cache_dtype": name}
    with LLM(model, **options) as llm:
        computed = logprobs(llm)
        assert llm.engine.metrics.num_cached_tokens == 0
        llm.generate([[3, 4] * 40], SamplingParams(max_tokens=3))  # others come and go
        assert logprobs(llm) == computed
        assert llm.engine.metrics.num_cached_tokens == len(PREFIX)


def test_a_block_that_is_moved_takes_its_scales_along():
    """Block i of the codes and block i of the scales are all there is of it."""
    narrow, scales, _ = in_eight_bits(paged_batch([33, 5], [3, 1], slots=16), torch.int8)
    order = torch.randperm(len(narrow.k_cache), generator=torch.Generator().manual_seed(1))
    moved = narrow._replace(
        k_cache=narrow.k_cache[order],
        v_cache=narrow.v_cache[order],
        block_table=order.argsort()[narrow.block_table.long()].int(),
    )
    scales_moved = {name: scale[order] for name, scale in scales.items()}
    expected = reference.paged_attention(*narrow, **scales)
    assert torch.equal(reference.paged_attention(*moved, **scales_moved), expected)
    assert not torch.equal(reference.paged_attention(*moved, **scales), expected)


@pytest.mark.parametrize(("name", "tolerance"), [("fp8", 0.1), ("int8", 0.03)])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "olmoe"])
def test_within_a_tolerance_of_wide_keys_and_values(tiny_directory, family, name, tolerance):
    """Log-probabilities of the prompt; of nine tokens in ten, as another expert may be chosen."""
    loaded = load_model(str(tiny_directory(family)[0]), dtype="float32", device="cpu", backend="torch")
    found = []
    for kind in ("auto", name):
        with LLM(loaded, block_size=16, kv_cache_memory=2**20, kv_cache_dtype=kind) as llm:
            (output,) = llm.generate([PROMPT], SamplingParams(max_tokens=1, prompt_logprobs=0))
        found.append(torch.tensor([entry.logprob for entry in output.prompt_logprobs[1:]]))
    error = (found[0] - found[1]).abs().quantile(0.9)
    assert 0 < error < tolerance


def test_identities_of_blocks_differ_by_their_type(model):
    hashes = []
    for kind in ("auto", "fp8", "int8"):
        with LLM(model, block_size=16, kv_cache_memory=2**20, kv_cache_dtype=kind) as llm:
            hashes.append(llm.text_engine.make(PROMPT, SamplingParams()).choices[0].request.cache_keys)
    assert len(set(hashes)) == 3


@pytest.mark.parametrize(
    ("name", "backend", "capability", "message"),
    [
        ("fp4", "torch", None, "kv_cache_dtype 'fp4' is not one of auto, fp8, int8"),
        (
            "int8",
            "cpu",
            None,
            "kv_cache_dtype 'int8' does not work here: the C.. kernels read .* backend 'torch' takes",
        ),
        ("fp8", "triton", (8, 0), "kv_cache_dtype 'fp8' does not work here: it needs compute capability 8.9"),
        ("fp8", "triton", (8, 9), None),
        ("int8", "triton", (8, 0), None),
    ],
)
def test_what_a_backend_cannot_read_is_refused(monkeypatch, name, backend, capability, message):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    choices = Choices(torch.device("cuda"), backend, torch.bfloat16, torch.bfloat16, "none")
    if message is None:
        assert choose_kv_dtype(name, choices) is KV_DTYPES[name]
        return
    with pytest.raises(InvalidRequestError, match=message):
        choose_kv_dtype(name, choices)
