"""Responses of chat completions: text, and calls that are found in it. See `replies`."""

import secrets
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from miniserve.core.request import TokenLogprob
from miniserve.model.tokenizer.tokenizer import Tokenizer
from miniserve.model.tokenizer.tool_calls import CallPart, Heard, ToolCallReader
from miniserve.server.messages import Piece
from miniserve.server.replies import Form, finite


class Candidate(Struct):
    """A token that could have come."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(Struct):
    """A token that came, and the likeliest ones."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Candidate]


class ChatLogprobs(Struct):
    """Of a chat's choice: an entry a token."""

    content: list[ChatLogprob]
    refusal: None = None


class ReplyFunction(Struct):
    """A call's function, or the next part of its arguments."""

    arguments: str
    name: str | UnsetType = UNSET


class ReplyCall(Struct):
    """A call; in a stream, the first part of it or, without an id, a later one."""

    function: ReplyFunction
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    index: int | UnsetType = UNSET


class ChatMessage(Struct):
    """The assistant's turn, or the next part of it."""

    content: str | UnsetType | None
    role: Literal["assistant"] | UnsetType = UNSET
    refusal: UnsetType | None = UNSET
    tool_calls: list[ReplyCall] | UnsetType = UNSET


class ChatChoice(Struct):
    """Of a chat: `message` when whole, `delta` in a stream."""

    index: int
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None
    message: ChatMessage | UnsetType = UNSET
    delta: ChatMessage | UnsetType = UNSET


class ChatForm(Form):
    """Chat completions.

    Args:
        tokenizer: the model's.
        reads_calls: whether the text may hold calls.
    """

    id_prefix, whole_object, chunk_object = "chatcmpl-", "chat.completion", "chat.completion.chunk"
    operation = "chat"

    def __init__(self, tokenizer: Tokenizer, *, reads_calls: bool = False) -> None:
        self._tokenizer, self._reads_calls = tokenizer, reads_calls
        self._readers: dict[int, ToolCallReader] = {}
        self._begun: set[int] = set()

    def whole(self, piece: Piece) -> ChatChoice:
        """See the base."""
        heard, reason = self._hear(piece)
        calls = [self._call(part, in_stream=False) for part in heard.calls]
        text = heard.text if heard.text or not calls else None
        return self._choice(piece, reason, message=ChatMessage(text, "assistant", None, calls or UNSET))

    def chunk(self, piece: Piece) -> ChatChoice | None:
        """See the base. The first of a choice names the role."""
        heard, reason = self._hear(piece)
        if not (heard.text or heard.calls or piece.logprobs or reason):
            return None
        begins = piece.choice not in self._begun
        self._begun.add(piece.choice)
        calls = [self._call(part, in_stream=True) for part in heard.calls]
        text = heard.text if heard.text or not calls else (None if begins else UNSET)
        return self._choice(
            piece, reason, delta=ChatMessage(text, "assistant" if begins else UNSET, tool_calls=calls or UNSET)
        )

    def _hear(self, piece: Piece) -> tuple[Heard, str | None]:
        """What a piece adds, and why the choice has ended: "tool_calls" where it has with calls that are whole."""
        if not self._reads_calls:
            return Heard(piece.text, []), piece.finish_reason
        reader = self._readers.setdefault(piece.choice, ToolCallReader())
        heard, reason = reader.push(piece.text), piece.finish_reason
        if reason is not None:
            heard = heard.then(reader.finish())
            if reason == "stop" and reader.num_calls and not reader.inside:
                reason = "tool_calls"
        return heard, reason

    @staticmethod
    def _call(part: CallPart, *, in_stream: bool) -> ReplyCall:
        index = part.call if in_stream else UNSET
        if part.name is None:
            return ReplyCall(ReplyFunction(part.arguments), index=index)
        name = f"call_{secrets.token_hex(12)}"
        return ReplyCall(ReplyFunction(part.arguments, part.name), name, "function", index)

    def _choice(self, piece: Piece, reason: str | None, **text: ChatMessage) -> ChatChoice:
        logprobs = None if piece.logprobs is None else ChatLogprobs([self._logprob(each) for each in piece.logprobs])
        return ChatChoice(piece.choice, logprobs, reason, piece.stop_reason, **text)

    def _logprob(self, entry: TokenLogprob) -> ChatLogprob:
        chosen = self._candidate(entry.token_id, entry.logprob)
        top = [self._candidate(token, logprob) for token, logprob in entry.top]
        return ChatLogprob(chosen.token, chosen.logprob, chosen.bytes, top)

    def _candidate(self, token: int, logprob: float) -> Candidate:
        data = self._tokenizer.token_bytes(token)
        return Candidate(data.decode(errors="replace"), finite(logprob), list(data))
