"""Constrained outputs: whatever is drawn under a grammar obeys it, beside others, with drafts, after preemption."""

import gc
import json
import random
import re
import sys
import time
import weakref

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve import LLM, SamplingParams, load_model
from miniserve.core.grammar import (
    CALL_ARGUMENTS,
    CALL_BEGIN,
    CALL_BETWEEN,
    CALL_END,
    CALL_NAME,
    Choices,
    Function,
    JsonObject,
    JsonSchema,
    Regex,
    ToolCalls,
)
from miniserve.core.request import FinishReason
from miniserve.errors import InvalidRequestError
from miniserve.model.tokenizer.tokenizer import Tokenizer
from miniserve.runtime import grammars as module
from miniserve.runtime.grammars import Grammars
from support.tiny_tokenizers import gguf_metadata

PERSON = JsonSchema(
    {
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 99, "minimum": 0}, "b": {"enum": ["x", None]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
)


def call(schema, name="f", **options):
    return ToolCalls((Function(name, JsonSchema({"type": "object", **schema})),), **options)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_gguf(gguf_metadata(), tmp_path_factory.mktemp("t") / "none.gguf")


@pytest.fixture(scope="module")
def grammars(tokenizer):
    return Grammars(tokenizer)


def walk(grammars, tokenizer, grammar, rng, longest=400, closing=60):
    """A random text under a grammar; None if it grew too long. From some length on it rather closes than opens."""
    matcher = grammars.matcher(grammar, tokenizer.eos_token_ids)
    tokens = []
    while len(tokens) < longest:
        mask = matcher.mask(())
        allowed = [token for token in range(tokenizer.vocab_size) if mask[token // 8] >> token % 8 & 1]
        assert allowed
        ends = [t for t in allowed if t in tokenizer.eos_token_ids or tokenizer.token_bytes(t) in b'"}]0']
        token = rng.choice(ends if ends and len(tokens) > closing and rng.random() < 0.5 else allowed)
        reason = matcher.accept(token)
        if token not in tokenizer.eos_token_ids:
            tokens.append(token)
        assert reason is not FinishReason.ERROR
        if reason is FinishReason.STOP:
            return tokenizer.decode(tokens)
    return None


SCALARS = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.builds(lambda a, b: {"type": "integer", "minimum": min(a, b), "maximum": max(a, b)}, *[st.integers(-50, 300)] * 2),
    st.builds(lambda n: {"type": "string", "maxLength": n, "minLength": n // 2}, st.integers(0, 6)),
    st.builds(lambda v: {"enum": v}, st.lists(st.one_of(st.text(max_size=3), st.integers(-(2**53), 2**53), st.none()), min_size=1, max_size=3)),
    st.just({"type": "string", "pattern": "^[a-c]{1,3}é?$"}),
)  # fmt: skip


def _containers(inner):
    arrays = st.builds(
        lambda each, n, more: {"type": "array", "items": each, "minItems": n, "maxItems": n + more},
        inner, st.integers(0, 2), st.integers(0, 2),
    )  # fmt: skip
    names = st.text(max_size=3)
    objects = st.builds(
        lambda each, some: {
            "type": "object", "properties": each, "required": [*each][::some], "additionalProperties": False,
        },
        st.dictionaries(names, inner, max_size=3), st.integers(1, 2),
    )  # fmt: skip
    return st.one_of(arrays, objects, st.builds(lambda *each: {"anyOf": list(each)}, inner, inner))


@settings(max_examples=40, deadline=None)
@given(schema=st.recursive(SCALARS, _containers, max_leaves=5), seed=st.integers(0, 2**32))
def test_json_obeys_its_schema(grammars, tokenizer, schema, seed):
    text = walk(grammars, tokenizer, JsonSchema(schema), random.Random(seed))
    if text is not None:
        jsonschema.validate(json.loads(text), schema)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_any_json_object(grammars, tokenizer, seed):
    text = walk(grammars, tokenizer, JsonObject(), random.Random(seed))
    assert text is None or isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    "pattern", ["[ab]{2,4}c", "(é|🙂|[0-9])+x", "^a?b$", "a*", "[^a-z]{3}", '"\\\\"', "(?i)yes|no"]
)
def test_a_regex_matches_the_whole_text(grammars, tokenizer, pattern):
    for seed in range(5):
        text = walk(grammars, tokenizer, Regex(pattern), random.Random(seed))
        assert text is None or re.fullmatch(pattern, text)


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=4), seed=st.integers(0, 2**32))
def test_one_of_some_texts(grammars, tokenizer, texts, seed):
    assert walk(grammars, tokenizer, Choices(texts), random.Random(seed)) in texts


def written(name, arguments):
    return f"{CALL_BEGIN}{CALL_NAME}{name}{CALL_ARGUMENTS}{arguments}{CALL_END}"


@settings(max_examples=20, deadline=None)
@given(schema=st.recursive(SCALARS, _containers, max_leaves=4), seed=st.integers(0, 2**32), several=st.booleans())
def test_calls_obey_their_functions(grammars, tokenizer, schema, seed, several):
    inside = {"properties": {"x": schema}, "required": ["x"], "additionalProperties": False}
    grammar = call(inside, required=True, several=several)
    text = walk(grammars, tokenizer, grammar, random.Random(seed))
    if text is None:
        return
    calls = text.split(CALL_END + CALL_BETWEEN + CALL_BEGIN)
    assert len(calls) == 1 or several
    for each in calls:
        head, arguments = each.removesuffix(CALL_END).removeprefix(CALL_BEGIN).split(CALL_ARGUMENTS, 1)
        assert head == CALL_NAME + "f"
        jsonschema.validate(json.loads(arguments), {"type": "object", **inside})


ONE = {"properties": {"x": {"enum": [1]}}, "required": ["x"], "additionalProperties": False}
GOOD, OTHER, WRONG = written("f", '{"x": 1}'), written("g", '{"x": 1}'), written("f", '{"x": 2}')


@pytest.mark.parametrize(
    ("grammar", "whole", "refused"),
    [
        (call(ONE), ["hi", "a < b, <tool_cal", GOOD, "è\n" + GOOD, GOOD + "\n" + GOOD], [OTHER, "hi" + WRONG, GOOD + "!", GOOD + GOOD]),
        (call(ONE, required=True), [GOOD, GOOD + "\n" + GOOD], ["hi", "\n" + GOOD, OTHER]),
        (call(ONE, several=False), ["hi", "hi " + GOOD], [GOOD + "\n" + GOOD]),
        (call(ONE, otherwise=JsonSchema({"const": 5})), ["5", GOOD], ["hi", "5" + GOOD, "6"]),
        (ToolCalls(()), ["hi", "<tool_cal"], ["<tool_call>", GOOD]),
        (ToolCalls((), otherwise=JsonObject()), ["{}"], ["hi", GOOD]),
    ],
)  # fmt: skip
def test_text_and_calls(grammars, tokenizer, grammar, whole, refused):
    def fits(text):
        matcher = grammars.matcher(grammar, tokenizer.eos_token_ids)._matcher
        tokens = tokenizer.encode(text, add_special_tokens=False)
        return (
            matcher.validate_tokens(tokens) == len(tokens) and matcher.consume_tokens(tokens) and matcher.is_accepting()
        )

    assert [text for text in whole if not fits(text)] == []
    assert [text for text in refused if fits(text)] == []


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        (Regex("a("), "unclosed group"),
        (Regex("(?=a)b"), "look-around"),
        (Regex(r"(a)\1"), "backreferences"),
        (Regex(r"a[^\s\S]b"), "cannot be satisfied"),
        (Regex("()"), "cannot be satisfied"),
        (Regex("(" * 5000 + "a" + ")" * 5000), "cannot be used"),
        (JsonSchema({"uniqueItems": True}), "uniqueItems"),
        (JsonSchema({"not": {}}), "not"),
        (JsonSchema({"if": {}, "then": {}}), "if"),
        (JsonSchema({"type": "text"}), "text"),
        (JsonSchema({"type": "string", "format": "wombat"}), "wombat"),
        (JsonSchema({"type": "string", "const": 5}), "incompatible types"),
        (JsonSchema({"minimum": 5, "maximum": 3, "type": "integer"}), "greater than maximum"),
        (JsonSchema({"properties": {f"p{i}": {} for i in range(1000)}}), "too complex"),
        (call({"properties": {f"p{i}": {} for i in range(1000)}}), "too complex: behind <tool_call>"),
        (call({"properties": {"a": {"uniqueItems": True}}}), "parameters of function f: Unimplemented keys"),
        (JsonSchema({"$ref": "http://example.org/x"}), "example.org"),
        (JsonSchema({"allOf": [{"anyOf": [{"properties": {f"{i}-{j}": {}}} for j in range(9)]} for i in range(9)]}),
         "too large"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_at_once(grammars, tokenizer, grammar, says):
    begun = time.perf_counter()
    with pytest.raises(InvalidRequestError, match=says):
        grammars.matcher(grammar, tokenizer.eos_token_ids)
    assert time.perf_counter() - begun < 5
    assert not [kept for kept in grammars._compiled if kept == grammar]


def test_eos_may_come_only_where_the_grammar_may_end(grammars, tokenizer):
    (eos,) = tokenizer.eos_token_ids
    letter, other = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    may = lambda mask, token: bool(mask[token // 8] >> token % 8 & 1)  # noqa: E731
    matcher = grammars.matcher(Regex("a{2}b*"), frozenset({eos, other}))
    assert [may(matcher.mask(()), token) for token in (letter, other, eos)] == [True, False, False]
    assert [may(matcher.mask([letter, letter]), token) for token in (letter, other, eos)] == [False, True, True]
    assert [may(matcher.mask(()), token) for token in (letter, other, eos)] == [True, False, False]
    for wrong in ([other], [letter, eos], [letter] * 3, [letter, letter, eos, letter]):
        matcher.mask(wrong)  # may be anything, but leaves the matcher as it is
        assert [may(matcher.mask(()), token) for token in (letter, other, eos)] == [True, False, False]
        assert not matcher.failed
    assert [matcher.accept(letter), matcher.accept(letter), matcher.accept(eos)] == [None, None, FinishReason.STOP]
    without = grammars.matcher(Regex("a{2}b*"), frozenset())
    assert not may(without.mask([letter, letter]), eos), "ignore_eos: it is no stop token, and never text"


def test_a_text_that_no_token_goes_on_with_ends_with_an_error(model):
    with LLM(model, block_size=4, kv_cache_memory=2**20) as llm:  # its vocabulary is ASCII
        made = llm.generate(["ab", "ab"], [SamplingParams(grammar=Regex("[ab]{2}(é|è)")), SamplingParams(max_tokens=8)])
        assert made[0].outputs[0].finish_reason == "error"
        assert len(made[1].token_ids) == 8


def test_the_last_compiled_are_kept(tokenizer, monkeypatch):
    monkeypatch.setattr(module, "MAX_COMPILED", 2)
    grammars = Grammars(tokenizer)
    for pattern in ("a", "b", "a", "c"):
        grammars.matcher(Regex(pattern), frozenset())
    assert list(grammars._compiled) == [("", Regex("a")), ("", Regex("c"))]


def test_a_grammar_is_kept_for_its_salt_alone(tokenizer):
    grammars = Grammars(tokenizer)
    grammars.compile(Regex("a"), "alice")
    assert [grammars.has(Regex("a"), salt) for salt in ("alice", "bob", "")] == [True, False, False]


def test_without_the_library_the_error_says_what_to_install(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(InvalidRequestError, match=r"miniserve\[structured\]"):
        Grammars(tokenizer).matcher(Regex("a"), frozenset())


# With a model.


@pytest.fixture(scope="module")
def model(tiny_directory):
    return load_model(str(tiny_directory("llama")[0]), dtype="float32", device="cpu")


PROMPTS = [[5, 9, 30, 7], [8, 8, 4], [90, 11, 12, 13, 14, 15], [44], [21, 22, 23], [70, 71]]
PARAMS = [
    SamplingParams(max_tokens=60, temperature=1, seed=1, grammar=PERSON, logprobs=1),
    SamplingParams(max_tokens=45, temperature=1, seed=2),
    SamplingParams(max_tokens=40, temperature=0.7, seed=3, grammar=Regex("([0-9]{2}-)+x")),
    SamplingParams(max_tokens=45, ignore_eos=True),
    SamplingParams(max_tokens=20, grammar=Choices(["yes", "no, never"]), min_tokens=15),
    SamplingParams(max_tokens=5, temperature=1, seed=4, grammar=JsonObject(), ignore_eos=True),
]


@pytest.fixture(scope="module")
def alone(model):
    with LLM(model, block_size=4, kv_cache_memory=2**22, max_num_seqs=1) as llm:
        return llm.generate(PROMPTS, PARAMS)


def test_outputs_obey(alone):
    person, _, dashes, _, choice, cut = (output.outputs[0] for output in alone)
    jsonschema.validate(json.loads(person.text), json.loads(PERSON.schema))
    assert re.fullmatch("([0-9]{2}-)+x", dashes.text) or dashes.finish_reason == "length"
    assert choice.text in ("yes", "no, never")
    assert [person.finish_reason, choice.finish_reason, cut.finish_reason] == ["stop", "stop", "length"]
    assert min(entry.logprob for entry in person.logprobs) < -1, "the model's own, which did not want to say this"


class Guesser:
    """Drafts what was said alone, with a wrong token now and then."""

    longest = 4

    def __init__(self, truth):
        self.truth = {tuple(output.prompt_token_ids): output.token_ids for output in truth}

    def propose(self, requests, rooms):
        drafts = []
        for request, room in zip(requests, rooms, strict=True):
            said = request.num_output_tokens
            draft = list(self.truth[tuple(request.prompt_token_ids)][said : said + room])
            if said % 3 == 1 and draft:
                draft[-1] = 40 + said % 50
            drafts.append(draft)
        return drafts

    def forget(self, request):
        pass


@pytest.mark.parametrize("way", ["together", "drafts", "preempted"])
def test_the_same_however_they_are_computed(model, alone, way):
    memory = 2**22 if way != "preempted" else 16 * 6144  # 16 blocks
    with LLM(model, block_size=4, kv_cache_memory=memory, max_num_seqs=6, max_model_len=64) as llm:
        if way == "drafts":
            llm.engine.scheduler.proposer = Guesser(alone)
        outputs = llm.generate(PROMPTS, PARAMS)
        metrics = llm.engine.metrics
        assert [o.token_ids for o in outputs] == [o.token_ids for o in alone]
        assert [o.outputs[0].finish_reason for o in outputs] == [o.outputs[0].finish_reason for o in alone]
        assert (sum(metrics.accepted) > 20) == (way == "drafts")
        assert (metrics.num_preemptions > 0) == (way == "preempted")


def test_each_of_n_outputs_follows_its_own_and_an_abort_leaves_nothing(model):
    with LLM(model, block_size=4, kv_cache_memory=2**22) as llm:
        (output,) = llm.generate([[5, 6]], SamplingParams(max_tokens=60, temperature=1, seed=1, n=4, grammar=PERSON))
        for each in output.outputs:
            jsonschema.validate(json.loads(each.text), json.loads(PERSON.schema))
        assert len({each.text for each in output.outputs}) > 1
        name = llm.add_request([5, 6], SamplingParams(grammar=JsonObject()))
        llm.step()
        (request,) = llm.engine.scheduler.running
        matcher = weakref.ref(request.matcher)
        del request
        llm.abort(name)
        gc.collect()
        assert matcher() is None
