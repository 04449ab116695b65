"""Requests of the OpenAI API that hold a conversation, with the functions that a model may call. See `protocol`."""

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from miniserve.core.grammar import Function, Grammar, JsonSchema, ToolCalls
from miniserve.errors import InvalidRequestError
from miniserve.server.errors import APIError
from miniserve.server.protocol import GenerationRequest
from miniserve.server.strict import Listed, Strict


class TextPart(Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class CalledFunction(Strict):
    """What was called."""

    name: str
    arguments: str = Field(description="A JSON object, as text.")


class ToolCall(Strict):
    """A call that the assistant made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Strict):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Listed[TextPart] = ""
    name: str | None = None
    tool_calls: Listed[ToolCall] = Field(default_factory=list, description="Of the assistant.")
    tool_call_id: str | None = Field(None, description="Of a tool's message: the call that it is the result of.")

    @model_validator(mode="after")
    def _has_what_its_role_has(self) -> "Message":
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"a message of role {self.role} has tool_calls: only the assistant's can")
        if (self.tool_call_id is None) == (self.role == "tool"):
            raise ValueError(
                f"a message of role {self.role} {'needs a' if self.role == 'tool' else 'has a'} tool_call_id"
            )
        if "content" not in self.model_fields_set and not self.tool_calls:
            raise ValueError(f"a message of role {self.role} needs content")
        return self

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it: the content one text, the arguments of calls objects.

        Raises:
            APIError: arguments are no JSON object.
        """
        parts = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        turn: dict[str, Any] = {"role": self.role, "content": parts}
        if self.name is not None:
            turn["name"] = self.name
        if self.tool_call_id is not None:
            turn["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": _object(call)},
                }
                for call in self.tool_calls
            ]
        return turn


def _object(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.function.arguments)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise APIError(400, f"the arguments of tool call {call.id} are no JSON object", param="messages")
    return arguments


def turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """For the template.

    Raises:
        APIError: a tool's message belongs to no call before it, or arguments are no JSON object.
    """
    known: set[str] = set()
    for index, message in enumerate(messages):
        if message.tool_call_id is not None and message.tool_call_id not in known:
            problem = (
                f"messages.{index}.tool_call_id: no assistant's message before it has a call {message.tool_call_id!r}"
            )
            raise APIError(400, problem, param="messages", code="invalid_value")
        known |= {call.id for call in message.tool_calls}
    return [message.for_template() for message in messages]


class FunctionTool(Strict):
    """A function. Its schema is always followed to the letter, `strict` or not."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = Field(
        {"type": "object", "properties": {}, "additionalProperties": False}, description="A schema; default: none."
    )
    strict: bool = False


class Tool(Strict):
    """What the model may call."""

    type: Literal["function"]
    function: FunctionTool

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it."""
        function = self.function
        about = {"description": function.description} if function.description else {}
        return {"type": "function", "function": {"name": function.name, **about, "parameters": function.parameters}}


class FunctionName(Strict):
    """A function's name."""

    name: str


class NamedTool(Strict):
    """The function that must be called."""

    type: Literal["function"]
    function: FunctionName


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: Listed[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, description="The newer name of max_tokens.")
    logprobs: bool = Field(False, description="Of all tokens, those of calls included.")
    top_logprobs: int = Field(0, description="With logprobs: so many likeliest tokens for each token.")
    tools: Listed[Tool] = Field(default_factory=list, description="Functions that the model may call.")
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = Field(True, description="Whether several calls may come.")
    add_generation_prompt: bool = Field(True, description="End the prompt with the header of the assistant's turn.")
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, description="Variables of the chat template.")

    @property
    def most_tokens(self) -> int | None:
        """See the base."""
        both = {"max_tokens", "max_completion_tokens"} <= self.model_fields_set
        if both and self.max_tokens != self.max_completion_tokens:
            raise APIError(400, "max_tokens and max_completion_tokens differ: give one of them", param="max_tokens")
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        """See the base."""
        if "top_logprobs" in self.model_fields_set and not self.logprobs:
            raise APIError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        return self.top_logprobs if self.logprobs else None

    @property
    def prompt_field(self) -> str:
        """See the base."""
        return "messages"

    @property
    def grammar_field(self) -> str:
        """See the base."""
        return "tools" if self.tools else super().grammar_field

    @property
    def shown_tools(self) -> list[dict[str, Any]]:
        """Those that the model is told of."""
        return [] if self.tool_choice == "none" else [tool.for_template() for tool in self.tools]

    @property
    def grammar(self) -> Grammar | None:
        """See the base. With tools: text and calls, or calls alone."""
        for name in ("tool_choice", "parallel_tool_calls"):
            if name in self.model_fields_set and not self.tools:
                raise APIError(400, f"{name} needs tools: there are none", param=name)
        otherwise = self.response_format.grammar
        if not self.tools:
            return otherwise
        functions = self._functions()
        if self.tool_choice == "none":
            return ToolCalls(()) if otherwise is None else otherwise
        if isinstance(self.tool_choice, NamedTool):
            wanted = self.tool_choice.function.name
            functions = tuple(function for function in functions if function.name == wanted)
            if not functions:
                raise APIError(400, f"tool_choice names {wanted!r}, which is not among tools", param="tool_choice")
            return ToolCalls(functions, required=True, several=False)
        if self.tool_choice == "required":
            return ToolCalls(functions, required=True, several=self.parallel_tool_calls)
        return ToolCalls(functions, several=self.parallel_tool_calls, otherwise=otherwise)

    def _functions(self) -> tuple[Function, ...]:
        """Checked, all together too, whichever of them may be called."""
        made: list[Function] = []
        try:
            for tool in self.tools:
                where = f"tools.{len(made)}: "
                made.append(Function(tool.function.name, JsonSchema(tool.function.parameters)))
            where = "tools: "
            return ToolCalls(tuple(made)).functions
        except InvalidRequestError as error:
            raise APIError(400, f"{where}{error}", param="tools", code="invalid_value") from error


class TokenizeRequest(Strict):
    """`POST /tokenize`."""

    model: str | None = None
    prompt: str | None = Field(None, description="A text; or:")
    messages: Listed[Message] | None = Field(None, description="A conversation, in the form the model gets it.")
    tools: Listed[Tool] = Field(default_factory=list, description="With messages: functions that the model may call.")
    add_special_tokens: bool = Field(True, description="To a text those the model puts around a prompt.")
    add_generation_prompt: bool = Field(True, description="To a conversation the header of the assistant's turn.")
