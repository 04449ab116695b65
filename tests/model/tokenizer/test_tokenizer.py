"""The tokenizer: the default model's ids equal two independent references, and bad files end in errors that name them."""

import contextlib
import copy
import itertools
import json
import random
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

from miniserve.errors import (
    ChatTemplateError,
    CorruptFileError,
    InvalidRequestError,
    MiniserveError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from miniserve.model.gguf import GGUFFile
from miniserve.model.tokenizer.detokenizer import Detokenizer
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


@pytest.mark.parametrize(
    ("split", "text", "words"),
    [
        ("gpt-2", "a  b 123's", ["a", " ", " b", " 123", "'s"]),
        ("smollm", "a  12", ["a", "  ", "1", "2"]),
        ("llama-bpe", "We'LL  1234\n\nx!", ["We", "'LL", " ", " ", "123", "4", "\n\n", "x", "!"]),
        ("qwen2", "We'LL  12\n\nx!", ["We", "'LL", " ", " ", "1", "2", "\n\n", "x", "!"]),
        ("default", "a+b 12345", ["a", "+", "b", " ", "123", "45"]),
    ],
)
def test_each_cut_by_hand(split, text, words, tmp_path):
    ours = Tokenizer.from_gguf(tiny_tokenizers.gguf_metadata(split), tmp_path / "m.gguf")
    cut = ours._backend.pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in cut] == words


def test_qwen2_composes_characters_and_llama_3_begins_with_bos(tmp_path):
    qwen2 = Tokenizer.from_gguf(tiny_tokenizers.gguf_metadata("qwen2"), tmp_path)
    assert qwen2.encode("u\u0308") == qwen2.encode("ü")
    for add_bos, expected in [({}, [1]), ({"add_bos_token": True}, [1]), ({"add_bos_token": False}, [])]:
        metadata = tiny_tokenizers.gguf_metadata("llama-bpe")
        del metadata["tokenizer.ggml.add_bos_token"]
        metadata |= {f"tokenizer.ggml.{key}": value for key, value in add_bos.items()}
        llama = Tokenizer.from_gguf(metadata, tmp_path)
        plain = llama.encode("fox", add_special_tokens=False)
        assert llama.encode("fox") == [*expected, *plain]
        assert plain[:1] != [1]


def test_gguf_end_ids_are_a_union_and_added_tokens_keep_their_kind(tmp_path):
    metadata = tiny_tokenizers.gguf_metadata(eot_token_id=5, eom_token_id=6)
    ours = Tokenizer.from_gguf(metadata, tmp_path / "m.gguf")
    assert (ours.bos_token_id, ours.eos_token_ids) == (1, {0, 5, 6})
    tool = metadata["tokenizer.ggml.tokens"].index("<tool>")
    assert ours.encode("<|end|><tool>") == [0, tool]
    assert (ours.is_special(0), ours.is_special(tool)) == (True, False)
    assert ours.decode([0, tool]) == "<tool>"
    assert ours.encode_chat([{"role": "user", "content": "fox"}]) == [1, *ours.encode("fox"), 0]


# --- directories


def write(directory, name: str, value) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    (directory / name).write_text(text, encoding="utf-8", newline="")


@pytest.fixture
def directory(tmp_path):
    tiny_tokenizers.byte_level().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_directory_end_ids_are_the_union_of_all_files(directory):
    write(directory, "tokenizer_config.json", {"bos_token": {"content": "<|user|>"}, "eos_token": "<|end|>"})
    write(directory, "generation_config.json", {"eos_token_id": [5, 6]})
    write(directory, "config.json", {"eos_token_id": 7})
    ours = Tokenizer.from_directory(directory)
    assert (ours.bos_token_id, ours.eos_token_ids) == (1, {0, 5, 6, 7})


def test_a_lone_tokenizer_json_is_enough(directory):
    ours = Tokenizer.from_directory(str(directory))
    assert (ours.bos_token_id, ours.eos_token_ids, ours.chat_template) == (None, frozenset(), None)
    with pytest.raises(ChatTemplateError, match=r"tokenizer\.json.*chat_template\.jinja"):
        ours.encode_chat(CHAT)


def test_where_the_chat_template_comes_from(directory):
    def render() -> str | None:
        template = Tokenizer.from_directory(directory).chat_template
        return template and template.render(CHAT)

    write(directory, "tokenizer_config.json", {"chat_template": "one {{ eos_token }}", "eos_token": "<|end|>"})
    assert render() == "one <|end|>"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "two"}]
    write(directory, "tokenizer_config.json", {"chat_template": named})
    assert render() == "two"
    write(directory, "tokenizer_config.json", {"chat_template": named[:1]})
    assert render() is None
    write(directory, "chat_template.jinja", "three")
    assert render() == "three"


