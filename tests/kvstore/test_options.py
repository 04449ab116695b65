"""What can be asked of tiers, and the refusals."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import InvalidRequestError
from miniserve.kvstore.options import DISK_MIB, TierOptions
from miniserve.llm import LLM
from miniserve.model.load import load_model

PARAMS = SamplingParams(max_tokens=4, ignore_eos=True)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"kv_host_mib": 0}, "kv_host_mib is 0: it must be at least 1"),
        ({"kv_disk_dir": "x", "kv_disk_mib": -3}, "kv_disk_mib is -3"),
        ({"kv_disk_mib": 5}, "kv_disk_mib is 5, but there is no kv_disk_dir"),
        ({"kv_host_mib": 5, "kv_compress": "zip"}, "kv_compress 'zip' is not one of none, fp8"),
        ({"kv_host_mib": 5, "kv_load": "never"}, "kv_load 'never' is not one of faster, always"),
        ({"kv_compress": "fp8"}, "give kv_host_mib or kv_disk_dir"),
    ],
)
def test_what_makes_no_sense_is_refused(asked, message):
    with pytest.raises(InvalidRequestError, match=message):
        TierOptions.of(**asked)


def test_nothing_asked_is_no_tiers():
    assert TierOptions.of() is None
    made = TierOptions.of(kv_disk_dir="~/kv", kv_host_mib=3, kv_compress="fp8")
    assert made == TierOptions(3, Path("~/kv").expanduser(), DISK_MIB, "fp8")
    assert str(made) == f"3 MiB of host memory and {DISK_MIB} MiB in {made.disk_dir} as fp8"


@pytest.fixture(scope="module")
def model(tiny_directory):
    return load_model(str(tiny_directory("qwen3")[0]), dtype="float32", device="cpu", backend="torch")


def opened(model, **options):
    return LLM(model, **{"max_model_len": 64, "block_size": 4, "kv_cache_memory": 2**20, **options})


def test_an_engine_that_cannot_have_tiers_says_why(model, tmp_path):
    with pytest.raises(InvalidRequestError, match="need prefix caching"):
        opened(model, kv_host_mib=1, enable_prefix_caching=False)
    with pytest.raises(InvalidRequestError, match="are int8 already"):
        opened(model, kv_host_mib=1, kv_cache_dtype="int8", kv_compress="fp8")
    with pytest.raises(
        InvalidRequestError, match="the host tier may take 1048576 bytes: a KV block of this model takes"
    ):
        opened(model, kv_host_mib=1, block_size=1024, kv_cache_memory=2**26)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidRequestError, match="the disk tier cannot use"):
        opened(model, kv_disk_dir=tmp_path / "file")


def test_ranks_are_refused_by_name(model, monkeypatch):
    monkeypatch.setattr(model.decoder, "communicator", SimpleNamespace(rank=0, size=2))
    with pytest.raises(InvalidRequestError, match="do not go with tensor_parallel_size 2"):
        opened(model, kv_host_mib=1)


def test_eight_bit_kv_travels_with_its_scales(model, tmp_path):
    """Hazard 25. Log-probabilities of a prompt whose past came from the disk are those of one that was computed."""
    prompt, found = list(range(3, 40)), []
    asks = replace(PARAMS, logprobs=0)
    for _ in range(2):
        with opened(model, kv_cache_dtype="int8", kv_disk_dir=tmp_path, kv_load="always") as llm:
            (output,) = llm.generate([prompt], asks)
            found.append(torch.tensor([each.logprob for each in output.outputs[0].logprobs]))
            metrics = llm.engine.metrics
    assert metrics.tiers["disk"].hits == 9
    torch.testing.assert_close(found[0], found[1], atol=1e-3, rtol=0)


def test_compressed_and_not_share_a_directory_and_no_block(model, tmp_path):
    prompt, hits = list(range(3, 40)), []
    for compress in ("none", "fp8", "none", "fp8"):
        with opened(model, kv_disk_dir=tmp_path, kv_compress=compress, kv_load="always") as llm:
            llm.generate([prompt], PARAMS)
            hits.append(llm.engine.metrics.tiers["disk"].hits)
    assert hits == [0, 0, 9, 9]
    assert len(list(tmp_path.rglob("*.kv"))) == 20, "ten of each: nine of the prompt, one with what was generated"


def test_salts_keep_tenants_apart(model):
    prompt = list(range(3, 40))
    with opened(model, kv_host_mib=1, kv_load="always") as llm:
        for salt, loads in (("a", 0), ("b", 0), ("a", 36)):
            before = llm.engine.metrics.num_loaded_tokens
            llm.add_request(prompt, PARAMS, cache_salt=salt)
            while llm.has_work:
                llm.step()
            llm.engine.scheduler.pool.clear_cache()
            assert llm.engine.metrics.num_loaded_tokens - before == loads


def test_tiers_go_with_speculation_and_aborts(model):
    """Drafts fill blocks too, and only what the model chose counts."""
    prompt = [5, 6, 7, 8] * 9
    with opened(model) as llm:
        truth = llm.generate([prompt], replace(PARAMS, max_tokens=20))[0].token_ids
    with opened(model, kv_host_mib=1, kv_load="always", speculation="ngram") as llm:
        for _ in range(3):
            doomed = llm.add_request([*prompt[:-1], 9], replace(PARAMS, max_tokens=20))
            llm.step()
            llm.abort(doomed)
            assert llm.generate([prompt], replace(PARAMS, max_tokens=20))[0].token_ids == truth
            while llm.has_work:
                llm.step()
            llm.engine.scheduler.check()
            assert llm.engine.scheduler.pool.num_free == llm.engine.scheduler.pool.num_blocks
            llm.engine.scheduler.pool.clear_cache()
        assert llm.engine.metrics.num_loaded_tokens > 0
