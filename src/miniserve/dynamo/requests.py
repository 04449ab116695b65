"""A request as Dynamo's frontend sends it to a worker, as what the engine is asked for.

The frontend has made token ids of the prompt and makes text of the output; it looks for stop strings itself. What is
left is read here. A field that has a value and is not known is refused by name, so that nothing is ignored.
"""

from collections.abc import Mapping
from typing import Any

from miniserve.core.grammar import Choices, Grammar, JsonObject, JsonSchema, Regex
from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import InvalidRequestError

# By group: fields that are the engine's own, by the same name; those that are read in another way; and those that are
# the frontend's business.
ENGINE = {
    "stop_conditions": {"max_tokens", "min_tokens", "ignore_eos"},
    "sampling_options": {
        "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty",
    },
    "output_options": {"logprobs"},
}  # fmt: skip
READ = {
    "stop_conditions": {"stop_token_ids", "stop_token_ids_visible", "stop_token_ids_hidden"},
    "sampling_options": {"n", "best_of", "guided_decoding"},
    "output_options": set[str](),
}
FRONTEND = {
    "stop_conditions": {"stop"},
    "sampling_options": {"include_stop_str_in_output"},
    "output_options": {"skip_special_tokens", "formatted_prompt", "return_tokens_as_token_ids"},
}


def params_of(request: Mapping[str, Any], eos_token_ids: frozenset[int]) -> SamplingParams:
    """What is asked for.

    Args:
        request: Dynamo's `GenerateRequest`.
        eos_token_ids: of the model: the frontend names them among the ids that end an output.

    Raises:
        InvalidRequestError: out of range, or not supported; names the field.
    """
    given = {group: _values(request, group) for group in ENGINE}
    sampling, stops = given["sampling_options"], given["stop_conditions"]
    for name in ("n", "best_of"):
        if sampling.get(name, 1) != 1:
            raise InvalidRequestError(f"{name} is {sampling[name]}: a worker computes one output of a request")
    asked = {name: value for group, names in ENGINE.items() for name, value in given[group].items() if name in names}
    asked.setdefault("temperature", 1.0)  # the API's own; the engine's is 0
    if asked.get("top_k") == -1:  # the API's word for "off"
        asked["top_k"] = 0
    named = {token for name in READ["stop_conditions"] for token in stops.get(name, ())}
    guided = sampling.get("guided_decoding")
    return SamplingParams(
        **asked, stop_token_ids=sorted(named - eos_token_ids), grammar=_grammar(guided) if guided else None
    )


def _values(request: Mapping[str, Any], group: str) -> dict[str, Any]:
    """The group's fields that have a value."""
    values = {name: value for name, value in (request.get(group) or {}).items() if value is not None}
    unknown = sorted(values.keys() - ENGINE[group] - READ[group] - FRONTEND[group])
    if unknown:
        raise InvalidRequestError(f"{', '.join(unknown)} in {group}: not supported")
    return values


def _grammar(guided: Mapping[str, Any]) -> Grammar:
    """Of the one way in which a form is asked for."""
    given = {name: value for name, value in guided.items() if value is not None}
    match given:
        case {"json": {"type": "object", **more}} if len(given) == 1 and not more:
            return JsonObject()
        case {"json": dict() | str() as schema} if len(given) == 1:
            return JsonSchema(schema)
        case {"regex": str() as pattern} if len(given) == 1:
            return Regex(pattern)
        case {"choice": list() as choices} if len(given) == 1:
            return Choices(choices)
    raise InvalidRequestError(
        f"guided_decoding by {', '.join(sorted(given))}: one of json, regex and choice is supported"
    )
