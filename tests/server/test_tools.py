"""Functions that the model may call, as the official client sees them: whole and streamed, forced and free."""

import json
from typing import Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel

WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


def tool(name="weather", parameters=WEATHER, **more):
    return {
        "type": "function",
        "function": {"name": name, "description": "What it is.", "parameters": parameters, **more},
    }


OTHER = {"type": "function", "function": {"name": "now"}}
NAMED = {"type": "function", "function": {"name": "weather"}}
ASK = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server(start):
    with start() as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return server.openai()


def chat(client, **options):
    given = {
        "model": "tiny",
        "messages": ASK,
        "temperature": 1,
        "seed": 1,
        "max_completion_tokens": 1000,
        "tools": [tool(), OTHER],
    }
    return client.chat.completions.create(**given | options)


def put_together(chunks, wanted=0):
    """Content, [id, name, arguments] of each call, and the finish reason, of one choice of a stream."""
    text, calls, reasons = "", [], []
    for choice in (choice for chunk in chunks for choice in chunk.choices if choice.index == wanted):
        text += choice.delta.content or ""
        for part in choice.delta.tool_calls or ():
            if part.id is not None:
                assert (part.index, part.type) == (len(calls), "function")
                calls.append([part.id, part.function.name, ""])
            else:
                assert part.function.name is None
            calls[part.index][2] += part.function.arguments
        reasons.append(choice.finish_reason)
    assert reasons[:-1] == [None] * (len(reasons) - 1)
    return text, calls, reasons[-1]


def test_a_named_function_is_called(client):
    whole = chat(client, tool_choice=NAMED).choices[0]
    (call,) = whole.message.tool_calls
    assert (whole.message.content, whole.finish_reason, call.type, call.function.name) == (
        None,
        "tool_calls",
        "function",
        "weather",
    )
    jsonschema.validate(json.loads(call.function.arguments), WEATHER)
    chunks = list(chat(client, tool_choice=NAMED, stream=True))
    text, ((_, name, arguments),), reason = put_together(chunks)
    assert (text, name, arguments, reason) == ("", "weather", call.function.arguments, "tool_calls")
    first = chunks[0].choices[0].delta
    assert (first.role, first.content, first.tool_calls[0].function.name) == ("assistant", None, "weather")
    assert sum(bool(chunk.choices[0].delta.tool_calls) for chunk in chunks) > 3, "arguments come as they are made"


def test_required_one_or_several(client):
    options = {"tool_choice": "required", "n": 5, "max_completion_tokens": 200}
    seen, most, streamed = set(), 0, list(chat(client, **options, stream=True))
    for choice in chat(client, **options).choices:
        calls = [call.function for call in choice.message.tool_calls]
        text, parts, reason = put_together(streamed, choice.index)
        assert (text, reason) == ("", choice.finish_reason)
        assert [each[1:] for each in parts] == [[call.name, call.arguments] for call in calls]
        assert len({each[0] for each in parts}) == len(parts)
        for call in calls if reason == "tool_calls" else calls[:-1]:
            jsonschema.validate(json.loads(call.arguments), WEATHER if call.name == "weather" else {"maxProperties": 0})
        seen |= {call.name for call in calls}
        most = max(most, len(calls))
    assert seen == {"weather", "now"}
    assert most > 1
    for choice in chat(client, **options, parallel_tool_calls=False).choices:
        assert (len(choice.message.tool_calls), choice.finish_reason) == (1, "tool_calls")


def test_auto_is_text_or_calls(client):
    """What the format allows without a call is one word, so that a random model makes both."""
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"const": 5}}}
    options = {"response_format": form, "n": 12, "parallel_tool_calls": False}
    seen, streamed = set(), list(chat(client, **options, stream=True))
    for choice in chat(client, **options).choices:
        calls, text = choice.message.tool_calls, choice.message.content
        found = (text, choice.finish_reason, len(calls or ()))
        assert found in (("5", "stop", 0), (None, "tool_calls", 1))
        said, parts, reason = put_together(streamed, choice.index)
        assert (said, reason) == (text or "", choice.finish_reason)
        assert [each[2] for each in parts] == [call.function.arguments for call in calls or ()]
        seen.add(reason)
    assert seen == {"stop", "tool_calls"}
    free = chat(client, max_completion_tokens=30)
    assert free.choices[0].finish_reason == "length"
    assert len(free.choices[0].message.content) > 20
    assert put_together(chat(client, max_completion_tokens=30, stream=True))[0] == free.choices[0].message.content


def test_none_is_text_and_the_model_is_told_of_nothing(client):
    plain = chat(client, tools=openai.NOT_GIVEN, max_completion_tokens=20)
    none = chat(client, tool_choice="none", max_completion_tokens=20)
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens
    assert (none.choices[0].message.tool_calls, none.usage.completion_tokens) == (None, 20)
    assert chat(client, max_completion_tokens=1).usage.prompt_tokens > plain.usage.prompt_tokens + 100


