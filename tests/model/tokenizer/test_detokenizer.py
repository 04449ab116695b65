"""The detokenizer: what is streamed equals what is decoded, on any ids, in linear work."""

import codecs
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders

from miniserve.errors import InvalidRequestError, UnsupportedModelError
from miniserve.model.tokenizer.detokenizer import DecodingRule, Detokenizer
from miniserve.model.tokenizer.tokenizer import Tokenizer
from support import tiny_tokenizers

NUM_TOKENS = 383  # of byte_level(); a test below holds it
LLAMA_STEPS = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]


def load(backend, directory) -> Tokenizer:
    backend.save(str(directory / "tokenizer.json"))
    return Tokenizer.from_directory(directory)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory) -> Tokenizer:
    return load(tiny_tokenizers.byte_level(), tmp_path_factory.mktemp("byte_level"))


@pytest.fixture(scope="module")
def sentencepiece_like(tmp_path_factory) -> Tokenizer:
    return load(tiny_tokenizers.sentencepiece_like(), tmp_path_factory.mktemp("sentencepiece_like"))


def pieces(tokenizer, ids, *, skip_special_tokens=True, prompt_ids=()) -> list[str]:
    """What each push gives, and then the finish."""
    stream = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens, prompt_ids=prompt_ids)
    return [*(stream.push(token_id) for token_id in ids), stream.finish()]


def stream(tokenizer, ids, **options) -> str:
    return "".join(pieces(tokenizer, ids, **options))


def byte_ids(tokenizer, data: bytes) -> list[int]:
    """The ids of single-byte tokens that spell `data`."""
    id_of = {tokenizer.token_bytes(i): i for i in reversed(range(tokenizer.vocab_size)) if not tokenizer.is_special(i)}
    return [id_of[bytes([byte])] for byte in data]


def split_at(tokenizer, text: str, at: int) -> tuple[list[int], list[int]]:
    ids = byte_ids(tokenizer, text.encode())
    return ids[:at], ids[at:]


