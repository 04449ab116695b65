"""What Dynamo's frontend sends, as it was seen to send it, and what the engine is asked for."""

import pytest

from miniserve.core.grammar import Choices, JsonObject, JsonSchema, Regex
from miniserve.core.sampling_params import SamplingParams
from miniserve.dynamo.requests import params_of
from miniserve.errors import InvalidRequestError

EOS = frozenset({2})


def request(stop=(), sampling=(), output=()):
    """With every field that a frontend of 1.4.2 sends, most of them empty."""
    names = ("n", "best_of", "presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p")
    names += ("top_k", "min_p", "use_beam_search", "length_penalty", "seed", "include_stop_str_in_output")
    ends = ("max_tokens", "stop", "stop_token_ids", "stop_token_ids_visible", "min_tokens", "ignore_eos")
    told = ("logprobs", "prompt_logprobs", "skip_special_tokens", "formatted_prompt", "return_tokens_as_token_ids")
    return {
        "token_ids": [1, 2, 3],
        "stop_conditions": dict.fromkeys([*ends, "max_thinking_tokens"]) | {"stop_token_ids_hidden": [2]} | dict(stop),
        "sampling_options": dict.fromkeys([*names, "guided_decoding"]) | dict(sampling),
        "output_options": dict.fromkeys(told) | dict(output),
        "eos_token_ids": [2],
        "annotations": [],
    }


def test_what_is_not_said_is_the_apis_default():
    assert params_of(request(), EOS) == SamplingParams(temperature=1.0)


def test_everything_that_the_engine_has_arrives():
    asked = request(
        stop={"max_tokens": 9, "min_tokens": 2, "ignore_eos": True, "stop": ["zz"], "stop_token_ids_hidden": [2, 7, 5]},
        sampling={
            "temperature": 0.5, "top_p": 0.9, "top_k": 4, "min_p": 0.1, "seed": 3, "n": 1,
            "presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.1,
        },
        output={"logprobs": 2, "skip_special_tokens": True},
    )  # fmt: skip
    assert params_of(asked, EOS) == SamplingParams(
        max_tokens=9, min_tokens=2, ignore_eos=True, stop_token_ids=[5, 7], temperature=0.5, top_p=0.9, top_k=4,
        min_p=0.1, seed=3, presence_penalty=0.5, frequency_penalty=-0.5, repetition_penalty=1.1, logprobs=2,
    )  # fmt: skip


def test_every_token_counts_as_top_k():
    assert params_of(request(sampling={"top_k": -1}), EOS).top_k == 0


@pytest.mark.parametrize(
    ("guided", "grammar"),
    [
        ({"json": {"type": "object"}, "regex": None}, JsonObject()),
        (
            {"json": {"type": "object", "properties": {"a": {"type": "null"}}}},
            JsonSchema({"type": "object", "properties": {"a": {"type": "null"}}}),
        ),
        ({"regex": "a+"}, Regex("a+")),
        ({"choice": ["yes", "no"]}, Choices(["yes", "no"])),
    ],
)
def test_a_form_is_a_grammar(guided, grammar):
    assert params_of(request(sampling={"guided_decoding": guided}), EOS).grammar == grammar


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (request(sampling={"n": 2}), "n is 2: a worker computes one output"),
        (request(sampling={"use_beam_search": True}), "use_beam_search in sampling_options: not supported"),
        (request(stop={"max_thinking_tokens": 5}), "max_thinking_tokens in stop_conditions"),
        (request(output={"prompt_logprobs": 1}), "prompt_logprobs in output_options"),
        (request(sampling={"temperature": -1}), "temperature"),
        (request(stop={"max_tokens": 0}), "max_tokens"),
        (request(sampling={"guided_decoding": {"grammar": "root"}}), "guided_decoding by grammar"),
        (request(sampling={"guided_decoding": {"regex": "a", "choice": ["a"]}}), "by choice, regex"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(asked, says):
    with pytest.raises(InvalidRequestError, match=says):
        params_of(asked, EOS)
