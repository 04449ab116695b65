"""The tokenizer in a GGUF file's metadata, rebuilt for the `tokenizers` library: byte-level BPE (`gpt2`) only.

The file names the way text is cut before BPE (`tokenizer.ggml.pre`) but does not describe it; the cuts known here are
in one table, and any other name is refused, because a wrong cut gives plausible but wrong ids.
The metadata is untrusted: each value's type, length and range is checked, and a complaint names the file and the key.

Source of the keys: the GGUF specification in the ggml project's documentation.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from miniserve.errors import CorruptFileError, UnsupportedModelError
from miniserve.model.tokenizer.parts import TokenizerParts, blaming, token_ids, vocab_size

# What a GGUF file calls a way to cut text before BPE. The patterns are the models' own; each is applied to the pieces
# that the one before it left. "default" is the cut llama.cpp makes for a file that names no other.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS_AND_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS_AND_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    "gpt-2": [_GPT2],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
    "smollm": [r"\p{N}", _GPT2],
    "llama-bpe": [rf"{_CONTRACTIONS_AND_WORDS}|\p{{N}}{{1,3}}|{_MARKS_AND_SPACES}"],
    "qwen2": [rf"{_CONTRACTIONS_AND_WORDS}|\p{{N}}|{_MARKS_AND_SPACES}"],
}
_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
_REQUIRED = object()


def read_gguf_tokenizer(metadata: Mapping[str, Any], path: Path) -> TokenizerParts:
    """Return the tokenizer in `metadata`: keys and plain Python values, lists for arrays. `path` is for messages.

    Raises:
        UnsupportedModelError: another kind of tokenizer, or an unknown way of cutting text.
        CorruptFileError: a key is missing, or its value has the wrong type, length or range.
    """
    reader = _Reader(metadata, path)
    backend = _backend(reader)
    size = vocab_size(backend)
    bos, eos, *others = (reader.ids(f"tokenizer.ggml.{name}_token_id", size) for name in ("bos", "eos", "eot", "eom"))
    return TokenizerParts(
        backend,
        source=path,
        bos_token_id=next(iter(bos), None),
        eos_token_id=next(iter(eos), None),
        stop_ids=[token_id for ids in others for token_id in ids],
        chat_template=reader.get("tokenizer.chat_template", str, None),
    )


class _Reader:
    """Typed look-ups in untrusted GGUF metadata; every complaint names the file and the key."""

    def __init__(self, metadata: Mapping[str, Any], path: Path) -> None:
        self._metadata = metadata
        self.path = path

    def get(self, key: str, kind: type, default: Any = _REQUIRED) -> Any:
        value = self._metadata.get(key, default)
        if value is _REQUIRED:
            raise CorruptFileError(f"{self.path}: {key} is missing")
        if value is not default and type(value) is not kind:
            raise CorruptFileError(f"{self.path}: {key} is a {type(value).__name__}, not a {kind.__name__}")
        return value

    def array(self, key: str, kind: type) -> list[Any]:
        values: list[Any] = self.get(key, list)
        for index, value in enumerate(values):
            if type(value) is not kind:
                raise CorruptFileError(
                    f"{self.path}: {key}[{index}] is a {type(value).__name__}, not a {kind.__name__}"
                )
        return values

    def ids(self, key: str, size: int) -> list[int]:
        return token_ids(self.get(key, int, None), f"{self.path}: {key}", size)


def _backend(reader: _Reader) -> tokenizers.Tokenizer:
    path, model = reader.path, reader.get("tokenizer.ggml.model", str)
    if model != "gpt2":
        raise UnsupportedModelError(f"{path}: tokenizer.ggml.model is {model!r:.80}; only 'gpt2' is supported")
    split = reader.get("tokenizer.ggml.pre", str)
    if split not in _SPLITS:
        raise UnsupportedModelError(f"{path}: tokenizer.ggml.pre is {split!r:.80}; supported: {', '.join(_SPLITS)}")
    if reader.get("tokenizer.ggml.add_eos_token", bool, False):
        raise UnsupportedModelError(
            f"{path}: tokenizer.ggml.add_eos_token is true: its prompts leave nothing to generate"
        )

    tokens = reader.array("tokenizer.ggml.tokens", str)
    types = reader.array("tokenizer.ggml.token_type", int)
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(types) != len(tokens):
        raise CorruptFileError(f"{path}: tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens")
    if not tokens or "" in vocab or len(vocab) != len(tokens):
        raise CorruptFileError(f"{path}: tokenizer.ggml.tokens is empty, or has an empty or a repeated token")
    merges = [_merge(merge, i, path) for i, merge in enumerate(reader.array("tokenizer.ggml.merges", str))]

    with blaming(f"{path}: tokenizer.ggml.tokens and tokenizer.ggml.merges make no tokenizer"):
        # Llama 3 takes a word that is a token as that token, whether or not its merges lead there.
        backend = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=split == "llama-bpe"))
        cuts = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in _SPLITS[split]]
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, to_bytes])
        backend.decoder = decoders.ByteLevel()
        if split == "qwen2":
            backend.normalizer = normalizers.NFC()  # not in the file; Qwen's own tokenizer.json has it
        added = [(token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (_CONTROL, _USER_DEFINED)]
        backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in added if k == _CONTROL])
        backend.add_tokens([AddedToken(t, special=False, normalized=False) for t, k in added if k == _USER_DEFINED])
    if reader.get("tokenizer.ggml.add_bos_token", bool, split == "llama-bpe"):
        _prepend_bos(backend, reader)
    return backend


def _merge(merge: str, index: int, path: Path) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if not left or not right or " " in right:
        raise CorruptFileError(f"{path}: tokenizer.ggml.merges[{index}] is {merge!r:.80}, not two tokens and a space")
    return left, right


def _prepend_bos(backend: tokenizers.Tokenizer, reader: _Reader) -> None:
    ids = reader.ids("tokenizer.ggml.bos_token_id", vocab_size(backend))
    if not ids:
        raise CorruptFileError(f"{reader.path}: tokenizer.ggml.bos_token_id is missing, but prompts begin with it")
    # "bos" is a name local to the template, so that the token's own text need not be escaped in it.
    bos = {"id": "bos", "ids": ids, "tokens": [backend.id_to_token(ids[0])]}
    backend.post_processor = processors.TemplateProcessing(single="bos $A", special_tokens=[bos])