# Ids that are bytes of one character, broken in every way, are what random ids alone would rarely make.
any_ids = st.lists(st.integers(0, NUM_TOKENS - 1), max_size=40)
broken_utf8 = st.lists(st.one_of(st.text(max_size=3).map(lambda text: text.encode()), st.binary(max_size=3))).map(
    b"".join
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(ids=any_ids, skip=st.booleans())
def test_any_ids_stream_as_they_decode(byte_level, ids, skip):
    assert byte_level.vocab_size == NUM_TOKENS
    expected = byte_level.decode(ids, skip_special_tokens=skip)
    assert stream(byte_level, ids, skip_special_tokens=skip) == expected


@settings(derandomize=True, deadline=None, max_examples=300)
@given(data=broken_utf8)
def test_any_bytes_stream_as_they_decode(byte_level, data):
    ids = byte_ids(byte_level, data)
    assert stream(byte_level, ids) == byte_level.decode(ids)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(text=st.text(), skip=st.booleans())
def test_any_text_comes_back(byte_level, text, skip):
    ids = byte_level.encode(text)
    assert stream(byte_level, ids, skip_special_tokens=skip) == byte_level.decode(ids, skip_special_tokens=skip)
    if not any(token in text for token in (*tiny_tokenizers.CONTROL, "é")):
        assert stream(byte_level, ids) == text


@settings(derandomize=True, deadline=None, max_examples=300)
@given(text=st.text(alphabet="the catdog▁ 你🙂é<>\n", max_size=30), skip=st.booleans())
def test_any_text_comes_back_from_a_sentencepiece_like_tokenizer(sentencepiece_like, text, skip):
    ids = sentencepiece_like.encode(text)
    expected = sentencepiece_like.decode(ids, skip_special_tokens=skip)
    assert stream(sentencepiece_like, ids, skip_special_tokens=skip) == expected
    if skip:
        assert expected == text.replace("▁", " ")


@settings(derandomize=True, deadline=None, max_examples=300)
@given(data=st.data())
def test_ids_without_broken_byte_runs_stream_as_they_decode(sentencepiece_like, data):
    size = sentencepiece_like.vocab_size
    words = [i for i in range(size) if not 3 <= i < 259]  # the byte tokens are 3 to 258
    character = st.sampled_from("é你🙂\x00 ").map(lambda c: [3 + byte for byte in c.encode()])
    runs = data.draw(st.lists(st.one_of(st.sampled_from(words).map(lambda i: [i]), character), max_size=20))
    ids = [token_id for run in runs for token_id in run]
    assert stream(sentencepiece_like, ids) == sentencepiece_like.decode(ids)


def test_a_broken_byte_run_keeps_its_good_characters(sentencepiece_like):
    ids = [3 + byte for byte in b"A\xff"]
    assert sentencepiece_like.decode(ids) == "\ufffd\ufffd"
    assert pieces(sentencepiece_like, ids) == ["A", "\ufffd", ""]


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_like"])
def test_an_emoji_over_four_tokens_appears_once_and_whole(kind, request):
    tokenizer = request.getfixturevalue(kind)
    assert pieces(tokenizer, byte_ids(tokenizer, "🙂!".encode())) == ["", "", "", "🙂", "!", ""]


def test_half_an_emoji_at_the_finish_is_one_replacement_character(byte_level):
    half, _ = split_at(byte_level, "ok🙂", 5)
    assert pieces(byte_level, half) == ["o", "k", "", "", "", "\ufffd"]
    assert byte_level.decode(half) == "ok\ufffd"


def test_half_an_emoji_before_other_text_is_not_dropped(byte_level):
    half, _ = split_at(byte_level, "🙂", 2)
    assert pieces(byte_level, [*half, *byte_ids(byte_level, b"x")]) == ["", "", "\ufffdx", ""]


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_like"])
@pytest.mark.parametrize("at", [3, 4, 5])
def test_an_emoji_that_the_prompt_began_is_emitted_whole(kind, at, request):
    tokenizer = request.getfixturevalue(kind)
    prompt, generated = split_at(tokenizer, "ok🙂!", at)
    assert stream(tokenizer, generated, prompt_ids=prompt) == "🙂!"


@pytest.mark.parametrize("at", range(7))
def test_the_prompts_own_text_is_never_emitted(byte_level, at):
    prompt, _ = split_at(byte_level, "ok🙂", at)
    assert pieces(byte_level, [], prompt_ids=prompt) == [""]
    assert stream(byte_level, byte_ids(byte_level, b"hi"), prompt_ids=prompt) == "hi"


@settings(derandomize=True, deadline=None, max_examples=500)
@given(prompt=any_ids, data=broken_utf8, cut=st.integers(0, 30))
def test_the_stream_adds_to_the_prompt_what_decoding_all_adds(byte_level, prompt, data, cut):
    tail = byte_ids(byte_level, data)
    prompt, generated = prompt + tail[:cut], tail[cut:]
    before, whole = byte_level.decode(prompt), byte_level.decode(prompt + generated)
    if not whole.startswith(before):  # the prompt's last, half character was completed
        before = before.removesuffix("\ufffd")
    streamed = stream(byte_level, generated, prompt_ids=prompt)
    # Where generated bytes go on with the half and then break off, the one U+FFFD for both belongs to the generated text.
    assert whole in (before + streamed, before.removesuffix("\ufffd") + streamed)


def test_special_tokens_at_the_prompts_end_do_not_hide_the_half(byte_level):
    prompt, generated = split_at(byte_level, "🙂", 2)
    assert stream(byte_level, generated, prompt_ids=[*prompt, 0, 1]) == "🙂"


def test_a_leading_space_is_stripped_once_and_not_after_a_prompt(sentencepiece_like):
    ids = sentencepiece_like.encode("the cat", add_special_tokens=False)
    assert stream(sentencepiece_like, ids) == "the cat"
    assert stream(sentencepiece_like, ids, prompt_ids=[1]) == "the cat"  # <s> is no text
    assert stream(sentencepiece_like, ids, prompt_ids=ids) == " the cat"
    assert stream(sentencepiece_like, ids + ids) == "the cat the cat"


class CountingDecoder:
    """Stands in for the UTF-8 decoder and counts the bytes it is given."""

    def __init__(self, errors: str) -> None:
        self.inner = codecs.getincrementaldecoder("utf-8")(errors)
        self.bytes_seen = 0

    def decode(self, data: bytes, final: bool = False) -> str:
        self.bytes_seen += len(data)
        return self.inner.decode(data, final)


@pytest.mark.parametrize("num_tokens", [100, 10_000])
def test_work_is_linear_in_the_output(byte_level, num_tokens):
    # Bytes that never make a character, the worst case for a detokenizer that decodes again until one is whole.
    ids = random.Random(0).choices(range(NUM_TOKENS), k=num_tokens // 2) + byte_ids(byte_level, b"\x80") * (
        num_tokens // 2
    )
    prompt_ids = byte_level.encode("a long prompt " * 1000)
    stream_ = Detokenizer(byte_level, prompt_ids=prompt_ids, skip_special_tokens=False)
    counting = stream_._decoder = CountingDecoder("replace")
    text = "".join([*(stream_.push(i) for i in ids), stream_.finish()])
    assert text == byte_level.decode(ids, skip_special_tokens=False)
    assert counting.bytes_seen == sum(len(byte_level.token_bytes(i)) for i in ids)


@pytest.mark.parametrize("token_id", [-1, NUM_TOKENS, 2**40])
def test_an_id_outside_the_vocabulary_is_named(byte_level, token_id):
    with pytest.raises(InvalidRequestError, match=rf"{token_id} is outside the vocabulary of {NUM_TOKENS}"):
        Detokenizer(byte_level).push(token_id)
    with pytest.raises(InvalidRequestError, match=str(token_id)):
        Detokenizer(byte_level, prompt_ids=[token_id])


@pytest.mark.parametrize(
    ("decoder", "name"),
    [
        (None, "no decoder"),
        (decoders.WordPiece(), "WordPiece"),
        (decoders.Metaspace(), "Metaspace"),
        (decoders.Sequence([decoders.Replace(Regex("▁+"), " "), decoders.Fuse()]), "Replace"),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]), "Strip"),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 2, 0)]), "Strip"),
        (decoders.Sequence([decoders.Strip(" ", 1, 0)]), "Strip"),
        (decoders.Sequence([decoders.Fuse(), decoders.ByteFallback()]), "ByteFallback"),
        (decoders.Sequence([decoders.ByteFallback(), decoders.ByteFallback()]), "ByteFallback"),
        (decoders.Sequence([decoders.ByteLevel()]), "ByteLevel"),
        (decoders.Sequence([decoders.Sequence([decoders.Fuse()])]), "Sequence"),
    ],
)
def test_a_decoder_it_does_not_understand_is_refused_by_name(decoder, name, tmp_path):
    backend = tiny_tokenizers.byte_level()
    backend.decoder = decoder
    with pytest.raises(UnsupportedModelError, match=name) as error:
        load(backend, tmp_path)
    assert "tokenizer.json" in str(error.value)


def test_decoders_of_the_same_family_are_understood():
    assert DecodingRule.from_decoder({"type": "Sequence", "decoders": LLAMA_STEPS}).strip_leading == " "
    without_strip = DecodingRule.from_decoder({"type": "Sequence", "decoders": LLAMA_STEPS[:3]})  # Gemma's
    assert without_strip == DecodingRule(False, (("▁", " "),), True, "")


def test_added_tokens_outside_the_byte_characters_stand_for_their_own_utf8(byte_level):
    written = {byte_level.token_bytes(i) for i in range(NUM_TOKENS - 3, NUM_TOKENS)}
    assert written == {b"<tool>", b"a b", "<｜工具｜>".encode()}
