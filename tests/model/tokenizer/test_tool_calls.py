"""Calls in a text: found alike however it is cut into pieces, and as far as a cut at any place lets them."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.core.grammar import CALL_ARGUMENTS, CALL_BEGIN, CALL_BETWEEN, CALL_END, CALL_NAME
from miniserve.model.tokenizer.tool_calls import ToolCallReader


def read(pieces):
    """Text and [name, arguments] of all pieces; the reader."""
    reader, text, calls = ToolCallReader(), "", []
    for heard in [*(reader.push(piece) for piece in pieces), reader.finish()]:
        text += heard.text
        for index, name, arguments in heard.calls:
            if name is not None:
                assert index == len(calls)
                calls.append([name, ""])
            calls[index][1] += arguments
    assert reader.num_calls == len(calls)
    return text, calls, reader


def written(calls):
    return CALL_BETWEEN.join(f"{CALL_BEGIN}{CALL_NAME}{name}{CALL_ARGUMENTS}{text}{CALL_END}" for name, text in calls)


# Much of what could be taken for a marker.
TEXT = st.lists(st.sampled_from(["<", "<tool", "</tool_call>", "_call", "}", "\n", "é", '{"name": "', "a"])).map(
    "".join
)
VALUES = st.recursive(
    TEXT | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
ARGUMENTS = st.builds(
    lambda value, indent: json.dumps(value, indent=indent, ensure_ascii=False),
    st.dictionaries(TEXT, VALUES, max_size=3),
    st.sampled_from([None, 1]),
)
CALLS = st.lists(st.tuples(st.from_regex(r"[\w-]{1,9}", fullmatch=True), ARGUMENTS), max_size=3)


def cut(text, places):
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


@settings(max_examples=70, deadline=None)
@given(
    said=TEXT.filter(lambda text: CALL_BEGIN not in text),
    calls=CALLS,
    places=st.lists(st.integers(0, 400), max_size=12),
)
def test_the_same_however_it_is_cut(said, calls, places):
    whole = said + written(calls)
    if whole.find(CALL_BEGIN) not in (-1, len(said)):
        return  # the text's end and the marker make one that begins earlier
    for pieces in (cut(whole, places), list(whole), [whole]):
        text, found, reader = read(pieces)
        assert (text, found) == (said, [list(call) for call in calls])
        assert not reader.inside


@settings(max_examples=60, deadline=None)
@given(calls=CALLS.filter(bool), end=st.integers(0, 400), places=st.lists(st.integers(0, 400), max_size=6))
def test_what_is_cut_off_is_given_as_far_as_it_came(calls, end, places):
    whole = "so: " + written(calls)
    begun = whole[: 4 + end % (len(whole) - 4)]
    text, found, reader = read(cut(begun, places))
    assert (text, found) == read([begun])[:2]
    last = begun.rpartition(CALL_BEGIN)[2]
    assert reader.inside == (CALL_BEGIN in begun and not last.endswith(CALL_END) and last.count(CALL_END) == 0)
    for (name, arguments), (whole_name, whole_arguments) in zip(found, calls, strict=False):
        assert name == whole_name
        assert whole_arguments.startswith(arguments)
    # Arguments that came whole are whole, though the call's own brace looks like one of theirs.
    for index, (_, arguments) in enumerate(calls):
        upto = len("so: " + written(calls[: index + 1])) - len(CALL_END)
        if len(begun) >= upto:
            assert found[index][1] == arguments


@pytest.mark.parametrize(
    ("text", "said", "calls", "inside"),
    [
        ("", "", [], False),
        ("a <tool_call", "a <tool_call", [], False),
        ("a <tool_call>", "a ", [], True),
        ('<tool_call>\n{"name": "f', "", [], True),
        ('<tool_call>\n{"name": "f", "arguments": ', "", [["f", ""]], True),
        ('<tool_call>\n{"name": "f", "arguments": {"a": {"b": 1}', "", [["f", '{"a": {"b": 1}']], True),
        ('<tool_call>\n{"name": "f", "arguments": {"a": {"b": 1}}}\n</tool', "", [["f", '{"a": {"b": 1}}']], True),
        ('<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>more', "more", [["f", "{}"]], False),
        ('<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n<tool', "", [["f", "{}"]], False),
    ],
)  # fmt: skip
def test_by_hand(text, said, calls, inside):
    for pieces in ([text], list(text)):
        found = read(pieces)
        assert (*found[:2], found[2].inside) == (said, calls, inside)


def test_parts_come_as_soon_as_they_can():
    reader = ToolCallReader()
    steps = ["Let me see.", " <b>", "<tool_call>", '\n{"name": "f", "argu', 'ments": {"a"', ": 1}", "}\n</tool_call>"]
    heard = [reader.push(step) for step in steps]
    assert [each.text for each in heard] == ["Let me see.", " <b>", "", "", "", "", ""]
    assert [each.calls for each in heard[3:]] == [[], [(0, "f", '{"a"')], [(0, None, ": 1")], [(0, None, "}")]]
