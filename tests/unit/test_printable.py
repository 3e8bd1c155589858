"""Foreign text is shown, and never obeyed by a terminal."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo.printable import visible, visible_json

TEXTS = st.text(st.characters(codec=None), max_size=40) | st.text(
    "\x1b\x9b\u202e\u2066\u200f\u2028\x7f\x00\r\n\t[a", max_size=20
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb\rc", "a\\x1b[2Jb\\rc"),
        ("\x9b2J", "\\x9b2J"),
        ("\x7f", "\\x7f"),
        ("1\u202e2", "1\\u202e2"),
        ("\u2066\u200e\u061c\ufeff", "\\u2066\\u200e\\u061c\\ufeff"),
        ("a\u2028b", "a\\u2028b"),
        ("\U000e0041", "\\U000e0041"),
        ("\udc9b", "\\udc9b"),
        ("two\n\tlines, Grüezi 你好 🎉", "two\n\tlines, Grüezi 你好 🎉"),
    ],
)
def test_what_is_not_printable_is_an_escape(text: str, shown: str):
    assert visible(text) == shown


@given(TEXTS)
def test_nothing_else_is_left(text: str):
    """Of any text: what is shown is printable, but for the line breaks and tabs that make up our own."""
    assert visible(text).replace("\n", "").replace("\t", "").isprintable()
    assert visible(text, keep="").isprintable()


@given(st.recursive(TEXTS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3)))
def test_json_means_the_same(value: object):
    """Escaped, it is printable, and reads back as what it was."""
    for indent in (None, 2):
        shown = visible_json(json.dumps(value, ensure_ascii=False, indent=indent))
        assert shown.replace("\n", "").isprintable()
        assert json.loads(shown) == value
