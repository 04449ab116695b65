"""A tokenizer from the metadata of a GGUF file: its cuts and its ends; what is wrong is named."""

import pytest

from miniserve.errors import CorruptFileError, UnsupportedModelError
from miniserve.model.tokenizer.tokenizer import Tokenizer
from support import tiny_tokenizers


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
