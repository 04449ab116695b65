"""Text to token ids and back, on the `tokenizers` library, from a model directory or from a GGUF file's metadata.

Invariants: the ids that end a sequence are the union of all that the files name; no prompt is truncated or padded; a
character with no token is refused, not lost; a malformed file ends in `CorruptFileError` with the file's name, and a
tokenizer this package cannot decode is refused when it is loaded.
It reads `tokenizer.json`, not SentencePiece's `tokenizer.model`. Text that spells a control token is encoded as that
token.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models

from miniserve.errors import ChatTemplateError, InvalidRequestError, UnsupportedModelError
from miniserve.model.tokenizer.chat_template import ChatTemplate
from miniserve.model.tokenizer.detokenizer import BYTES_BY_CHARACTER, DecodingRule
from miniserve.model.tokenizer.from_directory import read_directory_tokenizer
from miniserve.model.tokenizer.from_gguf import read_gguf_tokenizer
from miniserve.model.tokenizer.parts import TokenizerParts, blaming, vocab_size
from miniserve.model.tokenizer.to_directory import directory_files

LONG_TEXT = 8192  # characters; a shorter one takes some milliseconds
_NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}


class Tokenizer:
    """A model's tokenizer, its end-of-sequence ids and its chat template.

    Attributes:
        vocab_size: how many ids there are: the model's, which may pad its embedding with ids that have no token (they
            decode to nothing), or, where no model is named, the largest token id + 1.
        bos_token_id: the beginning-of-sequence id, or None.
        eos_token_ids: every id that ends a sequence.
        chat_template: the template of `encode_chat`, or None.
        decoding_rule: how tokens become bytes.

    Example:
        >>> from miniserve import load_model
        >>> tokenizer = load_model("tiny-moe").tokenizer
        >>> tokenizer.encode("To be")
        [411, 305]
        >>> tokenizer.decode([411, 305])
        'To be'
    """

    def __init__(self, parts: TokenizerParts, num_ids: int | None = None) -> None:
        """Assemble a tokenizer from what was read; `from_directory` and `from_gguf` read and call this.

        Args:
            parts: what was read.
            num_ids: the model's vocabulary, if it is known.

        Raises:
            UnsupportedModelError: the decoder is not supported, or it has tokens that the model does not have.
            ChatTemplateError: the chat template does not parse.
        """
        self._made_of = parts, num_ids
        backend = parts.backend
        self._backend = backend
        self._source = parts.source.name  # not the whole path: what encoding refuses goes to a server's clients
        self.vocab_size = _checked_vocab_size(parts, num_ids)
        self.bos_token_id = parts.bos_token_id
        own = () if parts.eos_token_id is None else (parts.eos_token_id,)
        self.eos_token_ids = frozenset((*own, *parts.stop_ids))
        self.chat_template = _chat_template(parts)
        self.decoding_rule = _decoding_rule(parts)
        self._special_ids = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        self._bytes_without_token = _bytes_without_token(backend, self.decoding_rule)
        self._token_bytes: dict[int, bytes] = {}

    def __reduce__(self) -> tuple[type, tuple[TokenizerParts, int | None]]:
        """Pickle what it was made of: a compiled chat template cannot be pickled itself."""
        return Tokenizer, self._made_of

    @classmethod
    def from_directory(cls, path: str | Path, *, num_ids: int | None = None) -> "Tokenizer":
        """Load the tokenizer of a Hugging Face model directory.

        Reads `tokenizer.json`, and, where present, `tokenizer_config.json`, `chat_template.jinja` (which wins over a
        template in the former), `generation_config.json` and `config.json`.

        Raises:
            ModelNotFoundError: there is no `tokenizer.json`.
            UnsupportedModelError: there is only a SentencePiece file, or the decoder is not supported.
            CorruptFileError: a file is malformed, or names a token that does not exist.
            ChatTemplateError: the chat template does not parse.
        """
        return cls(read_directory_tokenizer(Path(path)), num_ids)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], path: Path, *, num_ids: int | None = None) -> "Tokenizer":
        """Load the tokenizer in a GGUF file's metadata: byte-level BPE (`gpt2`) only.

        Args:
            metadata: the file's keys and plain Python values, lists for arrays.
            path: the file, for messages.

        Raises:
            UnsupportedModelError: another kind of tokenizer, or a way of cutting text that is not known here.
            CorruptFileError: a key is missing, or its value has the wrong type, length or range.
            ChatTemplateError: the chat template does not parse.
        """
        return cls(read_gguf_tokenizer(metadata, path), num_ids)

    def directory_files(self) -> dict[str, str]:
        """Names and texts of the files from which `from_directory` makes this tokenizer again."""
        return directory_files(self._made_of[0])

    def encode(self, text: str, *, add_special_tokens: bool = True, max_model_len: int | None = None) -> list[int]:
        """Return the token ids of `text`, with the special tokens the model puts around a prompt unless told not to.

        Args:
            text: whatever its length, other threads go on meanwhile.
            add_special_tokens: see above.
            max_model_len: refuse at once what would be longer if each of its tokens were the vocabulary's longest.

        Raises:
            InvalidRequestError: half of a surrogate pair, a character that no token of this vocabulary can spell, or
                too long.
        """
        if max_model_len is not None and len(text) > LONG_TEXT and len(text) > max_model_len * self._longest_token:
            raise InvalidRequestError(
                f"the prompt has {len(text)} characters: max_model_len is {max_model_len}, of tokens with at most "
                f"{self._longest_token} bytes"
            )
        self._check_text(text)
        with blaming(f"{self._source}: the tokenizer failed to encode a prompt"):
            if len(text) <= LONG_TEXT:
                return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)
            # Of a batch the library lets go of the interpreter's lock; of one text it does not.
            (found,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
            return list(found.ids)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        max_model_len: int | None = None,
        **variables: Any,
    ) -> list[int]:
        """Return the token ids of a chat; `variables` (such as `tools`) go to `ChatTemplate.render`.

        For `max_model_len` see `encode`.

        Raises:
            ChatTemplateError: the model has no chat template, or it rejected the messages.
            InvalidRequestError: as in `encode`.
        """
        if self.chat_template is None:
            raise ChatTemplateError(
                f"{self._source} comes with no chat template: put a chat_template.jinja beside tokenizer.json, "
                "or send a plain prompt in the form the model was trained on"
            )
        text = self.chat_template.render(messages, add_generation_prompt=add_generation_prompt, **variables)
        return self.encode(text, add_special_tokens=False, max_model_len=max_model_len)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`; bytes that are no UTF-8 become U+FFFD.

        Raises:
            InvalidRequestError: an id is outside the vocabulary.
        """
        for token_id in ids:
            self._check_id(token_id)
        with blaming(f"{self._source}: the tokenizer failed to decode"):
            return str(self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token stands for, special or not; b"" for an id in range that has no token.

        Raises:
            InvalidRequestError: the id is outside the vocabulary.
        """
        known = self._token_bytes.get(token_id)
        if known is not None:
            return known
        self._check_id(token_id)
        token = self._backend.id_to_token(token_id)
        data = b"" if token is None else self.decoding_rule.token_bytes(token)
        self._token_bytes[token_id] = data
        return data

    def is_special(self, token_id: int) -> bool:
        """Return whether the token is a control token, which `skip_special_tokens` leaves out of a text."""
        return token_id in self._special_ids

    @cached_property
    def _longest_token(self) -> int:
        """In bytes."""
        return max(len(self.token_bytes(token_id)) for token_id in range(self.vocab_size))

    def _check_id(self, token_id: int) -> None:
        if not 0 <= token_id < self.vocab_size:
            raise InvalidRequestError(f"token id {token_id} is outside the vocabulary of {self.vocab_size} tokens")

    def _check_text(self, text: str) -> None:
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(
                f"the prompt is not valid Unicode: U+{ord(text[error.start]):04X} at character {error.start} "
                "is half of a surrogate pair"
            ) from error
        missing = self._bytes_without_token
        if len(data.translate(None, missing)) == len(data):
            return
        at, character = next((i, c) for i, c in enumerate(text) if any(byte in missing for byte in c.encode()))
        raise InvalidRequestError(
            f"the prompt has U+{ord(character):04X} at character {at}, which no token of this model can spell"
        )


def _checked_vocab_size(parts: TokenizerParts, num_ids: int | None) -> int:
    own = vocab_size(parts.backend)
    if num_ids is None:
        return own
    if num_ids < own:
        raise UnsupportedModelError(f"{parts.source}: {own} tokens, but the model has embeddings for {num_ids} only")
    return num_ids


def _decoding_rule(parts: TokenizerParts) -> DecodingRule:
    decoder = parts.backend.decoder
    try:
        return DecodingRule.from_decoder(None if decoder is None else json.loads(decoder.__getstate__()))
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{parts.source}: {error}") from error


def _bytes_without_token(backend: tokenizers.Tokenizer, rule: DecodingRule) -> bytes:
    """The bytes that byte-level BPE without an unknown token would drop without a word, for want of a token."""
    if not rule.byte_level or not isinstance(backend.model, models.BPE) or backend.model.unk_token is not None:
        return b""
    missing = {byte for character, byte in BYTES_BY_CHARACTER.items() if backend.token_to_id(character) is None}
    return bytes(missing - _NEVER_IN_UTF8)


def _chat_template(parts: TokenizerParts) -> ChatTemplate | None:
    if parts.chat_template is None:
        return None
    ids = (parts.bos_token_id, parts.eos_token_id)
    bos_token, eos_token = (None if i is None else parts.backend.id_to_token(i) for i in ids)
    try:
        return ChatTemplate(parts.chat_template, bos_token=bos_token, eos_token=eos_token)
    except ChatTemplateError as error:
        raise ChatTemplateError(f"{parts.source}: {error}") from error
