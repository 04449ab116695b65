"""What a whole output must be: JSON of a schema, any JSON object, a match of a regex, one of some texts, or calls.

Plain values, checked for form and size when they are made; the runtime compiles them for a tokenizer's vocabulary, and
refuses there what cannot be compiled or satisfied.

A schema's keyword that would be ignored is refused: `JsonSchema` does so where JSON Schema's own rule is to ignore it
(a word that it does not know, often a misspelt one), the compiler where a known keyword is not implemented. A schema
that only endless values satisfy is refused, too.

A call of a function is written as CALL_BEGIN, CALL_NAME, its name, CALL_ARGUMENTS, a JSON object, CALL_END, and between
two calls stands CALL_BETWEEN. It is the form that the chat templates of Qwen 2.5, Qwen 3 and Hermes write.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from miniserve.core.finite_schema import has_finite_value
from miniserve.errors import InvalidRequestError

MAX_SIZE = 65536  # characters of a schema, a regex, or all choices together
MAX_CHOICES = 1024
MAX_FUNCTIONS = 128
MAX_FUNCTIONS_SIZE = 4 * MAX_SIZE  # characters of the schemas of all functions together
MAX_MULTIPLE = 10_000  # compiling takes time in proportion to the least common multiple

CALL_BEGIN = "<tool_call>"
CALL_NAME = '\n{"name": "'
CALL_ARGUMENTS = '", "arguments": '
CALL_END = "}\n</tool_call>"  # JSON cannot hold it: a line break followed by "<" stands in no value
CALL_BETWEEN = "\n"

# Keywords whose value is a schema, a list of them, or both; and those that map names to schemas.
_HOLD_SCHEMAS = {"items", "additionalItems", "additionalProperties", "prefixItems", "anyOf", "oneOf", "allOf"}
_MAP_TO_SCHEMAS = {"properties", "patternProperties", "$defs", "definitions"}
# Keywords for readers, which do not constrain a value.
_ANNOTATIONS = {
    "$schema", "$id", "$anchor", "$comment", "title", "description", "default", "example", "examples", "deprecated",
    "readOnly", "writeOnly",
}  # fmt: skip
# What constrains values. Those that the compiler does not implement are here too: it says so itself.
_CONSTRAINTS = {
    "$ref", "type", "enum", "const", "format", "pattern", "minLength", "maxLength", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems", "maxItems", "uniqueItems", "contains",
    "minContains", "maxContains", "unevaluatedItems", "required", "minProperties", "maxProperties", "propertyNames",
    "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties", "not", "if", "then", "else",
}  # fmt: skip
_KNOWN = _HOLD_SCHEMAS | _MAP_TO_SCHEMAS | _ANNOTATIONS | _CONSTRAINTS


@dataclass(frozen=True)
class JsonSchema:
    """JSON that a schema describes.

    Args:
        schema: an object of JSON Schema, as a mapping or as JSON text, which is what is kept. Properties come in
            its order.

    Raises:
        InvalidRequestError: not JSON, not an object, too large, a keyword that is not known, or a schema that refers
            to itself so that its values cannot end. Names it.

    Example:
        >>> from miniserve.core.grammar import JsonSchema
        >>> JsonSchema({"type": "object", "properties": {"act": {"type": "integer"}}, "required": ["act"]}).schema
        '{"type": "object", "properties": {"act": {"type": "integer"}}, "required": ["act"]}'
        >>> JsonSchema({"type": "object", "tint": {}})
        Traceback (most recent call last):
            ...
        miniserve.errors.InvalidRequestError: the JSON schema has the keyword 'tint', which is not supported
    """

    schema: str

    def __init__(self, schema: str | Mapping[str, Any]) -> None:
        try:
            text = schema if isinstance(schema, str) else json.dumps(schema, allow_nan=False)
            _check_size("the JSON schema", text)
            parsed = json.loads(text, parse_int=_whole_number)
            if not isinstance(parsed, dict):
                raise InvalidRequestError(f"the JSON schema is {text:.80}: it must be an object")
            multiples = set(_check_keywords(parsed, "the JSON schema"))
            ends = has_finite_value(parsed)
        except RecursionError as error:
            raise InvalidRequestError("the JSON schema is nested too deeply") from error
        except (TypeError, ValueError) as error:
            raise InvalidRequestError(f"the JSON schema is not JSON: {error}") from error
        if (product := math.prod(part for each in multiples for part in each.as_integer_ratio())) > MAX_MULTIPLE:
            raise InvalidRequestError(
                f"the JSON schema: its values of multipleOf are too fine or too coarse: as fractions, the product of "
                f"their numerators and denominators is {product:.3g}, of at most {MAX_MULTIPLE}"
            )
        if not ends:
            raise InvalidRequestError("the JSON schema refers to itself so that only endless values satisfy it")
        object.__setattr__(self, "schema", text)


@dataclass(frozen=True)
class JsonObject:
    """Any JSON object.

    Example:
        >>> from miniserve import SamplingParams
        >>> from miniserve.core.grammar import JsonObject
        >>> SamplingParams(grammar=JsonObject()).grammar
        JsonObject()
    """


@dataclass(frozen=True)
class Regex:
    """A match of all of a regular expression: Rust's syntax, without look-around and without back-references."""

    pattern: str

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str) or not self.pattern:
            raise InvalidRequestError(f"the regex is {self.pattern!r}: it must be text of at least one character")
        _check_size("the regex", self.pattern)


