"""The text stream: what is shown, and when, equals what a search of the whole text would allow, in linear work."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.model.tokenizer.detokenizer import DecodingRule, Detokenizer
from miniserve.model.tokenizer.text_stream import TextStream
from miniserve.model.tokenizer.tokenizer import Tokenizer
from support import tiny_tokenizers

EMOJI = "🙂".encode()


class Pieces:
    """A source whose token i stands for the bytes `pieces[i]`: any text, cut anywhere."""

    decoding_rule = DecodingRule(byte_level=True)

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id]

    def is_special(self, token_id: int) -> bool:
        return False


def cut(text: str | bytes, size: int = 1) -> list[bytes]:
    data = text.encode() if isinstance(text, str) else text
    return [data[i : i + size] for i in range(0, len(data), size)]


def shown_parts(pieces: list[bytes], **options) -> tuple[list[str], str | None]:
    """What each push shows, up to one that ends the text, then the finish; and the stop string found."""
    stream = TextStream(Pieces(pieces), **options)
    parts = []
    for token_id in range(len(pieces)):
        parts.append(stream.push(token_id))
        if stream.stop_reason is not None:
            break
    parts.append(stream.finish())
    assert stream.text == "".join(parts)
    return parts, stream.stop_reason


def texts_of(pieces: list[bytes]) -> list[str]:
    detokenizer = Detokenizer(Pieces(pieces))
    return [*(detokenizer.push(i) for i in range(len(pieces))), detokenizer.finish()]


def naive_parts(pieces, stop, include_stop_str, min_tokens) -> tuple[list[str], str | None]:
    """The same as `shown_parts`, from the definition: look at all the text again for every character."""
    parts, text = [], ""
    texts = texts_of(pieces)
    for number, new in enumerate(texts, start=1):
        is_finish = number == len(texts)
        num_tokens = number - is_finish
        for character in new:
            text += character
            found = [string for string in stop if text.endswith(string)]
            if found and num_tokens > min_tokens:
                reason = max(found, key=len)
                kept = text if include_stop_str else text.removesuffix(reason)
                last = kept.removeprefix("".join(parts))
                return [*parts, last] if is_finish else [*parts, last, ""], reason
        beginnings = [string[:k] for string in stop for k in range(1, len(string))]
        held = max((len(start) for start in beginnings if text.endswith(start)), default=0)
        allowed = len(text) if include_stop_str or is_finish else len(text) - held
        parts.append(text[len("".join(parts)) : allowed])
    return parts, None


# Few characters, so that stop strings overlap themselves and each other; and the emoji whole, cut and broken.
PIECES = [b"", b"a", b"b", b"ab", b"ba", b"aab", b"\xff", EMOJI, EMOJI[:2], EMOJI[2:], EMOJI[:3], EMOJI[3:] + b"a"]
STOPS = ["b", "ab", "bb", "aba", "baa", "abab", "aabaa", "bbaabb", "ababb"]
UNICODE_STOPS = ["b🙂", "ab🙂", "🙂🙂", "a🙂b", "\ufffdb", "a\ufffd"]
tokens = st.lists(st.sampled_from(PIECES), min_size=3, max_size=14)
stops = st.lists(st.sampled_from(STOPS + UNICODE_STOPS), max_size=4)


@settings(derandomize=True, deadline=None, max_examples=600)
@given(pieces=tokens, stop=stops, include_stop_str=st.booleans(), min_tokens=st.sampled_from([0, 0, 1, 2, 5]))
def test_every_piece_is_what_a_search_of_the_whole_text_allows(pieces, stop, include_stop_str, min_tokens):
    options = {"stop": stop, "include_stop_str": include_stop_str, "min_tokens": min_tokens}
    assert shown_parts(pieces, **options) == naive_parts(pieces, **options)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(text=st.text("ab🙂", max_size=20), stop=stops, include_stop_str=st.booleans(), data=st.data())
def test_where_the_text_is_cut_makes_no_difference(text, stop, include_stop_str, data):
    edges = sorted(data.draw(st.sets(st.integers(0, len(text.encode())), max_size=10)))
    pieces = [text.encode()[a:b] for a, b in zip([0, *edges], [*edges, None], strict=True)]
    options = {"stop": stop, "include_stop_str": include_stop_str}
    parts, reason = shown_parts(pieces, **options)
    whole, whole_reason = shown_parts([text.encode()], **options)
    assert ("".join(parts), reason) == ("".join(whole), whole_reason)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(pieces=tokens, stop=stops)
def test_nothing_of_a_stop_string_is_shown_and_nothing_else_is_lost(pieces, stop):
    parts, reason = shown_parts(pieces, stop=stop)
    shown, text = "".join(parts), "".join(texts_of(pieces))
    assert not any(string in shown for string in stop)
    assert text.startswith(shown + reason if reason else shown)
    assert reason or shown == text


@pytest.mark.parametrize(
    ("text", "stop", "before", "reason"),
    [
        ("xaba", ["aba", "ab"], "x", "ab"),  # the one that ends first, though both start there
        ("xabab", ["bab", "ab"], "x", "ab"),
        ("xaba", ["ba", "aba", "a"], "x", "a"),
        ("xabcd", ["bc", "abc", "abcd"], "x", "abc"),  # both end there: the one that starts first
        ("xaaab", ["aab"], "xa", "aab"),
        ("abacabad", ["abad"], "abac", "abad"),
        ("same", ["e", "e"], "sam", "e"),
        ("stop", ["stop"], "", "stop"),
        ("none", ["nones"], "none", None),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 100])
@pytest.mark.parametrize("include_stop_str", [False, True])
def test_the_first_stop_string_ends_the_text(text, stop, before, reason, size, include_stop_str):
    pieces = cut(text + (" behind" if reason else ""), size)
    parts, found = shown_parts(pieces, stop=stop, include_stop_str=include_stop_str)
    assert found == reason
    assert "".join(parts) == before + (reason if reason and include_stop_str else "")


def test_text_is_held_only_while_it_may_become_a_stop_string():
    parts = ["a", "", "<b", "", "", "</c", "", "", "", "", ""]
    assert shown_parts(cut("a<b</c</i>d"), stop=["</i>"]) == (parts, "</i>")
    # "aab" after "aa": one "a" is known to be text as soon as a third comes.
    assert shown_parts(cut("aaaac"), stop=["aab"])[0] == ["", "", "a", "a", "aac", ""]
    assert shown_parts(cut("so <"), stop=["</i>"])[0] == ["s", "o", " ", "", "<"]


def test_with_the_stop_string_included_there_is_no_reason_to_wait():
    assert shown_parts(cut("a</i>d"), stop=["</i>"], include_stop_str=True) == (["a", "<", "/", "i", ">", ""], "</i>")


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("stop", "shown"), [("🙂", "ok"), ("k🙂", "o"), ("🙂!", "ok"), ("!🙃", "ok🙂"), ("🙃", "ok🙂!"), ("🙄", "ok🙂!🙃")]
)
def test_an_emoji_cut_in_half_inside_and_around_a_stop_string(stop, shown, size):
    parts, reason = shown_parts(cut("ok🙂!🙃", size), stop=[stop])
    assert "".join(parts) == shown
    assert reason == (stop if stop != "🙄" else None)
    assert not any("\ufffd" in part for part in parts)


def test_half_an_emoji_at_the_finish_is_shown_behind_what_was_held():
    assert shown_parts(cut(b"x<" + EMOJI[:2]), stop=["<end>"]) == (["x", "", "", "", "<\ufffd"], None)


def test_a_stop_string_with_a_replacement_character_is_found_at_the_finish():
    assert shown_parts(cut(b"x<" + EMOJI[:2]), stop=["<\ufffd"]) == (["x", "", "", "", ""], "<\ufffd")
    assert shown_parts(cut(b"x<" + EMOJI[:2]), stop=["<\ufffd"], min_tokens=4)[1] is None


def test_a_stop_string_within_min_tokens_is_ordinary_text():
    assert shown_parts(cut("abxab"), stop=["ab"], min_tokens=2) == (["", "ab", "x", "", "", ""], "ab")
    assert shown_parts(cut("abxab"), stop=["ab"], min_tokens=1)[1] == "ab"
    assert shown_parts(cut("abxab"), stop=["ab"], min_tokens=5) == (["", "ab", "x", "", "ab", ""], None)
    # It began within the first tokens, and it may go on into another one.
    assert shown_parts(cut("xaba"), stop=["aba"], min_tokens=3) == (["x", "", "", "", ""], "aba")
    assert shown_parts(cut("ababa"), stop=["aba"], min_tokens=3) == (["", "", "ab", "", "", ""], "aba")
    assert shown_parts(cut("abc"), stop=["ab", "abc"], min_tokens=2) == (["", "", "", ""], "abc")
    assert shown_parts(cut("abx"), stop=["ab", "abc"], min_tokens=2) == (["", "", "abx", ""], None)


def test_nothing_comes_after_the_end():
    stream = TextStream(Pieces([b"a<", b">b"]), stop=["<>"])
    assert [stream.push(0), stream.push(1), stream.finish(), stream.finish()] == ["a", "", "", ""]
    assert (stream.text, stream.stop_reason) == ("a", "<>")
    with pytest.raises(AssertionError, match="after the end"):
        stream.push(0)
    stream = TextStream(Pieces([b"a<"]), stop=["<>"])
    assert [stream.push(0), stream.text, stream.finish(), stream.finish(), stream.text] == ["a", "a", "<", "", "a<"]
    with pytest.raises(AssertionError, match="after the end"):
        stream.push(0)


@pytest.mark.parametrize("stop", [["a", ""], "stop"])
def test_no_empty_stop_string_and_no_bare_string(stop):
    with pytest.raises(AssertionError, match="stop string"):
        TextStream(Pieces([]), stop=stop)


@pytest.fixture(scope="module", params=["byte_level", "sentencepiece_like"])
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    directory = tmp_path_factory.mktemp(request.param)
    getattr(tiny_tokenizers, request.param)().save(str(directory / "tokenizer.json"))
    return Tokenizer.from_directory(directory)


def generate(tokenizer, ids, **options) -> TextStream:
    stream = TextStream(tokenizer, **options)
    for token_id in ids:
        stream.push(token_id)
        if stream.stop_reason is not None:
            break
    stream.finish()
    return stream


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("stop", [(), ("the dog sleeps", "🙂🙂", "  ")])
def test_without_a_stop_string_it_is_what_the_tokenizer_decodes(tokenizer, skip, stop):
    ids = [0, *tokenizer.encode("the cat sat on the mat 🙂 and the dog 你好 sat on the log"), 0]
    # One byte only: of a longer run of SentencePiece's byte tokens, `decode` makes more than one U+FFFD.
    ids.append(next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == EMOJI[:1]))
    stream = generate(tokenizer, ids, stop=stop, skip_special_tokens=skip)
    assert stream.text == tokenizer.decode(ids, skip_special_tokens=skip)
    assert stream.stop_reason is None
    assert stream.text.endswith("\ufffd")


def test_a_prompt_is_not_searched_but_the_character_it_left_half_is(tokenizer):
    prompt, half = (tokenizer.encode(text, add_special_tokens=False) for text in ("the cat s", "🙂"))
    rest = tokenizer.encode("top 🙂", add_special_tokens=False)
    stream = generate(tokenizer, rest, prompt_ids=prompt, stop=["stop", "cat"])
    assert stream.stop_reason is None
    assert stream.text == tokenizer.decode([*prompt, *rest]).removeprefix("the cat s")
    stream = generate(tokenizer, [*half[-1:], *rest], prompt_ids=[*prompt, *half[:-1]], stop=["🙂"])
    assert (stream.text, stream.stop_reason) == ("", "🙂")


def test_a_control_tokens_text_stops_only_where_it_is_shown(tokenizer):
    control = tokenizer.decode([1], skip_special_tokens=False)
    ids = [*tokenizer.encode("the", add_special_tokens=False), 1, *tokenizer.encode("cat", add_special_tokens=False)]
    assert generate(tokenizer, ids, stop=[control]).stop_reason is None
    shown = generate(tokenizer, ids, stop=[control], skip_special_tokens=False)
    assert (shown.text, shown.stop_reason) == ("the", control)
    # Where it is left out, its neighbours are neighbours.
    across = tokenizer.decode(ids)
    assert generate(tokenizer, ids, stop=[across]).stop_reason == across


def seconds(pieces: list[bytes], num_tokens: int, stop: list[str]) -> float:
    ids = random.Random(0).choices(range(len(pieces)), k=num_tokens)
    best = float("inf")
    for _ in range(3):
        stream = TextStream(Pieces(pieces), stop=stop)
        start = time.process_time()
        for token_id in ids:
            stream.push(token_id)
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.parametrize(
    ("pieces", "stop"),
    [
        ([b"the ", b"cat", b"\n"], ["\n\n\n\n\nUser:", "</s>"]),
        ([b"a", b"aa"], ["a" * 200 + "b"]),  # held as far as can be, and every character lets go of one
        ([b"a", b"b", b"ab"], ["a" * k + "babx" for k in range(16)]),
    ],
)
def test_work_is_linear_in_the_output(pieces, stop):
    assert seconds(pieces, 40_000, stop) < 10 * seconds(pieces, 10_000, stop)  # 4 if linear, 16 if quadratic
