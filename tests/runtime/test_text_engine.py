"""From tokens to text around the core's engine: stop strings, ends of every kind, nothing left behind."""

from typing import NamedTuple

import pytest

from miniserve.core.block_pool import BlockPool
from miniserve.core.engine import Engine
from miniserve.core.executor import StepResult
from miniserve.core.request import FinishReason, TokenLogprob
from miniserve.core.sampling_params import SamplingParams
from miniserve.core.scheduler import Scheduler
from miniserve.errors import InvalidRequestError
from miniserve.model.tokenizer.tokenizer import Tokenizer
from miniserve.runtime.text_engine import TextEngine
from support.tiny_tokenizers import gguf_metadata


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_gguf(gguf_metadata(), tmp_path_factory.mktemp("t") / "none.gguf")


class Said(NamedTuple):
    """What came of a step; whether the next one may be launched before anyone asks for it."""

    outcome: StepResult
    may_be_followed: bool

    def result(self):
        return self.outcome


class Script:
    """An executor that makes every request say the same text, whatever the prompt, then goes on with dots.

    It also knows what it is going to say: as a proposer it is always right. Those that ask for log-probabilities are told
    minus their number.
    """

    def __init__(self, tokens, filler, ahead):
        self.tokens, self.filler, self.ahead, self.longest, self.fails = tokens, filler, ahead, 0, False

    def _say(self, first, count):
        return [self.tokens[at] if at < len(self.tokens) else self.filler for at in range(first, first + count)]

    def propose(self, requests, rooms):
        return [self._say(each.num_output_tokens, room) for each, room in zip(requests, rooms, strict=True)]

    def forget(self, request):
        pass

    def launch(self, step):
        if self.fails:
            raise RuntimeError("the device is gone")
        tokens, logprobs = [], {}
        for index, part in enumerate(step.scheduled):
            said = part.start + part.num_known - part.request.num_prompt_tokens
            tokens.append(self._say(said, 1 + len(part.draft)) if part.samples else [])
            if part.request.params.logprobs is not None:
                logprobs[index] = [TokenLogprob(token, -at, 1) for at, token in enumerate(tokens[-1], said)]
        return Said(StepResult(tokens, logprobs), self.ahead)


