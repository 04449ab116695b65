"""Grammars are refused when they are made if their form or size is wrong; the words of a schema are all known ones."""

import json
import pickle

import pytest

from miniserve.core.grammar import MAX_SIZE, Choices, Function, JsonObject, JsonSchema, Regex, ToolCalls
from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ("{", "not JSON"),
        ("[1]", "must be an object"),
        ("true", "must be an object"),
        ({"type": "string", "maxlength": 3}, "'maxlength', which is not supported"),
        ({"properties": {"a": {"items": [{"nullable": True}]}}}, "properties/a, items has the keyword 'nullable'"),
        ({"anyOf": [{"type": "null"}, {"typ": 1}]}, "anyOf has the keyword 'typ'"),
        ({"default": float("nan")}, "not JSON"),
        ({"default": {1, 2}}, "not JSON"),
        ({"const": "\ud800"}, None),  # an escape in JSON text is the compiler's to judge
        ('{"const": "\ud800"}', "half of a surrogate pair"),
        ("[" * 100_000, "at most 65536"),
        ("[" * 60_000, "nested too deeply"),
        ({"const": 2**53}, None),
        ({"enum": [-(2**53) - 1]}, "number -9007199254740993"),
        ('{"minimum": ' + "9" * 5000 + "}", "at most 2\\^53"),
        ({"multipleOf": 1_000_003}, "multipleOf"),
        ({"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}, "multipleOf"),
        ({"$ref": "#"}, "only endless values"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "only endless values"),
        ({"multipleOf": 0.01, "properties": {"multipleOf": {"enum": ["nullable"]}, "x": {"multipleOf": 7}}}, None),
    ],
)
def test_schemas(schema, says):
    if says is None:
        kept = json.loads(JsonSchema(schema).schema)
        assert kept == schema
        return
    with pytest.raises(InvalidRequestError, match=says):
        JsonSchema(schema)


ANY = JsonSchema({"type": "object"})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Regex(""), "at least one character"),
        (lambda: Regex("a" * (MAX_SIZE + 1)), "65537 characters, of at most 65536"),
        (lambda: Regex("\udc00"), "surrogate"),
        (lambda: Choices([]), "0 choices"),
        (lambda: Choices(["a", ""]), "at least one character"),
        (lambda: Choices(["a"] * 1025), "1025 choices: there must be 1 to 1024"),
        (lambda: Choices(["a" * 40_000, "b" * 40_000]), "80000 characters"),
        (lambda: Function("a b", ANY), "function name 'a b'"),
        (lambda: Function("é", ANY), "function name"),
        (lambda: Function("f", JsonSchema({})), "parameters of function f: the schema must say type: object"),
        (lambda: ToolCalls((Function("f", ANY), Function("f", ANY))), "two functions have the name f"),
        (lambda: ToolCalls((), required=True), "0 functions: 1 to 128"),
        (lambda: ToolCalls(tuple(Function(f"f{i}", ANY) for i in range(129))), "129 functions: 0 to 128"),
        (
            lambda: ToolCalls(
                tuple(Function(f"f{i}", JsonSchema({"type": "object", "title": "x" * 60_000})) for i in range(5))
            ),
            "of at most 262144",
        ),
        (lambda: SamplingParams(grammar={"type": "object"}), "must be a JsonSchema"),
    ],
)
def test_other_grammars(make, says):
    with pytest.raises(InvalidRequestError, match=says):
        make()


def test_a_grammar_is_a_value_and_keeps_the_order_of_properties():
    schema = JsonSchema({"properties": {"b": {}, "a": {}}})
    assert list(json.loads(schema.schema)["properties"]) == ["b", "a"]
    assert schema == JsonSchema(schema.schema) != JsonSchema({"properties": {"a": {}, "b": {}}})
    for grammar in (schema, JsonObject(), Regex("a"), Choices("yes"), ToolCalls((Function("f", ANY),))):
        params = SamplingParams(grammar=grammar)
        assert pickle.loads(pickle.dumps(params)) == params
        assert hash(grammar) == hash(pickle.loads(pickle.dumps(grammar)))
