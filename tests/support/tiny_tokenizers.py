"""Small tokenizers of the two kinds in use, trained where they are needed, and the GGUF metadata of one."""

import json
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = [
    "The quick brown fox jumps over the lazy dog, 1234 times; it's 'fun', isn't it?\n",
    "def f(x):\n    return x ** 2  # naïve\n\tGrüße aus Köln, 你好,世界! Привет мир שלום 🙂👩‍👩‍👧\n",
] * 4
CONTROL = ["<|end|>", "<|user|>"]


def byte_level(split: pre_tokenizers.PreTokenizer | None = None) -> tokenizers.Tokenizer:
    """Byte-level BPE with control tokens, and added tokens written in and outside the 256 byte characters."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    tokenizer.pre_tokenizer = to_bytes if split is None else pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=380, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    # Read as byte-level writing, "é" is the byte 0xE9; a space and CJK are no byte characters.
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("<tool>", "é", "a b", "<｜工具｜>")])
    return tokenizer


def sentencepiece_like() -> tokenizers.Tokenizer:
    """BPE on `▁`-marked words with byte tokens for the rest, as in Llama 2 and Mistral."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog sat on the log"] * 8, trainer)
    tokenizer.pre_tokenizer = None
    # The trainer marks every token it is given as special, byte tokens too; real files mark only the first three.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < 3]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def gguf_metadata(split: str = "gpt-2", **changes: Any) -> dict[str, Any]:
    """The metadata a converter would write for `byte_level()`; `changes` replace keys of `tokenizer.ggml`."""
    state = json.loads(byte_level().to_str())
    added = {token["content"]: 3 if token["special"] else 4 for token in state["added_tokens"]}
    vocab = state["model"]["vocab"] | {token["content"]: token["id"] for token in state["added_tokens"]}
    tokens = sorted(vocab, key=lambda token: vocab[token])
    values = {
        "model": "gpt2",
        "pre": split,
        "tokens": tokens,
        "token_type": [added.get(token, 1) for token in tokens],
        "merges": [" ".join(merge) for merge in state["model"]["merges"]],
        "bos_token_id": 1,
        "eos_token_id": 0,
        "add_bos_token": False,
    }
    template = "{% for m in messages %}<|user|>{{ m.content }}{{ eos_token }}{% endfor %}"
    metadata = {f"tokenizer.ggml.{key}": value for key, value in (values | changes).items()}
    return {"general.architecture": "llama", "tokenizer.chat_template": template, **metadata}