@pytest.fixture(params=[False, True], ids=["one by one", "ahead"])
def make(tokenizer, request):
    def build(text, **options):
        script = Script([t for c in text for t in tokenizer.encode(c)], tokenizer.encode(".")[0], request.param)
        scheduler = Scheduler(
            BlockPool(64, 4), **{"max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 128, **options},
            proposer=script,
        )  # fmt: skip
        return TextEngine(Engine(scheduler, script), tokenizer, "model")

    return build


def drain(text_engine):
    shown = {}
    while text_engine.has_work:
        for delta in text_engine.step():
            shown.setdefault(delta.choice.request.request_id, []).append(delta.text)
    clean(text_engine)
    return {name: "".join(pieces) for name, pieces in shown.items()}


def clean(text_engine):
    """No state of any layer is left (rows 9 and 10 of the hazards: blocks, detokenizers, streams)."""
    scheduler = text_engine.engine.scheduler
    scheduler.check()
    assert scheduler.pool.num_free == scheduler.pool.num_blocks
    assert not text_engine._generations
    assert not text_engine._by_request
    assert not text_engine.engine._live


PROMPT = [5, 6, 7]


def start(text_engine, **params):
    return text_engine.add(text_engine.make(PROMPT, SamplingParams(**params)))


def test_a_stop_string_across_tokens_ends_the_text_before_it(make):
    engine = make("hello STOP world")
    generation = start(engine, stop="STOP", max_tokens=30)
    shown = drain(engine)
    (choice,) = generation.choices
    assert shown == {generation.request_id: "hello "}
    assert (choice.finish_reason, choice.stop_reason, choice.stream.text) == (FinishReason.STOP, "STOP", "hello ")
    assert choice.request.finish_reason is FinishReason.STOP


@pytest.mark.parametrize(
    ("params", "text", "reason"),
    [
        ({"stop": "STOP"}, "hello ", FinishReason.STOP),
        ({"stop": "STOP", "include_stop_str": True}, "hello STOP", FinishReason.STOP),
        ({"stop": "STOP", "max_tokens": 11}, "hello ", FinishReason.STOP),  # the string comes before the length
        ({"stop_token_ids": "w", "max_tokens": 12}, "hello STOP ", FinishReason.STOP),
        ({"stop": "STOP", "stop_token_ids": "w"}, "hello ", FinishReason.STOP),  # and before the token
        ({"max_tokens": 8}, "hello ST", FinishReason.LENGTH),
        ({"stop": "STOP", "max_tokens": 8}, "hello ST", FinishReason.LENGTH),
    ],
)
def test_what_comes_at_once_ends_where_it_ends_token_by_token(make, tokenizer, params, text, reason):
    ids = [token for char in params.get("stop_token_ids", "") for token in tokenizer.encode(char)]
    ended = []
    for longest in (0, 15):
        engine = make("hello STOP world")
        engine.engine.executor.longest = longest
        generation = start(engine, **{"max_tokens": 16, "logprobs": 0, **params, "stop_token_ids": ids})
        shown = drain(engine)[generation.request_id]
        (choice,) = generation.choices
        request = choice.request
        assert (shown, choice.stream.text, choice.finish_reason) == (text, text, reason)
        assert [entry.token_id for entry in request.logprobs] == request.output_token_ids
        assert len(request.times.tokens_s) == request.num_output_tokens
        needed = 2 if longest else request.num_output_tokens
        wasted = engine.engine.metrics.num_steps - needed  # an end by the text is found out a step late
        assert 0 <= wasted <= (engine.engine.executor.ahead and not longest)
        ended.append((request.output_token_ids, choice.stop_reason, request.logprobs))
    assert ended[0] == ended[1]


def test_include_stop_str(make):
    engine = make("hello STOP world")
    generation = start(engine, stop=["xx", "STOP"], include_stop_str=True, max_tokens=30)
    assert drain(engine)[generation.request_id] == "hello STOP"


def test_held_back_text_is_shown_when_the_length_ends_it(make):
    engine = make("hello STO")
    generation = start(engine, stop="STOP", max_tokens=9)
    assert drain(engine)[generation.request_id] == "hello STO"
    assert generation.choices[0].finish_reason is FinishReason.LENGTH


def test_a_stop_string_in_the_last_token_wins_over_the_length(make):
    engine = make("hello STOP")
    generation = start(engine, stop="STOP", max_tokens=10)
    assert drain(engine)[generation.request_id] == "hello "
    assert generation.choices[0].finish_reason is FinishReason.STOP


def test_a_stop_token_is_counted_but_not_shown_and_named(make, tokenizer):
    (stop,) = tokenizer.encode("w")
    engine = make("hello world")
    generation = start(engine, stop_token_ids=[stop], max_tokens=30)
    shown = drain(engine)[generation.request_id]
    (choice,) = generation.choices
    assert shown == "hello "
    assert (choice.finish_reason, choice.stop_reason) == (FinishReason.STOP, stop)
    assert choice.request.output_token_ids[-1] == stop
    shown_too = start(engine, stop_token_ids=[stop], include_stop_str=True, max_tokens=30)
    assert drain(engine)[shown_too.request_id] == "hello w"


def test_eos_ends_unless_ignored(make, tokenizer):
    eos = next(iter(tokenizer.eos_token_ids))
    engine = make("abc")
    engine.engine.executor.tokens.append(eos)
    ended = start(engine, max_tokens=8)
    ignoring = start(engine, max_tokens=8, ignore_eos=True)
    drain(engine)
    assert (ended.choices[0].finish_reason, ended.choices[0].stop_reason) == (FinishReason.STOP, None)
    assert ended.choices[0].stream.text == "abc"
    assert (ignoring.choices[0].finish_reason, ignoring.choices[0].stream.text) == (FinishReason.LENGTH, "abc....")


def test_half_an_emoji_at_the_end_is_not_dropped(make, tokenizer):
    engine = make("hi")
    engine.engine.executor.tokens += tokenizer.encode("🙂")[:1]
    generation = start(engine, max_tokens=3)
    assert drain(engine)[generation.request_id] == "hi\ufffd"


def test_n_outputs_share_the_prompt_and_end_one_by_one(make):
    engine = make("abcdef")
    generation = engine.add(engine.make(list(range(5, 25)), SamplingParams(n=3, max_tokens=4)))
    assert not generation.finished
    drain(engine)
    assert generation.finished
    assert [choice.stream.text for choice in generation.choices] == ["abcd"] * 3
    assert engine.engine.metrics.num_cached_tokens == 2 * 16


def test_abort_ends_all_outputs_and_leaves_nothing(make):
    engine = make("abcdef")
    doomed = engine.add(engine.make(PROMPT, SamplingParams(n=3, max_tokens=50), request_id="doomed"))
    other = start(engine, max_tokens=5)
    engine.step()
    assert engine.abort("doomed")
    assert not engine.abort("doomed")
    assert [choice.finish_reason for choice in doomed.choices] == [FinishReason.ABORT] * 3
    drain(engine)
    assert other.choices[0].finish_reason is FinishReason.LENGTH


def test_abort_all(make):
    engine = make("abcdef", max_num_seqs=2)
    generations = [start(engine, max_tokens=50) for _ in range(5)]
    engine.step()
    engine.abort_all()
    clean(engine)
    assert {choice.finish_reason for generation in generations for choice in generation.choices} == {FinishReason.ABORT}


def test_a_failing_executor_ends_its_step_only(make):
    engine = make("abcdef", max_num_seqs=1)
    doomed, spared = start(engine, max_tokens=4), start(engine, max_tokens=4)
    engine.engine.executor.fails = True
    with pytest.raises(RuntimeError, match="the device is gone"):
        engine.step()
    engine.engine.executor.fails = False
    assert doomed.choices[0].finish_reason is FinishReason.ERROR
    drain(engine)
    assert spared.choices[0].stream.text == "abcd"


def test_bad_prompts_are_refused_before_anything_is_queued(make):
    engine = make("abc")
    with pytest.raises(InvalidRequestError, match="the prompt is empty"):
        engine.make([], SamplingParams())
    with pytest.raises(InvalidRequestError, match="prompt token 100000 is outside the vocabulary"):
        engine.make([100000], SamplingParams())
    with pytest.raises(InvalidRequestError, match="128 tokens and leaves no room for output; max_model_len is 128"):
        engine.make([5] * 128, SamplingParams())
    with pytest.raises(InvalidRequestError, match="120 prompt tokens and max_tokens 9 make 129; max_model_len is 128"):
        engine.make([5] * 120, SamplingParams(max_tokens=9))
    with pytest.raises(InvalidRequestError, match="logit_bias names token"):
        engine.make([5], SamplingParams(logit_bias={10**6: 1}))
    clean(engine)


def test_ids_in_use_are_refused_and_nothing_of_the_second_stays(make):
    engine = make("abc")
    engine.add(engine.make(PROMPT, SamplingParams(n=2, max_tokens=3), request_id="a"))
    for name in ("a", "a/1"):
        with pytest.raises(InvalidRequestError, match="already running"):
            engine.add(engine.make(PROMPT, SamplingParams(max_tokens=3), request_id=name))
    with pytest.raises(InvalidRequestError, match="already running"):
        engine.add(engine.make(PROMPT, SamplingParams(n=2, max_tokens=3), request_id="a"))
    drain(engine)


def test_salts_do_not_share(make):
    engine = make("abc")
    prompt = list(range(5, 25))
    for salt in ("one", "two", "one"):
        engine.add(engine.make(prompt, SamplingParams(max_tokens=2), cache_salt=salt))
        drain(engine)
    assert engine.engine.metrics.num_cached_tokens == 16
