"""Texts are read as they are, and the tokenizer that is made for one gives it back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.train.text import END, END_ID, make_tokenizer, read_text, token_ids

TEXTS = ["to be, or not to be:\nthat is the question.\n" * 20, "naïve 🙂\n"]
TOKENIZER = make_tokenizer(TEXTS, 300)


def test_a_folder_in_the_order_of_names(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"two\r\n")
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    (tmp_path / "c.md").write_text("no", encoding="utf-8")
    assert read_text(tmp_path) == ["one", "two\n"]
    assert read_text(tmp_path / "a.txt") == ["one"]


def test_what_is_no_text_is_refused(tmp_path):
    with pytest.raises(InvalidRequestError, match=r"has no \.txt file"):
        read_text(tmp_path)
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InvalidRequestError, match=r"bad\.txt cannot be read as a text"):
        read_text(tmp_path)
    (tmp_path / "bad.txt").write_bytes(b"")
    with pytest.raises(InvalidRequestError, match="is empty"):
        read_text(tmp_path)


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(text):
    ids = TOKENIZER.encode(text).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text or END in text
    assert all(0 <= token < 300 for token in ids)


def test_texts_in_a_row_with_their_ends():
    ids = token_ids(TOKENIZER, TEXTS)
    assert ids.count(END_ID) == 2
    assert ids[-1] == END_ID == TOKENIZER.token_to_id(END)
    assert len(ids) < len(TEXTS[0]) / 2  # it has learned parts of words


def test_a_vocabulary_has_a_token_for_each_byte():
    with pytest.raises(InvalidRequestError, match="a vocabulary of 256: 257 at least"):
        make_tokenizer(TEXTS, 256)
