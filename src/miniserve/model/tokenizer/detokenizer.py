"""Token ids to text, one token at a time.

`DecodingRule` says which bytes a token stands for; `Detokenizer` feeds those bytes to one incremental UTF-8 decoder.
Work is linear in the bytes decoded: each byte is looked at once, and no text is ever decoded again.

Invariants:

- A character is emitted when its last byte has arrived, never in halves.
- Nothing is dropped: the pushes and the finish, joined, equal `Tokenizer.decode` of the same ids. Bytes that are no
  UTF-8 become U+FFFD, one for each maximal invalid piece. One exception, for SentencePiece-like tokenizers: where a run
  of byte tokens (`<0x41><0xFF>`) is broken, `Tokenizer.decode` gives one U+FFFD for every byte of the run, good ones
  included; here the good characters, emitted long before, stay.
- The prompt's text is not emitted. If the prompt ends inside a character and the first bytes that are generated go on
  with it, the whole character is emitted; if they do not, the half was the prompt's, and it leaves no trace here.

It does not look for stop strings, and it does not clean up spaces.
"""

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from miniserve.errors import UnsupportedModelError

_MAX_INCOMPLETE_BYTES = 3  # the longest proper prefix of a UTF-8 character
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _bytes_by_character() -> dict[str, int]:
    # Byte-level BPE writes each byte as one visible character: Latin-1's printable ones stand for themselves, and
    # the other bytes, in order, are the characters from U+0100 on.
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


BYTES_BY_CHARACTER = _bytes_by_character()


@dataclass(frozen=True)
class DecodingRule:
    """How a tokenizer's `decoder` turns a token's written form into bytes.

    Attributes:
        byte_level: the characters stand for bytes (GPT-2, Llama 3, Qwen); otherwise they stand for themselves.
        replacements: (old, new) strings replaced in each token, in order (`▁` becomes a space).
        byte_fallback: `<0xE2>` is the byte 0xE2.
        strip_leading: one character that is removed once if the whole text starts with it, or "".
    """

    byte_level: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    byte_fallback: bool = False
    strip_leading: str = ""

    @classmethod
    def from_decoder(cls, decoder: dict[str, Any] | None) -> "DecodingRule":
        """Read the `decoder` object of a `tokenizer.json`.

        Understood: ByteLevel; and a Sequence of any Replace of a plain string, then at most one each of ByteFallback,
        Fuse, and a Strip of one leading character.

        Raises:
            UnsupportedModelError: anything else; the message names it.
        """
        if decoder is None:
            raise UnsupportedModelError("the tokenizer has no decoder: how its tokens become text is not known")
        if decoder["type"] == "ByteLevel":
            return cls(byte_level=True)
        if decoder["type"] != "Sequence":
            raise UnsupportedModelError(f"the tokenizer's decoder {decoder['type']!r} is not supported")
        return cls._from_steps(decoder["decoders"])

    @classmethod
    def _from_steps(cls, steps: list[dict[str, Any]]) -> "DecodingRule":
        order = ["Replace", "ByteFallback", "Fuse", "Strip"]
        replacements: list[tuple[str, str]] = []
        strip_leading = ""
        kinds = [step["type"] for step in steps]
        for step, kind in zip(steps, kinds, strict=True):
            old = step["pattern"].get("String") if kind == "Replace" else None
            if old:
                replacements.append((old, step["content"]))
            elif kind == "Strip" and step["start"] <= 1 and step["stop"] == 0:
                strip_leading = step["content"] * step["start"]
            elif kind not in ("ByteFallback", "Fuse"):
                raise UnsupportedModelError(f"the tokenizer's decoder step {step} is not supported")
        singles = [kind for kind in kinds if kind != "Replace"]
        # A Strip before Fuse would strip every token, not the text.
        unfused_strip = "Strip" in kinds and "Fuse" not in kinds
        if kinds != sorted(kinds, key=order.index) or len(set(singles)) != len(singles) or unfused_strip:
            raise UnsupportedModelError(f"the tokenizer's decoder steps {kinds}, in this order, are not supported")
        return cls(False, tuple(replacements), "ByteFallback" in kinds, strip_leading)

    def token_bytes(self, token: str) -> bytes:
        """Return the bytes that `token`, in its written form, stands for."""
        if self.byte_level:
            try:
                return bytes(BYTES_BY_CHARACTER[character] for character in token)
            except KeyError:  # an added token is written as it is: "<|im_end|>" can be either, "<|用户|>" only this
                return token.encode()
        for old, new in self.replacements:
            token = token.replace(old, new)
        byte = _BYTE_TOKEN.fullmatch(token) if self.byte_fallback else None
        return bytes([int(byte[1], 16)]) if byte else token.encode()


class TokenSource(Protocol):
    """What a `Detokenizer` needs from a tokenizer."""

    @property
    def decoding_rule(self) -> DecodingRule:
        """How tokens become bytes."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token; `InvalidRequestError` for an id outside the vocabulary."""

    def is_special(self, token_id: int) -> bool:
        """Return whether the token is a control token."""


class Detokenizer:
    """Turns one request's generated ids into text as they come."""

    def __init__(
        self, tokenizer: TokenSource, *, skip_special_tokens: bool = True, prompt_ids: Sequence[int] = ()
    ) -> None:
        """Begin a text.

        Args:
            tokenizer: where the tokens' bytes come from.
            skip_special_tokens: leave control tokens out of the text.
            prompt_ids: the ids before the first generated one. Only what the text that follows depends on is kept: the
                bytes of a last, incomplete character, and whether a leading space is still to be stripped.

        Raises:
            InvalidRequestError: an id outside the vocabulary, here or in `push`.
        """
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip_leading = tokenizer.decoding_rule.strip_leading
        self._prompt_tail = self._incomplete_tail(prompt_ids)

    def push(self, token_id: int) -> str:
        """Return the text that `token_id` completes; "" if it completes none."""
        data = self._visible_bytes(token_id)
        if data and self._prompt_tail:
            if _goes_on(self._prompt_tail, data[:1]):
                data = self._prompt_tail + data
            self._prompt_tail = b""
        return self._strip_once(self._decoder.decode(data))

    def finish(self) -> str:
        """Return what is left: U+FFFD if the generated text ends inside a character, otherwise "". Ends the text."""
        return self._strip_once(self._decoder.decode(b"", final=True))

    def _visible_bytes(self, token_id: int) -> bytes:
        data = self._tokenizer.token_bytes(token_id)
        hidden = self._skip_special_tokens and self._tokenizer.is_special(token_id)
        return b"" if hidden else data

    def _incomplete_tail(self, prompt_ids: Sequence[int]) -> bytes:
        tail = b""
        for token_id in reversed(prompt_ids):
            tail = self._visible_bytes(token_id) + tail
            if len(tail) >= _MAX_INCOMPLETE_BYTES:
                break
        if tail:
            self._strip_leading = ""  # the text's first character was the prompt's
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(tail)
        return decoder.getstate()[0]

    def _strip_once(self, text: str) -> str:
        if not text or not self._strip_leading:
            return text
        stripped = text.removeprefix(self._strip_leading)
        self._strip_leading = ""
        return stripped


def _goes_on(incomplete: bytes, byte: bytes) -> bool:
    """Return whether `byte` continues the incomplete UTF-8 character."""
    try:
        codecs.getincrementaldecoder("utf-8")("strict").decode(incomplete + byte)
    except UnicodeDecodeError:
        return False
    return True