def test_truncation_and_padding_saved_in_the_file_are_switched_off(tmp_path):
    backend = tiny_tokenizers.byte_level()
    backend.enable_truncation(2)
    backend.enable_padding(length=64)
    backend.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_directory(tmp_path)
    assert ours.decode(ours.encode("the quick brown fox")) == "the quick brown fox"


def test_the_post_processor_adds_bos_once(tmp_path):
    tiny_tokenizers.sentencepiece_like().save(str(tmp_path / "tokenizer.json"))
    write(
        tmp_path,
        "tokenizer_config.json",
        {"bos_token": "<s>", "chat_template": "{{ bos_token }}{{ messages[0].content }}"},
    )
    ours = Tokenizer.from_directory(tmp_path)
    assert ours.encode("the cat")[0] == 1
    assert ours.encode_chat([{"role": "user", "content": "the cat"}]).count(1) == 1
    assert ours.decode(ours.encode("the cat")) == "the cat"


def test_a_missing_tokenizer_json_is_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"tokenizer\.json does not exist"):
        Tokenizer.from_directory(tmp_path)
    write(tmp_path, "tokenizer.model", "")
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.json does not exist.*tokenizer\.model.*convert"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tokenizer.json", "{", "not a tokenizer"),
        ("tokenizer.json", "[]", "not a tokenizer"),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a q"]}}, "not a tokenizer"),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {}, "merges": []}}, "holds no tokens"),
        ("tokenizer_config.json", "nope", "JSON"),
        ("tokenizer_config.json", "[" * 100_000, "JSON"),
        ("tokenizer_config.json", "[1]", "object"),
        ("tokenizer_config.json", {"eos_token": 3}, "eos_token is 3"),
        ("tokenizer_config.json", {"bos_token": {"text": "x"}}, "bos_token"),
        ("tokenizer_config.json", {"eos_token": "<absent>"}, "eos_token is '<absent>', which is not in the vocab"),
        ("tokenizer_config.json", {"eos_token": "\ud800"}, "eos_token"),
        ("tokenizer_config.json", {"chat_template": 3}, "chat_template is a int"),
        ("tokenizer_config.json", {"chat_template": ["x"]}, "chat_template is a list"),
        ("tokenizer_config.json", {"chat_template": [{"name": "default", "template": 1}]}, "chat_template is a int"),
        ("generation_config.json", {"eos_token_id": "2"}, "eos_token_id holds '2'"),
        ("generation_config.json", {"eos_token_id": [1, True]}, "eos_token_id holds True"),
        ("generation_config.json", {"eos_token_id": [1, 383]}, "eos_token_id is 383, outside the vocabulary of 383"),
        ("config.json", {"eos_token_id": -1}, "eos_token_id is -1"),
        ("config.json", "\x00", "JSON"),
    ],
)
def test_a_bad_file_is_named(directory, name, value, message):
    write(directory, name, value)
    with pytest.raises(CorruptFileError, match=message) as error:
        Tokenizer.from_directory(directory)
    assert str(directory / name) in str(error.value)


def test_a_chat_template_that_does_not_parse_or_is_not_text_is_named(directory):
    write(directory, "chat_template.jinja", "{% if %}")
    with pytest.raises(ChatTemplateError, match=rf"{directory}.*line 1"):
        Tokenizer.from_directory(directory)
    (directory / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(CorruptFileError, match=r"chat_template\.jinja cannot be read"):
        Tokenizer.from_directory(directory)


# --- GGUF metadata


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.model", "llama", "tokenizer.ggml.model is 'llama'"),
        ("tokenizer.ggml.pre", "tekken", "tokenizer.ggml.pre is 'tekken'; supported: gpt-2"),
        ("tokenizer.ggml.add_eos_token", True, "tokenizer.ggml.add_eos_token"),
    ],
)
def test_an_unknown_kind_of_gguf_tokenizer_is_refused_by_name(key, value, message, tmp_path):
    with pytest.raises(UnsupportedModelError, match=rf"m\.gguf: {message}"):
        Tokenizer.from_gguf(tiny_tokenizers.gguf_metadata() | {key: value}, tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["model", "pre", "tokens", "token_type", "merges"])
