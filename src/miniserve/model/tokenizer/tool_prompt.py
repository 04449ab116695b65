"""Conversations with functions, in the form that a model's chat template can write.

A template that knows functions and writes calls in our form (core/grammar.py) is given them as they are; which kind it
is, it shows when it is asked to write a call. For any other the functions stand in a text of ours in the system
message, calls in the assistant's own text, and a function's result in a user message: all templates know these roles.
What a model makes of our text depends on what it was trained on; that a call obeys the function's schema does not, as
decoding is held to it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from miniserve.core.grammar import CALL_ARGUMENTS, CALL_BEGIN, CALL_BETWEEN, CALL_END, CALL_NAME
from miniserve.errors import ChatTemplateError
from miniserve.model.tokenizer.chat_template import ChatTemplate

Messages = Sequence[Mapping[str, Any]]

INSTRUCTIONS = (
    "You can call functions. Each of these lines describes one as JSON, with the schema of its arguments:\n\n"
    "%s\n\n"
    "To call a function, write its name and arguments as JSON, in this form and with nothing behind it:\n\n"
    f"{CALL_BEGIN}{CALL_NAME}NAME{CALL_ARGUMENTS}{{...}}{CALL_END}\n\n"
    "The result then comes between <tool_response> and </tool_response>. Call a function only where it helps to answer."
)


def for_template(
    template: ChatTemplate, messages: Messages, tools: Messages | None
) -> tuple[Messages, Messages | None]:
    """Messages and tools to render.

    Args:
        template: the model's.
        messages: may have `tool_calls`, whose `arguments` are mappings, and the role `tool`.
        tools: in the form of the OpenAI API; None or empty: none.
    """
    tools = tools or None
    if tools is None and not any(message.get("tool_calls") or message["role"] == "tool" for message in messages):
        return messages, None
    if writes_calls(template):
        return messages, tools
    written: list[dict[str, Any]] = []
    for before, message in zip([None, *messages], messages, strict=False):
        if before and before["role"] == message["role"] == "tool":  # one turn: some templates want turns to alternate
            written[-1]["content"] += "\n" + _written(message)["content"]
        else:
            written.append(_written(message))
    if tools is not None:
        lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
        text = INSTRUCTIONS % lines
        if written[0]["role"] == "system":
            written[0] = {**written[0], "content": f"{written[0]['content']}\n\n{text}"}
        else:
            written.insert(0, {"role": "system", "content": text})
    return written, None


def writes_calls(template: ChatTemplate) -> bool:
    """Whether it lists the functions it is given, and writes a call as we read it."""
    name, arguments = "lookup_probe", {"key": "value"}
    call = {"id": "call00001", "type": "function", "function": {"name": name, "arguments": arguments}}
    tool = {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object"}}}
    user = {"role": "user", "content": "?"}
    try:
        listed = template.render([user], tools=[tool])
        shown = template.render([user, {"role": "assistant", "content": "", "tool_calls": [call]}])
    except ChatTemplateError:
        return False
    return name in listed and _call(name, arguments) in shown


def _call(name: str, arguments: Any) -> str:
    return f"{CALL_BEGIN}{CALL_NAME}{name}{CALL_ARGUMENTS}{json.dumps(arguments, ensure_ascii=False)}{CALL_END}"


def _written(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without what only some templates know."""
    content = message.get("content") or ""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    calls = [_call(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or ()]
    others = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**others, "content": CALL_BETWEEN.join([*([content] if content else []), *calls])}
