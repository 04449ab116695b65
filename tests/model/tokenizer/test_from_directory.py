"""A tokenizer from a directory: which of its files says what; what is wrong is named."""

import json

import pytest

from miniserve.errors import ChatTemplateError, CorruptFileError, ModelNotFoundError, UnsupportedModelError
from miniserve.model.tokenizer.tokenizer import Tokenizer
from support import tiny_tokenizers


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
        ours.encode_chat([{"role": "user", "content": "fox"}])


def test_where_the_chat_template_comes_from(directory):
    def render() -> str | None:
        template = Tokenizer.from_directory(directory).chat_template
        return template and template.render([{"role": "user", "content": "fox"}])

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