def test_a_missing_or_mistyped_key_is_named(name, tmp_path):
    key, metadata = f"tokenizer.ggml.{name}", tiny_tokenizers.gguf_metadata()
    for value in (None, 3, 3.5, b"x", {}, [None], [["a"]]):
        with pytest.raises(CorruptFileError, match=rf"m\.gguf: {key}"):
            Tokenizer.from_gguf(metadata | {key: value}, tmp_path / "m.gguf")
    del metadata[key]
    with pytest.raises(CorruptFileError, match=rf"m\.gguf: {key} is missing"):
        Tokenizer.from_gguf(metadata, tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": []}, "token_type has"),
        ({"tokens": [], "token_type": []}, "tokens is empty"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "repeated"),
        ({"tokens": ["a", ""], "token_type": [1, 1]}, "empty"),
        ({"tokens": ["\ud800"], "token_type": [3], "merges": []}, "tokens"),
        ({"merges": ["a"]}, r"merges\[0\] is 'a'"),
        ({"merges": ["a b c"]}, r"merges\[0\]"),
        ({"merges": ["qqq zzz"]}, "merges"),
        ({"eos_token_id": 383}, "eos_token_id is 383, outside the vocabulary of 383"),
        ({"eot_token_id": -1}, "eot_token_id is -1"),
        ({"bos_token_id": "1"}, "bos_token_id is a str"),
        ({"bos_token_id": True}, "bos_token_id is a bool"),
        ({"bos_token_id": None, "add_bos_token": True}, "bos_token_id is missing"),
        ({"add_bos_token": 1}, "add_bos_token is a int"),
    ],
)
def test_a_bad_value_is_named(changes, message, tmp_path):
    with pytest.raises(CorruptFileError, match=rf"m\.gguf: tokenizer\.ggml\..*{message}"):
        Tokenizer.from_gguf(tiny_tokenizers.gguf_metadata(**changes), tmp_path / "m.gguf")


def use(tokenizer: Tokenizer) -> None:
    """Everything a server does with a tokenizer; any failure must be an expected one."""
    ids = tokenizer.encode("The fox <|end|> 12 é🙂")
    tokenizer.decode(ids)
    stream = Detokenizer(tokenizer, prompt_ids=ids[:2])
    assert isinstance("".join([*map(stream.push, ids), stream.finish()]), str)
    if tokenizer.chat_template is not None:
        tokenizer.encode_chat(CHAT)


JUNK = [None, True, -1, 0, 2**31, 2**70, 1.5, float("nan"), "", "x", "\ud800", "🙂", [], [1], ["a", "a"], {}, {"a": 1}]


def mutate(value, rng: random.Random):
    """Return a copy of a JSON-like value with one random place changed, removed, repeated or swapped."""
    value = copy.deepcopy(value)
    if not value:
        return value
    parent, at, here = None, None, value
    while isinstance(here, dict | list) and here and (parent is None or rng.random() < 0.7):
        at = rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
        parent, here = here, here[at]
    action = rng.randrange(4)
    if action == 0:
        del parent[at]
    elif action == 1 and isinstance(parent, list):
        parent.insert(at, rng.choice(parent))
    elif action == 2 and isinstance(here, str):
        parent[at] = "".join(rng.sample(here, len(here))) + rng.choice(["", " ", "a", "Ġ"])
    else:
        parent[at] = rng.choice(JUNK)
    return value


@pytest.mark.parametrize("seed", range(100))
def test_fuzzed_metadata_ends_in_an_expected_error_or_works(seed, tmp_path):
    rng = random.Random(seed)
    metadata = tiny_tokenizers.gguf_metadata(rng.choice(["gpt-2", "smollm", "llama-bpe", "qwen2", "default"]))
    for _ in range(rng.randint(1, 3)):
        metadata = mutate(metadata, rng)
    with contextlib.suppress(MiniserveError):
        use(Tokenizer.from_gguf(metadata, tmp_path / "m.gguf"))


@pytest.mark.parametrize("seed", range(100))
def test_fuzzed_files_end_in_an_expected_error_or_work(seed, tmp_path):
    rng = random.Random(seed)
    backend = rng.choice([tiny_tokenizers.byte_level, tiny_tokenizers.sentencepiece_like])()
    files = {
        "tokenizer.json": json.loads(backend.to_str()),
        "tokenizer_config.json": {
            "eos_token": {"content": backend.id_to_token(0)},
            "chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}],
        },
        "generation_config.json": {"eos_token_id": [0, 1]},
        "config.json": {"eos_token_id": 0},
    }
    victim = rng.choice(["tokenizer.json", "tokenizer.json", *files])
    for _ in range(rng.randint(1, 3)):
        files[victim] = mutate(files[victim], rng)
    for name, value in files.items():
        write(tmp_path, name, value)
    if seed % 5 == 0:  # and, now and then, a file that was cut off or has one flipped byte
        data = bytearray((tmp_path / victim).read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (tmp_path / victim).write_bytes(data[: rng.randrange(len(data))] if seed % 10 else data)
    with contextlib.suppress(MiniserveError):
        use(Tokenizer.from_directory(tmp_path))


# --- requests


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
