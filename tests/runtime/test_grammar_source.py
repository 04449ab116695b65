"""What the compiler is told: of JSON, how much white space may stand between two parts."""

import pytest
from llguidance import LLMatcher, LLTokenizer

from miniserve.core.grammar import CALL_ARGUMENTS, CALL_BEGIN, CALL_NAME, Function, JsonObject, JsonSchema, ToolCalls
from miniserve.runtime.grammar_source import source

SCHEMA = JsonSchema(
    {
        "type": "object",
        "properties": {"a": {"type": "array"}, "b": {"type": "string"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
)
CALL = f"{CALL_BEGIN}{CALL_NAME}f{CALL_ARGUMENTS}"


@pytest.mark.parametrize(
    ("grammar", "before"),
    [(SCHEMA, ""), (JsonObject(), ""), (ToolCalls((Function("f", SCHEMA),)), CALL)],
    ids=["schema", "object", "call"],
)
@pytest.mark.parametrize(
    "text", ["{", '{"a"', '{"a":', '{"a":[', '{"a":[1', '{"a":[1,', '{"a":[1],', '{"a":[1],"b":"x"']
)
def test_white_space_between_the_parts_of_json_ends(grammar, before, text):
    matcher = LLMatcher(LLTokenizer("byte"), source(grammar))
    assert matcher.consume_tokens([*(before + text).encode()])
    for blank in b" \n\r\t":
        assert matcher.validate_tokens([blank] * 100) == 32


def test_white_space_within_a_string_is_text():
    matcher = LLMatcher(LLTokenizer("byte"), source(SCHEMA))
    assert matcher.consume_tokens([*b'{"a":[],"b":"'])
    assert matcher.validate_tokens([*b" " * 100]) == 100
