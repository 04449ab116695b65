"""The tokenizer in a Hugging Face model directory.

`tokenizer.json` is required and says how text becomes ids; the files beside it say which tokens begin and end a
sequence, and how a chat is written. The end-of-sequence ids are the union of what all of them name, because each alone
is often incomplete. `tokenizer.json`'s own post-processor alone decides which special tokens surround a prompt.
"""

from pathlib import Path
from typing import Any

import tokenizers

from miniserve.errors import CorruptFileError, ModelNotFoundError, UnsupportedModelError
from miniserve.model.fields import read_json
from miniserve.model.tokenizer.parts import TokenizerParts, blaming, token_ids, vocab_size


def read_directory_tokenizer(directory: Path) -> TokenizerParts:
    """Return the tokenizer of `directory`.

    Raises:
        ModelNotFoundError: there is no `tokenizer.json`.
        UnsupportedModelError: there is only a SentencePiece file.
        CorruptFileError: a file is malformed, or names a token that does not exist.
    """
    file = directory / "tokenizer.json"
    if not file.is_file() and (directory / "tokenizer.model").is_file():
        raise UnsupportedModelError(
            f"{file} does not exist, only SentencePiece's tokenizer.model: convert it, e.g. by "
            "transformers' AutoTokenizer.from_pretrained(directory).save_pretrained(directory)"
        )
    if not file.is_file():
        raise ModelNotFoundError(f"{file} does not exist: the tokenizer needs it")
    with blaming(f"{file} is not a tokenizer"):
        backend = tokenizers.Tokenizer.from_file(str(file))
        backend.no_truncation()  # a file saved while training may ask to cut prompts short
        backend.no_padding()

    config_file = directory / "tokenizer_config.json"
    config = _read_if_present(config_file)
    size = vocab_size(backend)
    if size == 0:
        raise CorruptFileError(f"{file} holds no tokens")
    stop_ids: list[int] = []
    for other in (directory / "generation_config.json", directory / "config.json"):
        stop_ids += token_ids(_read_if_present(other).get("eos_token_id"), f"{other}: eos_token_id", size)
    return TokenizerParts(
        backend,
        source=file,
        bos_token_id=_token_named(config, "bos_token", config_file, backend),
        eos_token_id=_token_named(config, "eos_token", config_file, backend),
        stop_ids=stop_ids,
        chat_template=_chat_template(directory, config),
    )


def _read_if_present(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _token_named(config: dict[str, Any], key: str, path: Path, backend: tokenizers.Tokenizer) -> int | None:
    """The id of the token that `key` names, by its text or as {"content": text}."""
    value = config.get(key)
    if value is None:
        return None
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise CorruptFileError(f"{path}: {key} is {value!r:.80}, which is not a token")
    with blaming(f"{path}: {key} is {text!r:.80}, which is not a token"):
        token_id = backend.token_to_id(text)
    if token_id is None:
        raise CorruptFileError(f"{path}: {key} is {text!r:.80}, which is not in the vocabulary")
    return token_id


def _chat_template(directory: Path, config: dict[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        with blaming(f"{file} cannot be read"):
            return file.read_text(encoding="utf-8")
    value, where = config.get("chat_template"), f"{directory / 'tokenizer_config.json'}: chat_template"
    if isinstance(value, list):
        if not all(isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in value):
            raise CorruptFileError(f"{where} is a list, but not of objects with a name and a template")
        value = next((entry.get("template") for entry in value if entry["name"] == "default"), None)
    if value is not None and not isinstance(value, str):
        raise CorruptFileError(f"{where} is a {type(value).__name__}, not a string")
    return value