@pytest.mark.parametrize("stop", [None, '"days'])
def test_a_call_that_is_cut_is_reported_as_far_as_it_came(client, stop):
    most = 1000 if stop else 60
    options = {"tool_choice": NAMED, "max_completion_tokens": most, "stop": stop}
    reply = chat(client, **options).choices[0]
    (call,) = reply.message.tool_calls
    assert reply.finish_reason == ("stop" if stop else "length")
    with pytest.raises(json.JSONDecodeError):
        json.loads(call.function.arguments)
    streamed = put_together(chat(client, **options, stream=True))
    assert (streamed[1][0][2], streamed[2]) == (call.function.arguments, reply.finish_reason)
    headless = chat(client, tool_choice=NAMED, max_completion_tokens=15).choices[0]
    assert (headless.message.content, headless.message.tool_calls, headless.finish_reason) == ("", None, "length")


def test_several_outputs_and_logprobs(client):
    reply = chat(client, tool_choice=NAMED, n=3, logprobs=True)
    assert [len(choice.message.tool_calls) for choice in reply.choices] == [1, 1, 1]
    assert sum(len(choice.logprobs.content) for choice in reply.choices) == reply.usage.completion_tokens


class Forecast(BaseModel):
    """The client makes a strict schema of it."""

    city: Literal["Rome", "Oslo"]
    days: Literal[1, 2]


def test_the_client_s_own_helpers(client):
    asked = {
        "model": "tiny", "messages": ASK, "tools": [openai.pydantic_function_tool(Forecast)], "tool_choice": "required",
        "parallel_tool_calls": False, "temperature": 1,
    }  # fmt: skip
    message = client.chat.completions.parse(**asked).choices[0].message
    forecast = message.tool_calls[0].function.parsed_arguments
    assert isinstance(forecast, Forecast)
    with client.chat.completions.stream(**asked) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion().choices[0].message.tool_calls[0].function
    assert isinstance(final.parsed_arguments, Forecast)
    assert "tool_calls.function.arguments.delta" in events
    answer = client.chat.completions.parse(model="tiny", messages=ASK, response_format=Forecast, temperature=1)
    assert isinstance(answer.choices[0].message.parsed, Forecast)


def test_the_conversation_goes_on_with_the_result(server, client):
    message = chat(client, tool_choice=NAMED).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}
    for turn in (message, message.model_dump()):
        assert chat(client, messages=[*ASK, turn, result], max_completion_tokens=3).choices[0].finish_reason == "length"
    body = {"messages": [*ASK, message.model_dump(), result], "tools": [tool()]}
    tokens = server.http.post("/tokenize", json=body).json()["tokens"]
    prompt = server.http.post("/detokenize", json={"tokens": tokens}).json()["prompt"]
    arguments = json.dumps(json.loads(message.tool_calls[0].function.arguments))
    call = f'<tool_call>\n{{"name": "weather", "arguments": {arguments}}}\n</tool_call>'
    assert prompt.endswith(f"user: hiassistant: {call}user: <tool_response>\nrain\n</tool_response>")
    assert prompt.startswith("system: You can call functions.")
    assert json.dumps(tool()["function"]) in prompt


def called(arguments="{}", name="c1"):
    return {
        "role": "assistant",
        "tool_calls": [{"id": name, "type": "function", "function": {"name": "f", "arguments": arguments}}],
    }


RESULT = {"role": "tool", "tool_call_id": "c1", "content": "x"}


@pytest.mark.parametrize(
    ("options", "param", "says"),
    [
        ({"tools": [tool("a b")]}, "tools", "tools.0: the function name 'a b'"),
        ({"tools": [OTHER, tool(parameters={"type": "array"})]}, "tools", "tools.1: the parameters of function weather: the schema must say type: object"),
        ({"tools": [tool(parameters={"type": "object", "propertyNamez": {}})]}, "tools", "keyword 'propertyNamez'"),
        ({"tools": [tool(parameters={"type": "object", "not": {}})]}, "tools", "parameters of function weather: Unimplemented keys"),
        ({"tools": [tool(), tool()]}, "tools", "two functions have the name weather"),
        ({"tools": [tool(colour="red")]}, "tools", "tools.0.function.colour"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools", "tools.0"),
        ({"tools": [], "tool_choice": "auto"}, "tool_choice", "tool_choice needs tools"),
        ({"tools": [], "parallel_tool_calls": False}, "parallel_tool_calls", "needs tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice", "names 'other', which is not among tools"),
        ({"tool_choice": "any"}, "tool_choice", "'none', 'auto' or 'required'"),
        ({"functions": [{"name": "f"}]}, "functions", "functions is not supported"),
        ({"messages": [*ASK, RESULT]}, "messages", "messages.1.tool_call_id: no assistant's message before it has a call 'c1'"),
        ({"messages": [*ASK, called(name="c2"), RESULT]}, "messages", "messages.2.tool_call_id"),
        ({"messages": [*ASK, called("[1]"), RESULT]}, "messages", "arguments of tool call c1 are no JSON object"),
        ({"messages": [*ASK, called("{"), RESULT]}, "messages", "arguments of tool call c1"),
        ({"messages": [*ASK, called() | {"role": "user"}]}, "messages", "a message of role user has tool_calls"),
        ({"messages": [*ASK, called(), {"role": "tool", "content": "x"}]}, "messages", "role tool needs a tool_call_id"),
        ({"messages": [{"role": "assistant"}]}, "messages", "role assistant needs content"),
    ],
)  # fmt: skip
def test_refused_by_name(client, options, param, says):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, **options)
    assert caught.value.param == param
    assert says in caught.value.message
