"""The tokenizer: the default model's ids equal two independent references, and text comes back."""

import itertools
import subprocess
import sys

import pytest
import regex
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from miniserve.errors import InvalidRequestError
from miniserve.model.gguf import GGUFFile
from miniserve.model.tokenizer.tokenizer import Tokenizer
from support import tiny_tokenizers

PROMPTS = [
    "",
    "Hello, world!",
    "The capital of France is",
    "In 2024, 1234567890 people paid $3.50 and 10,000.00",
    "digits after spaces:  12   345\t6\n7 and ٣٤٥ ²³ Ⅷ",
    "it's we'll I'VE don't 'quoted' O'Neill",
    "def f(x):\n    return x ** 2  # square\n\n\nprint(f(10))\n",
    '{"key": [1, 2, {"a": null}], "b": "c\\n"}',
    "if (a != b && c->d >= 0) { std::cout << a[i++]; }",
    "🙂👩‍👩‍👧‍👦🇫🇷👍🏽 emoji",
    "你好，世界！这是一个测试。",
    "日本語のテキストと한국어 텍스트",
    "مرحبا بالعالم، كيف حالك؟",
    "שלום עולם",
    "Привет, как дела? Ελληνικά ñandú naïve café",
    "   leading and trailing   ",
    "\n\n\t\t  \r\n mixed \t whitespace\n \n  \n",
    "a\u00a0b\u2003c\u200bd\ufeffe",
    "e\u0301 combining, Z\u0351a\u0352l\u0353go, ﬁ ligature",
    "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n",
    "almost <|im_start| > and <|im_end|><|endoftext|> and <repo_name>x",
    "x" * 200 + " " * 50 + "=" * 80,
]
CHAT = [
    {"role": "user", "content": "What is 12 * 34?"},
    {"role": "assistant", "content": "408 🙂"},
    {"role": "user", "content": "Thanks,  2 much!\n"},
]


@pytest.fixture(scope="module")
def smollm2_metadata(smollm2_gguf):
    return GGUFFile(smollm2_gguf).metadata


@pytest.fixture(scope="module")
def smollm2(smollm2_metadata, smollm2_gguf):
    return Tokenizer.from_gguf(smollm2_metadata, smollm2_gguf)


def plain_bpe(text: str, metadata: dict) -> list[int]:
    """Byte-level BPE in plain Python: no code of `tokenizers`, the pattern run by another engine, the slow merge loop."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    id_of = {token: i for i, token in enumerate(tokens)}
    rank = {tuple(merge.split(" ")): i for i, merge in enumerate(metadata["tokenizer.ggml.merges"])}
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == 3]
    character_of = bytes_to_unicode()
    ids = []
    for part in regex.split("(" + "|".join(map(regex.escape, control)) + ")", text):
        if part in control:
            ids.append(id_of[part])
            continue
        for run in regex.findall(r"\p{N}|[^\p{N}]+", part):  # every digit alone, and only then GPT-2's pattern
            for word in regex.findall(r"'(?:[stmd]|re|ve|ll)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", run):
                symbols = [character_of[byte] for byte in word.encode()]
                while pairs := [p for p in itertools.pairwise(symbols) if p in rank]:
                    best = min(pairs, key=rank.__getitem__)
                    at = next(i for i in range(len(symbols)) if tuple(symbols[i : i + 2]) == best)
                    symbols[at : at + 2] = ["".join(best)]
                ids += [id_of[symbol] for symbol in symbols]
    return ids


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_default_models_ids_equal_plain_python(smollm2, smollm2_metadata, prompt):
    ids = smollm2.encode(prompt)
    assert ids == plain_bpe(prompt, smollm2_metadata)
    assert smollm2.decode(ids, skip_special_tokens=False) == prompt


def test_the_default_models_ids_equal_transformers(smollm2, smollm2_gguf):
    # transformers reads the file by its own code (tokens, merges, specials, template), but ignores
    # `tokenizer.ggml.pre`: its cut would join a digit to the space before it. So it gets the pre-tokenizer of the
    # model's published tokenizer.json, written otherwise than ours (Digits, and ByteLevel's own pattern).
    theirs = AutoTokenizer.from_pretrained(str(smollm2_gguf.parent), gguf_file=smollm2_gguf.name)
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for prompt in PROMPTS:
        assert smollm2.encode(prompt) == theirs.encode(prompt), prompt
    for add_generation_prompt in (True, False):
        options = {"add_generation_prompt": add_generation_prompt}
        expected = theirs.apply_chat_template(CHAT, tokenize=True, return_dict=False, **options)
        assert smollm2.encode_chat(CHAT, **options) == expected
    assert (smollm2.bos_token_id, smollm2.eos_token_ids) == (theirs.bos_token_id, {theirs.eos_token_id})
    assert smollm2.vocab_size == len(theirs) == 49_152


def test_a_character_without_a_token_is_refused_not_dropped(smollm2):
    # This vocabulary lacks six control characters; the BPE of `tokenizers` would drop them without a word.
    with pytest.raises(InvalidRequestError, match=r"U\+0004 at character 3"):
        smollm2.encode("é🙂 \x04")


@pytest.mark.parametrize(("split", "pattern"), [("gpt-2", None), ("smollm", r"\p{N}")])
def test_the_cuts_of_the_table(split, pattern, tmp_path):
    cut = pattern and pre_tokenizers.Sequence(
        [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False)]
    )
    cut = cut or pre_tokenizers.ByteLevel(add_prefix_space=False)
    ours = Tokenizer.from_gguf(tiny_tokenizers.gguf_metadata(split), tmp_path / "m.gguf")
    backend = tiny_tokenizers.byte_level()
    backend.pre_tokenizer = cut
    for prompt in PROMPTS:
        assert ours.encode(prompt) == backend.encode(prompt).ids


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    directory = tmp_path_factory.mktemp("byte_level")
    tiny_tokenizers.byte_level().save(str(directory / "tokenizer.json"))
    return Tokenizer.from_directory(directory)


@settings(derandomize=True, deadline=None)
@given(text=st.text())
def test_text_comes_back(byte_level, text):
    if "é" not in text:  # made an added token on purpose: its own writing is a byte that is no character
        assert byte_level.decode(byte_level.encode(text), skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["\ud83d", "ok \udc00"])
def test_half_a_surrogate_pair_is_refused(byte_level, text):
    with pytest.raises(InvalidRequestError, match=rf"U\+{ord(text[-1]):04X} at character {len(text) - 1}"):
        byte_level.encode(text)


@pytest.mark.parametrize("token_id", [-1, 383, 2**32, 2**70])
def test_an_id_outside_the_vocabulary_is_named(byte_level, token_id):
    for method in (byte_level.token_bytes, lambda i: byte_level.decode([0, i])):
        with pytest.raises(InvalidRequestError, match=f"token id {token_id} is outside the vocabulary of 383 tokens"):
            method(token_id)


def test_importing_the_tokenizer_needs_neither_torch_nor_transformers():
    code = (
        "import sys, miniserve.model.tokenizer.tokenizer; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
