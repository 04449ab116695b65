"""`LLM` as its users call it: whole, streamed, step by step, interrupted, closed, and with nonsense."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest
import torch

from miniserve import LLM, SamplingParams, load_model
from miniserve.core.executor import InFlight
from miniserve.errors import ChatTemplateError, InvalidRequestError

PROMPT = [5, 9, 30, 7]


@pytest.fixture(scope="module")
def model(tiny_directory):
    return load_model(str(tiny_directory("llama")[0]), dtype="float32", device="cpu")


@pytest.fixture
def llm(model):
    with LLM(model, block_size=4, kv_cache_memory=2**22, max_num_seqs=8) as made:
        yield made
        if "engine" in made.__dict__:
            made.engine.scheduler.check()
            assert made.engine.scheduler.pool.num_free == made.engine.scheduler.pool.num_blocks
            assert not made.has_work
            assert not made.live_requests


def test_one_prompt_or_several_as_text_or_ids(llm):
    params = SamplingParams(max_tokens=4, ignore_eos=True)
    (text,) = llm.generate("hello", params)
    ids = llm.tokenizer.encode("hello")
    (same,) = llm.generate(ids, params)
    several = llm.generate(["hello", ids], [params, SamplingParams(max_tokens=2, ignore_eos=True)])
    assert text.prompt == "hello"
    assert (same.prompt, same.prompt_token_ids) == (None, ids)
    assert text.token_ids == same.token_ids == several[0].token_ids
    assert several[1].token_ids == text.token_ids[:2]
    assert llm.generate([], params) == []


def test_an_output_says_everything(llm):
    params = SamplingParams(max_tokens=5, ignore_eos=True, logprobs=2, prompt_logprobs=3, n=2, temperature=1, seed=1)
    (out,) = llm.generate([PROMPT * 3], params)
    assert out.finished
    assert out.usage == {"prompt_tokens": 12, "completion_tokens": 10, "total_tokens": 22, "cached_tokens": 0}
    assert [(len(o.token_ids), len(o.logprobs), o.finish_reason) for o in out.outputs] == [(5, 5, "length")] * 2
    assert all(entry.token_id == token for entry, token in zip(out.outputs[0].logprobs, out.token_ids, strict=True))
    assert all(len(entry.top) == 2 for entry in out.outputs[0].logprobs)
    assert out.prompt_logprobs[0] is None
    assert [entry.token_id for entry in out.prompt_logprobs[1:]] == (PROMPT * 3)[1:]
    assert all(len(entry.top) == 3 for entry in out.prompt_logprobs[1:])
    timings = out.timings
    assert 0 <= timings.queue_s <= timings.ttft_s <= timings.e2e_s
    assert timings.itl_s > 0
    assert timings.tokens_per_s == pytest.approx(5 / (timings.ttft_s + 4 * timings.itl_s))
    assert out.as_dict()["outputs"][1]["index"] == 1


def test_logprobs_are_the_models_own(llm, model):
    from miniserve.model.cache import NoCache

    params = SamplingParams(max_tokens=3, ignore_eos=True, logprobs=0, prompt_logprobs=0, temperature=2.0, seed=3)
    (out,) = llm.generate([PROMPT], params)
    tokens = torch.tensor([*PROMPT, *out.token_ids])
    with torch.inference_mode():
        hidden = model.decoder(tokens, torch.arange(len(tokens)), NoCache(model.config))
        expected = model.decoder.logits(hidden).double().log_softmax(-1)
    reported = [entry.logprob for entry in (*out.prompt_logprobs[1:], *out.outputs[0].logprobs)]
    wanted = [expected[at, token].item() for at, token in enumerate(tokens[1:].tolist())]
    assert reported == pytest.approx(wanted, abs=1e-5)


def test_prompt_logprobs_survive_chunks_preemption_and_a_cached_prefix(model):
    prompts = [[7, 8, 9, 10] * 6, [7, 8, 9, 10] * 6, [3] * 20]
    params = SamplingParams(max_tokens=12, ignore_eos=True, prompt_logprobs=0)

    def run(**options):
        with LLM(model, block_size=4, max_model_len=40, **options) as llm:
            outputs = llm.generate(prompts, params)
            return [[entry.logprob for entry in out.prompt_logprobs[1:]] for out in outputs], llm.engine.metrics

    plain, _ = run(kv_cache_memory=2**22)
    tight, metrics = run(kv_cache_memory=22 * 4 * model.config.kv_bytes_per_token(4), max_num_batched_tokens=9)
    assert metrics.num_preemptions > 0
    for one, other in zip(plain, tight, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_stream_is_the_same_text(llm):
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    (whole,) = llm.generate(["hello"], params)
    stream = llm.stream("hello", params)
    pieces = list(stream)
    assert "".join(pieces) == whole.text == stream.output.text
    assert len(pieces) > 1
    assert (stream.output.finish_reason, stream.output.token_ids) == ("length", whole.token_ids)


def test_leaving_a_stream_early_aborts_it(llm):
    stream = llm.stream("hello", SamplingParams(max_tokens=100, ignore_eos=True))
    for _ in stream:
        break
    stream.close()
    assert not llm.has_work
    assert stream.output.finish_reason == "abort"
    assert 0 < len(stream.output.token_ids) < 100


def test_a_stream_nobody_begins_leaves_nothing(llm):
    stream = llm.stream("hello", SamplingParams(max_tokens=100))
    del stream
    assert not llm.has_work


def test_streams_side_by_side(llm):
    params = SamplingParams(max_tokens=10, ignore_eos=True)
    expected = [out.text for out in llm.generate(["hello", "abc"], params)]
    streams = [iter(llm.stream(text, params)) for text in ("hello", "abc")]
    texts = ["", ""]
    for _ in range(4):
        for index, stream in enumerate(streams):
            texts[index] += next(stream, "")
    for index, stream in enumerate(streams):
        texts[index] += "".join(stream)
    # The second stream's tokens may have come while the first one was driven: nothing of them may be lost.
    assert texts == expected


def test_chat_uses_the_template(model):
    with LLM(model, kv_cache_memory=2**22) as llm, pytest.raises(ChatTemplateError, match="no chat template"):
        llm.chat([{"role": "user", "content": "hello"}])


def test_chat_of_one_and_of_several(smollm2_gguf):
    with LLM("smollm2", max_model_len=256, kv_cache_memory=2**26) as llm:
        question = [{"role": "user", "content": "What is the capital of France?"}]
        params = SamplingParams(max_tokens=12)
        (one,) = llm.chat(question, params)
        two = llm.chat([question, [{"role": "user", "content": "Say hello."}]], params)
    assert "Paris" in one.text
    assert two[0].token_ids == one.token_ids
    assert two[0].outputs[0].num_cached_tokens > 0


def test_step_by_step_with_the_block_table_in_sight(llm):
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    shared = list(range(3, 15))
    names = [llm.add_request([*shared, tail], params) for tail in (50, 60)]
    llm.step()
    llm.step()
    held = [view for view in llm.blocks() if view.holders]
    assert [view for view in held if len(view.holders) == 2] == [view for view in held if view.cached][:3]
    assert {name for view in held for name in view.holders} == set(names)
    finished = {}
    while llm.has_work:
        finished |= {out.request_id: out for out in llm.step() if out.finished}
    assert set(finished) == set(names)
    assert not any(view.holders for view in llm.blocks())
    assert sum(view.cached for view in llm.blocks()) >= 3


def test_abort_by_name(llm):
    name = llm.add_request("hello", SamplingParams(max_tokens=50))
    llm.step()
    assert llm.abort(name)
    assert not llm.abort(name)
    assert not llm.abort("nobody")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda llm: llm.generate(["ok", ""]), "prompt 1 of 2: request.*: the prompt is empty"),
        (lambda llm: llm.generate([[1, 2], [128]]), "prompt 1 of 2: .*prompt token 128 is outside"),
        (lambda llm: llm.generate(["x" * 512]), "leaves no room for output; max_model_len is 512"),
        (lambda llm: llm.generate(["a"], SamplingParams(max_tokens=512)), "make 513; max_model_len is 512"),
        (lambda llm: llm.generate(["a", "b"], [SamplingParams()]), "2 prompts came with 1 sampling parameters"),
        (lambda llm: llm.stream("a", SamplingParams(n=2)), "n is 2: a stream"),
        (lambda llm: llm.generate(["a"], SamplingParams(stop_token_ids=[500])), "stop_token_ids names token 500"),
    ],
)
def test_bad_requests_are_named_and_leave_nothing(llm, call, says):
    with pytest.raises(InvalidRequestError, match=says):
        call(llm)
    assert not llm.has_work
    assert llm.generate(["ok"], SamplingParams(max_tokens=1))[0].finished


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_model_len": 513}, "max_model_len is 513: this model's context holds 1 to 512"),
        ({"max_model_len": 512, "kv_cache_memory": 2**17}, "max_model_len 512 needs 32 KV blocks of 16 tokens"),
        ({"memory_fraction": 1.5}, "memory_fraction is 1.5"),
        ({"memory_fraction": 0.5, "kv_cache_memory": 2**20}, "exclude each other"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens is 0"),
        ({"block_size": -1}, "block_size is -1: it must be at least 1"),
        ({"dtype": "float32"}, "this model is loaded already"),
    ],
)
def test_bad_settings_are_named(model, options, says):
    with pytest.raises(InvalidRequestError, match=says):
        LLM(model, **options)


def test_settings_say_what_was_decided(llm):
    settings = llm.settings
    assert (settings.dtype, settings.device, settings.block_size, settings.max_model_len) == (
        "float32", "cpu", 4, 512,
    )  # fmt: skip
    held = sum(layer.nbytes for layer in llm.engine.executor.cache.keys) * 2
    assert settings.kv_cache_bytes == held <= 2**22


def test_a_failing_step_ends_its_requests_and_the_engine_goes_on(llm):
    params = SamplingParams(max_tokens=4, ignore_eos=True)
    (expected,) = llm.generate([PROMPT], params)
    good = llm.engine.executor
    llm.engine.executor = type("Broken", (), {"launch": lambda self, step: 1 / 0})()
    with pytest.raises(ZeroDivisionError):
        llm.generate([PROMPT, [4, 4]], params)
    assert not llm.has_work
    llm.engine.executor = good
    assert llm.generate([PROMPT], params)[0].token_ids == expected.token_ids


def test_interrupt_in_the_middle_of_a_step(llm):
    """SIGINT arrives while a step is computed: the step ends, then KeyboardInterrupt, and nothing is left."""
    good = llm.engine.executor

    class Slow:
        interrupted = False

        def launch(self, step) -> InFlight:
            if not self.interrupted:
                self.interrupted = True
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
            return good.launch(step)

    llm.engine.executor = Slow()
    with pytest.raises(KeyboardInterrupt):
        llm.generate([PROMPT], SamplingParams(max_tokens=50))
    assert not llm.has_work
    assert llm.engine.metrics.num_steps == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert llm.generate([PROMPT], SamplingParams(max_tokens=2))[0].finished


def test_in_another_thread(llm):
    outputs = []
    thread = threading.Thread(target=lambda: outputs.extend(llm.generate([PROMPT], SamplingParams(max_tokens=3))))
    thread.start()
    thread.join(60)
    assert outputs[0].finished


def test_interrupted_script_says_so_and_ends(smollm2_gguf):
    code = (
        "from miniserve import LLM, SamplingParams\n"
        "llm = LLM('smollm2', max_model_len=512, kv_cache_memory=2**26)\n"
        "p = SamplingParams(max_tokens=400, ignore_eos=True)\n"
        "print('ready', flush=True)\n"
        "try:\n    llm.generate(['Once upon a time'], p, progress=True)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', llm.has_work, len(llm.generate(['a'], SamplingParams(max_tokens=3))[0].token_ids))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert out == "interrupted False 3\n", err
    assert "Traceback" not in err


def test_closing_gives_the_memory_back(tiny_directory):
    llm = LLM(str(tiny_directory("llama")[0]), kv_cache_memory=2**22)
    watched = [
        weakref.ref(llm.engine.executor.cache.keys[0]),
        weakref.ref(llm.engine.executor.decoder.unembed.matrix.data),
    ]
    name = llm.add_request("hello", SamplingParams(max_tokens=50))
    begun, kept = llm.stream("hello", SamplingParams(max_tokens=50)), llm.stream("hello")
    next(iter(begun))
    llm.close()
    llm.close()
    gc.collect()
    assert [ref() for ref in watched] == [None, None]
    assert not llm.abort(name)
    assert list(begun) == []
    assert begun.output.finish_reason == "abort"
    for use in (lambda: llm.generate(["a"]), lambda: llm.add_request("a"), llm.step, lambda: list(kept)):
        with pytest.raises(InvalidRequestError, match="this LLM is closed"):
            use()


def test_two_engines_side_by_side(model):
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    with LLM(model, block_size=4, kv_cache_memory=2**22) as one, LLM(model, kv_cache_memory=2**21) as two:
        first, second = one.stream("hello", params), two.stream("hello", params)
        pairs = list(zip(first, second, strict=False))
        assert pairs
        assert first.output.token_ids[: len(pairs)] == second.output.token_ids[: len(pairs)]


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_how_many_tokens_each_expert_got(tiny_directory, backend, compiled):
    with LLM(str(tiny_directory("mixtral")[0]), device="cpu", backend=backend) as llm:
        assert llm.expert_tokens == [[0] * 4] * 3
        llm.generate([[5, 6, 7, 8], [9, 10]], SamplingParams(max_tokens=5, ignore_eos=True))
        computed = 4 + 2 + 2 * 4  # the last token of each is chosen and not computed
        assert [sum(layer) for layer in llm.expert_tokens] == [2 * computed] * 3
    with LLM(str(tiny_directory("mixtral")[0]), device="cpu", count_experts=False) as llm:
        assert llm.expert_tokens is None
    with pytest.raises(InvalidRequestError, match="no mixture"):
        LLM(str(tiny_directory("llama")[0]), device="cpu", count_experts=True)
