"""Schemas whose values can end, and those whose cannot: found by building a value, as an independent reference."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.core.finite_schema import has_finite_value
from miniserve.errors import InvalidRequestError


def least_depth(schema, document, depth):
    """The nesting of the flattest value, by trying all depths up to a bound; None if there is none."""
    if schema is True or depth < 0:
        return None if depth < 0 else 0
    if "$ref" in schema:
        return least_depth(document["$defs"][schema["$ref"].split("/")[-1]], document, depth - 1)
    if "anyOf" in schema:
        found = [least_depth(each, document, depth - 1) for each in schema["anyOf"]]
        return min((each for each in found if each is not None), default=None)
    inner = [schema["properties"][name] for name in schema.get("required", ())] + [
        schema.get("items", True)
    ] * schema.get("minItems", 0)
    found = [least_depth(each, document, depth - 1) for each in inner]
    return None if None in found else max(found, default=0) + 1


NAMES = ["a", "b", "c"]
REFERENCES = st.sampled_from(NAMES).map(lambda name: {"$ref": f"#/$defs/{name}"})


def _containers(inner):
    objects = st.builds(
        lambda properties, count: {"type": "object", "properties": properties, "required": [*properties][:count]},
        st.dictionaries(st.sampled_from("xy"), inner, max_size=2), st.integers(0, 2),
    )  # fmt: skip
    arrays = st.builds(
        lambda items, least: {"type": "array", "items": items, "minItems": least}, inner, st.integers(0, 1)
    )
    return st.one_of(objects, arrays, st.lists(inner, min_size=1, max_size=2).map(lambda ways: {"anyOf": ways}))


SCHEMAS = st.recursive(st.one_of(REFERENCES, st.just({"type": "null"})), _containers, max_leaves=4)


@settings(max_examples=60, deadline=None)
@given(
    document=st.builds(
        lambda root, *defs: {**root, "$defs": dict(zip(NAMES, defs, strict=True))}, SCHEMAS, *[SCHEMAS] * 3
    )
)
def test_as_building_a_value_finds(document):
    assert has_finite_value(document) == (least_depth(document, document, 20) is not None)


@pytest.mark.parametrize(
    ("schema", "ends"),
    [
        ({"$ref": "#"}, False),
        ({"type": "object", "required": ["a"], "additionalProperties": {"$ref": "#"}}, False),
        ({"type": "object", "required": ["a"], "patternProperties": {"a": {"$ref": "#"}}}, True),
        ({"type": ["object", "null"], "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, True),
        ({"type": "array", "prefixItems": [{}, {"$ref": "#"}], "minItems": 1}, True),
        ({"type": "array", "prefixItems": [{}, {"$ref": "#"}], "minItems": 2}, False),
        ({"allOf": [{}, {"$ref": "#/allOf/1"}]}, False),
        ({"oneOf": [{"$ref": "#/oneOf/0"}, {"$ref": "#/oneOf/1"}]}, False),
        ({"properties": {"a/b": {"$ref": "#/properties/a~1b"}}, "type": "object", "required": ["a/b"]}, False),
        ({"$ref": "#/nowhere"}, True),
        ({"$ref": "http://example.org"}, True),
        ({"$ref": ["#"], "required": [[]], "type": "object", "minItems": "x"}, True),
    ],
)  # fmt: skip
def test_by_hand(schema, ends):
    assert has_finite_value(schema) is ends


def test_what_takes_long_to_tell_is_refused_soon():
    chain = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(1200)}
    begun = time.perf_counter()
    with pytest.raises(InvalidRequestError, match="too many references"):
        has_finite_value({"$ref": "#/$defs/d0", "$defs": chain})
    assert time.perf_counter() - begun < 2
