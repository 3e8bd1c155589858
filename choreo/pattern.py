"""Binding patterns of a topic exchange: words separated by dots, `*` for one word, `#` for any number of words."""

from __future__ import annotations

import re
from functools import cache
from typing import Final

PATTERN: Final = re.compile(r"([A-Za-z0-9_-]+|\*|#)(\.([A-Za-z0-9_-]+|\*|#))*")


def matches(pattern: str, topic: str) -> bool:
    """Say whether a queue bound with `pattern` receives a message with the routing key `topic`."""
    return overlap(pattern, topic)


@cache
def overlap(one: str, other: str) -> bool:
    """Say whether there is a topic that both patterns match."""
    return _overlap(tuple(one.split(".")), tuple(other.split(".")))


def is_wildcard(pattern: str) -> bool:
    """Say whether `pattern` stands for more than one topic."""
    return "*" in pattern or "#" in pattern


def _overlap(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    if not one or not other:
        return all(word == "#" for word in one + other)
    first, second = one[0], other[0]
    if "#" in (first, second):
        return _overlap(one[1:], other) or _overlap(one, other[1:])
    return (first == second or "*" in (first, second)) and _overlap(one[1:], other[1:])
