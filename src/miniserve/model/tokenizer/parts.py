"""What every source of a tokenizer ends in (`TokenizerParts`), and the checks that all sources share.

A tokenizer's files are untrusted. Two rules: an id read from a file lies inside the vocabulary, and whatever a library
raises over a file's contents becomes a `CorruptFileError` that names the file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from miniserve.errors import CorruptFileError, MiniserveError


class TokenizerParts(NamedTuple):
    """A tokenizer as read from files.

    Attributes:
        backend: the `tokenizers` object, which neither truncates nor pads.
        source: the file it came from, for messages.
        bos_token_id: the beginning-of-sequence id, or None.
        eos_token_id: the tokenizer's own end-of-sequence id, or None; the chat template sees it.
        stop_ids: further ids that end a sequence.
        chat_template: Jinja source, or None.
    """

    backend: tokenizers.Tokenizer
    source: Path
    bos_token_id: int | None
    eos_token_id: int | None
    stop_ids: list[int]
    chat_template: str | None


def vocab_size(backend: tokenizers.Tokenizer) -> int:
    """Return the largest token id + 1, added tokens included."""
    return max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def token_ids(value: Any, where: str, size: int) -> list[int]:
    """Return `value` (an id, a list of ids, or None) as a list of ids below `size`.

    Raises:
        CorruptFileError: it is something else; the message begins with `where`.
    """
    if value is None:
        return []
    ids = value if isinstance(value, list) else [value]
    for token_id in ids:
        if type(token_id) is not int:
            raise CorruptFileError(f"{where} holds {token_id!r:.80}, which is not a token id")
        if not 0 <= token_id < size:
            raise CorruptFileError(f"{where} is {token_id}, outside the vocabulary of {size} tokens")
    return ids


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Turn whatever a library raises over a file's contents into a `CorruptFileError` that begins with `what`."""
    try:
        yield
    except MiniserveError:
        raise
    except Exception as error:
        raise CorruptFileError(f"{what}: {error}") from error
    except BaseException as error:
        # A panic in Rust code. Its class cannot be imported, and it is no Exception, so that few catch it by accident.
        if type(error).__name__ != "PanicException":
            raise
        raise CorruptFileError(f"{what}: {error}") from error