@dataclass(frozen=True)
class Choices:
    """One of some texts."""

    texts: tuple[str, ...]

    def __init__(self, texts: Sequence[str]) -> None:
        object.__setattr__(self, "texts", (texts,) if isinstance(texts, str) else tuple(texts))
        if not 1 <= len(self.texts) <= MAX_CHOICES:
            raise InvalidRequestError(f"there are {len(self.texts)} choices: there must be 1 to {MAX_CHOICES}")
        for text in self.texts:
            if not isinstance(text, str) or not text:
                raise InvalidRequestError(f"a choice is {text!r}: it must be text of at least one character")
        _check_size("all choices together", "".join(self.texts))


@dataclass(frozen=True)
class Function:
    """One that may be called.

    Args:
        name: 1 to 64 letters, digits, `_` and `-`.
        parameters: what its arguments are: a schema of `"type": "object"`.

    Raises:
        InvalidRequestError: not so. Names the function.
    """

    name: str
    parameters: JsonSchema

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]{1,64}", self.name, re.ASCII):
            raise InvalidRequestError(f"the function name {self.name!r:.80}: 1 to 64 of a-z, A-Z, 0-9, _ and -")
        if json.loads(self.parameters.schema).get("type") != "object":
            raise InvalidRequestError(f"the parameters of function {self.name}: the schema must say type: object")


@dataclass(frozen=True)
class ToolCalls:
    """Calls of functions; or, before or instead of them, text in which no call begins.

    Args:
        functions: which may be called; none of them: text in which no call begins is all there may be.
        required: a call comes at once.
        several: more than one may come.
        otherwise: what an output without calls must be; None: any text. With it, no text comes before a call.

    Raises:
        InvalidRequestError: too many functions, two of one name, or all schemas together too large.

    Example:
        >>> from miniserve.core.grammar import Function, JsonSchema, ToolCalls
        >>> where = JsonSchema({"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}})
        >>> calls = ToolCalls((Function("get_weather", where),), required=True, several=False)
        >>> calls.functions[0].name
        'get_weather'
    """

    functions: tuple[Function, ...]
    required: bool = False
    several: bool = True
    otherwise: JsonSchema | JsonObject | None = None

    def __post_init__(self) -> None:
        if not self.required <= len(self.functions) <= MAX_FUNCTIONS:
            raise InvalidRequestError(
                f"{len(self.functions)} functions: {int(self.required)} to {MAX_FUNCTIONS} may be"
            )
        names = [function.name for function in self.functions]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidRequestError(f"two functions have the name {twice}")
        if (size := sum(len(each.parameters.schema) for each in self.functions)) > MAX_FUNCTIONS_SIZE:
            raise InvalidRequestError(
                f"the schemas of all functions together: {size} characters, of at most {MAX_FUNCTIONS_SIZE}"
            )


Grammar = JsonSchema | JsonObject | Regex | Choices | ToolCalls


def _whole_number(digits: str) -> int:
    """The compiler reads numbers as float64, which would make another number of a larger one."""
    if len(digits) > 17 or abs(int(digits)) > 2**53:
        raise InvalidRequestError(f"the JSON schema has the number {digits:.40}: at most 2^53 is exact")
    return int(digits)


def _check_size(what: str, text: str) -> None:
    if len(text) > MAX_SIZE:
        raise InvalidRequestError(f"{what}: {len(text)} characters, of at most {MAX_SIZE}")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequestError(f"{what}: half of a surrogate pair is no character")


def _check_keywords(schema: Any, where: str) -> Iterator[Fraction]:
    """Refuse unknown keywords in a schema and those inside it, and give out the values of `multipleOf`.

    What has another form than its keyword asks for is the compiler's to refuse.
    """
    if not isinstance(schema, dict):
        return
    for keyword, value in schema.items():
        if keyword not in _KNOWN:
            raise InvalidRequestError(f"{where} has the keyword {keyword!r:.80}, which is not supported")
        if keyword == "multipleOf" and isinstance(value, int | float) and value > 0:
            yield Fraction(str(value))
        if keyword in _MAP_TO_SCHEMAS and isinstance(value, dict):
            for name, each in value.items():
                yield from _check_keywords(each, f"{where}, {keyword}/{name:.80}")
        elif keyword in _HOLD_SCHEMAS:
            for each in value if isinstance(value, list) else (value,):
                yield from _check_keywords(each, f"{where}, {keyword}")
