"""Grammars in the language of the compiler, llguidance: Lark, with JSON schemas and regular expressions inside.

White space between JSON's parts is bounded: a small model left free to indent does so for ever.
"""

import json
import re

from miniserve.core.grammar import (
    CALL_ARGUMENTS,
    CALL_BEGIN,
    CALL_BETWEEN,
    CALL_END,
    CALL_NAME,
    Choices,
    Grammar,
    JsonObject,
    JsonSchema,
    Regex,
    ToolCalls,
)

_JSON_OPTIONS = {
    "lenient": False,
    "coerce_one_of": False,
    "whitespace_flexible": True,
    "whitespace_pattern": r"[ \n\r\t]{1,32}",
}


def source(grammar: Grammar) -> str:
    """What the compiler reads. Raises ValueError where that fails."""
    from llguidance import LLMatcher

    match grammar:
        case JsonSchema(schema):
            return LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS)  # type: ignore[arg-type]
        case JsonObject():
            return LLMatcher.grammar_from_json_schema('{"type": "object"}', overrides=_JSON_OPTIONS)  # type: ignore[arg-type]
        case Regex(pattern):
            return LLMatcher.grammar_from_regex(pattern)
        case Choices(texts):
            return LLMatcher.grammar_from_regex("|".join(map(re.escape, texts)))
        case ToolCalls():
            return LLMatcher.grammar_from_lark(_calls(grammar))


def _calls(grammar: ToolCalls) -> str:
    """Calls, and what may come instead.

    Free text ends by itself where a call begins, as `opening` is lazy: from there on the call's own rules hold.
    """
    begin, name, arguments, end, between = map(
        json.dumps, (CALL_BEGIN, CALL_NAME, CALL_ARGUMENTS, CALL_END, CALL_BETWEEN)
    )
    more = f"({between} {begin} body)*" if grammar.several else ""
    rules = [f"body: {name} function {end}", f"calls: {begin} body {more}"]
    functions = [f"f{index}" for index, _ in enumerate(grammar.functions)]
    for rule, function in zip(functions, grammar.functions, strict=True):
        rules.append(f"{rule}: {json.dumps(function.name)} {arguments} %json {_with_options(function.parameters)}")
    rules.append(f"function: {' | '.join(functions)}")
    if not functions:
        rules = []
    if grammar.required:
        start = "calls"
    elif grammar.otherwise is not None:
        start = "otherwise | calls" if functions else "otherwise"
        rules.append(f"otherwise: %json {_with_options(grammar.otherwise)}")
    else:
        start = f"TEXT | opening body {more}" if functions else "TEXT"
        rules += [f"opening[lazy]: /(.|\\n)*{CALL_BEGIN}/", f"TEXT: /(.|\\n)*/ & ~/(.|\\n)*{CALL_BEGIN}(.|\\n)*/"]
    return "\n".join(("%llguidance {}", f"start: {start}", *rules, ""))


def _with_options(schema: JsonSchema | JsonObject) -> str:
    """A schema that carries the compiler's options inside."""
    parsed = json.loads(schema.schema) if isinstance(schema, JsonSchema) else {"type": "object"}
    return json.dumps({**parsed, "x-guidance": _JSON_OPTIONS})


def beginnings(grammar: Grammar) -> list[str]:
    """Texts at which a grammar's alternatives are most: where an object's first property comes."""
    match grammar:
        case JsonSchema() | JsonObject():
            return ['{"']
        case ToolCalls(functions):
            return [f'{CALL_BEGIN}{CALL_NAME}{function.name}{CALL_ARGUMENTS}{{"' for function in functions]
        case _:
            return []
