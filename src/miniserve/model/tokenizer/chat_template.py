"""Chat messages to one prompt string, by the Jinja template that a model carries.

A template comes with the weights, so it is untrusted: it runs in Jinja's sandbox and cannot reach Python objects or
change the messages. The sandbox does not bound time or memory. Whatever goes wrong ends in `ChatTemplateError`.
The rendered text already holds the special tokens the template writes: encode it without adding them again. Control
tokens that a user typed in a message are not escaped.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from miniserve.errors import ChatTemplateError


class ChatTemplate:
    """One compiled chat template; `source` is the text it was compiled from."""

    def __init__(self, source: str, *, bos_token: str | None, eos_token: str | None) -> None:
        """Compile a template.

        Args:
            source: the Jinja source.
            bos_token: text of the beginning-of-sequence token, `bos_token` in the template; None leaves it undefined.
            eos_token: the same for `eos_token`.

        Raises:
            ChatTemplateError: the source does not parse; the message gives the line.
        """
        self.source = source
        tokens = {"bos_token": bos_token, "eos_token": eos_token}
        # A token the model lacks must stay undefined: a None would be printed as the word "None".
        self._tokens = {name: token for name, token in tokens.items() if token is not None}
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ChatTemplateError(
                f"the chat template does not parse, line {error.lineno}: {error.message}"
            ) from error
        except Exception as error:  # e.g. RecursionError, or a SyntaxError of the Python that Jinja generates
            raise ChatTemplateError(f"the chat template does not compile: {_describe(error)}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """Return the prompt text for `messages`.

        Args:
            messages: non-empty; each has a `role` (str) and a `content` (str, list of parts, or None).
            add_generation_prompt: end with the header of the assistant's next turn.
            tools: JSON schemas of callable functions, for templates that list them.
            variables: further names for the template, e.g. `enable_thinking=False`.

        Raises:
            ChatTemplateError: a message is malformed (its index is named), or the template rejected the messages,
                tried to leave the sandbox, or failed.
        """
        _validate(messages)
        # `documents` is always defined, if only as None: templates ask `if documents`.
        context = {"documents": None, **self._tokens, **variables}
        try:
            return self._template.render(
                context, messages=messages, add_generation_prompt=add_generation_prompt, tools=tools
            )
        except _RejectedError as error:
            raise ChatTemplateError(f"the chat template rejected the messages: {error}") from error
        except SecurityError as error:
            raise ChatTemplateError(f"the chat template tried to leave its sandbox: {error}") from error
        except Exception as error:  # a template can raise anything that Python can
            raise ChatTemplateError(f"the chat template failed on these messages: {_describe(error)}") from error


class _RejectedError(jinja2.TemplateError):
    """The template called `raise_exception`."""


class _GenerationTag(Extension):
    """Accept `{% generation %}…{% endgeneration %}`, which marks the assistant's text for training, as plain text."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own type is a mutable set)

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the body of the tag in a scope of its own."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _environment() -> ImmutableSandboxedEnvironment:
    # trim_blocks and lstrip_blocks are what templates in the wild are written for.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationTag]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which a model has never seen.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise _RejectedError(str(message))


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def _validate(messages: Any) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise ChatTemplateError(f"messages must be a list of messages, not {type(messages).__name__}")
    if not messages:
        raise ChatTemplateError("messages is empty: a chat needs at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ChatTemplateError(f"messages[{index}] must be a mapping, not {type(message).__name__}")
        role = message.get("role")
        if not isinstance(role, str):
            raise ChatTemplateError(f"messages[{index}] needs a 'role' that is a string, not {type(role).__name__}")
        content = message.get("content")
        if content is not None and not isinstance(content, str | list):
            raise ChatTemplateError(
                f"messages[{index}]: 'content' must be a string, a list or null, not {type(content).__name__}"
            )


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
