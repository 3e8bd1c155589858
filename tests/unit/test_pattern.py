"""Binding patterns mean what they mean to a topic exchange."""

from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo.pattern import PATTERN, is_wildcard, matches, overlap

WORDS = ("a", "b", "c")  # c is in no pattern: it stands for every other word
LONGEST = 6  # words; two patterns of three words that overlap at all do so on a topic no longer than that
TOPICS = [".".join(words) for length in range(1, LONGEST + 1) for words in product(WORDS, repeat=length)]

patterns = st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=3).map(".".join)
REGEX = {"*": r"[^.]+\.", "#": r"(?:[^.]+\.)*"}


def really_matches(pattern: str, topic: str) -> bool:
    """Match word by word with a regular expression, as the AMQP specification words it."""
    regex = "".join(REGEX.get(word, re.escape(word) + r"\.") for word in pattern.split("."))
    return re.fullmatch(regex, topic + ".") is not None


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("order.placed", "order.placed", True),
        ("order.placed", "order.shipped", False),
        ("order.placed", "order", False),
        ("order.*", "order.placed", True),
        ("order.*", "order", False),
        ("order.*", "order.placed.late", False),
        ("*.placed", "order.placed", True),
        ("order.#", "order", True),
        ("order.#", "order.placed.late", True),
        ("order.#", "orders", False),
        ("#.placed", "shop.order.placed", True),
        ("#", "anything.at.all", True),
        ("order.#.late", "order.late", True),
        ("order.#.late", "order.placed.very.late", True),
        ("order.#.late", "order.placed", False),
        ("*.#.*", "order", False),
    ],
)
def test_a_pattern_matches_topics_as_a_broker_does(pattern: str, topic: str, *, expected: bool) -> None:
    """`*` is exactly one word, `#` is any number of words, none included."""
    assert matches(pattern, topic) is expected


@given(pattern=patterns, topic=st.sampled_from(TOPICS))
def test_matching_agrees_with_the_specification(pattern: str, topic: str) -> None:
    """For any pattern and topic, the answer is that of a regular expression made from the pattern."""
    assert matches(pattern, topic) is really_matches(pattern, topic)


@given(one=patterns, other=patterns)
def test_two_patterns_overlap_when_one_topic_matches_both(one: str, other: str) -> None:
    """Overlap is found exactly where trying every topic finds one that both match, whichever comes first."""
    expected = any(really_matches(one, topic) and really_matches(other, topic) for topic in TOPICS)
    assert overlap(one, other) is expected
    assert overlap(other, one) is expected


def test_patterns_with_many_wildcards_are_compared_in_no_time() -> None:
    """The comparison stays small where trying every way of matching would not end."""
    many = ".".join(["#", "a"] * 6)
    assert overlap(many, ".".join(["a"] * 40))
    assert not overlap(many + ".b", ".".join(["a"] * 40))


@pytest.mark.parametrize(("pattern", "wild"), [("order.placed", False), ("order.*", True), ("#", True)])
def test_a_wildcard_stands_for_more_than_one_topic(pattern: str, *, wild: bool) -> None:
    """Only `*` and `#` make a pattern a wildcard."""
    assert is_wildcard(pattern) is wild


@pytest.mark.parametrize("text", ["", ".", "order.", ".order", "order..placed", "or*er", "order.##", "a b"])
def test_what_is_no_pattern_is_known(text: str) -> None:
    """Empty words, wildcards inside a word and blanks are no pattern."""
    assert PATTERN.fullmatch(text) is None
