"""Response objects of the OpenAI API, as structs that msgspec writes as JSON.

`Form` is what the two endpoints differ in: how a choice looks, whole and as a chunk of a stream. Chats have theirs in
`chat_replies`.
"""

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from miniserve.core.request import TokenLogprob
from miniserve.model.tokenizer.tokenizer import Tokenizer
from miniserve.server.messages import Piece

Choice = TypeVar("Choice")


class PromptDetails(Struct):
    """Of the prompt's tokens, those that the prefix cache had."""

    cached_tokens: int


class Usage(Struct):
    """Token counts. A prompt counts once, whatever n is."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Body(Struct, Generic[Choice]):
    """A response, or a chunk of one."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | UnsetType | None = UNSET


class TextLogprobs(Struct):
    """Of a completion: four lists with an entry a token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Struct):
    """Of a completion."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None


class Form(ABC):
    """How one request's choices are written.

    Attributes:
        id_prefix: of the response's id.
        operation: what traces call it.
        whole_object, chunk_object: the value of `object`.
    """

    id_prefix: str
    operation: str
    whole_object: str
    chunk_object: str

    @abstractmethod
    def whole(self, piece: Piece) -> Struct:
        """A choice that is complete: all its pieces as one."""

    @abstractmethod
    def chunk(self, piece: Piece) -> Struct | None:
        """The next part of a choice; None: nothing to say, as a character or a marker is not complete yet."""


class TextForm(Form):
    """Completions.

    Args:
        tokenizer: the model's.
        echoes: for each choice, the prompt's text and ids to put before it; None: only the output.
    """

    id_prefix, whole_object, chunk_object = "cmpl-", "text_completion", "text_completion"
    operation = "text_completion"

    def __init__(self, tokenizer: Tokenizer, echoes: list[tuple[str, list[int]]] | None) -> None:
        self._tokenizer, self._echoes = tokenizer, echoes
        self._begun: set[int] = set()
        self._offsets: dict[int, int] = {}

    def chunk(self, piece: Piece) -> TextChoice | None:
        """See the base."""
        return self.whole(piece) if piece.text or piece.logprobs or piece.finish_reason else None

    def whole(self, piece: Piece) -> TextChoice:
        """See the base. Of a stream, the next part, which goes on where the last one ended."""
        text, entries = piece.text, list(piece.logprobs or ())
        ids = piece.tokens
        known: list[TokenLogprob | None] = list(entries)
        if self._echoes and piece.choice not in self._begun:
            prompt, prompt_ids = self._echoes[piece.choice]
            text, ids = prompt + text, prompt_ids + ids
            known = [*(piece.prompt_logprobs or ()), *entries]
        self._begun.add(piece.choice)
        logprobs = None if piece.logprobs is None else self._logprobs(piece.choice, ids, known)
        return TextChoice(piece.choice, text, logprobs, piece.finish_reason, piece.stop_reason)

    def _logprobs(self, index: int, ids: list[int], known: list[TokenLogprob | None]) -> TextLogprobs:
        result = TextLogprobs([], [], [], [])
        offset = self._offsets.get(index, 0)
        for token, entry in zip(ids, known, strict=True):
            result.tokens.append(self._name(token))
            result.token_logprobs.append(finite(entry.logprob) if entry else None)
            top = {self._name(each): finite(value) for each, value in entry.top} if entry else None
            result.top_logprobs.append(top)
            result.text_offset.append(offset)
            offset += len(self._tokenizer.token_bytes(token).decode(errors="replace"))
        self._offsets[index] = offset
        return result

    def _name(self, token: int) -> str:
        """A token's text; its bytes where they are half a character, its id where there are none: each has its own."""
        data = self._tokenizer.token_bytes(token)
        if not data:
            return f"token_id:{token}"
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def finite(logprob: float) -> float:
    """JSON has no infinity; -9999 is what the OpenAI API writes for it."""
    return max(logprob, -9999.0)


def encode(value: Struct) -> bytes:
    """JSON."""
    return msgspec.json.encode(value)
