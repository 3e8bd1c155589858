"""Binding patterns of a topic exchange: words separated by dots, `*` for one word, `#` for any number of words."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

# "#" as a word, in a binding: RabbitMQ refuses more from 4.3.5 on, whose cost grows with each.
MOST_OF_ANY: Final = 2
PATTERN: Final = re.compile(r"([A-Za-z0-9_-]+|\*|#)(\.([A-Za-z0-9_-]+|\*|#))*")


@lru_cache(maxsize=4096)
def matches(pattern: str, topic: str) -> bool:
    """Say whether a queue bound with `pattern` receives a message with the routing key `topic`, as RabbitMQ would."""
    return _meet(pattern.split("."), topic.split(".") if topic else [], literal=True)


def overlap(one: str, other: str) -> bool:
    """Say whether there is a topic that both patterns match."""
    return _meet(one.split("."), other.split("."), literal=False)


def is_bindable(pattern: str) -> bool:
    """Say whether every release of RabbitMQ takes a binding with `pattern`, whose grammar is PATTERN's."""
    return pattern.split(".").count("#") <= MOST_OF_ANY


def is_wildcard(pattern: str) -> bool:
    """Say whether `pattern` stands for more than one topic."""
    return "*" in pattern or "#" in pattern


def _meet(one: list[str], other: list[str], *, literal: bool) -> bool:
    """Say whether some topic fits both; with `literal`, `other` is that topic.

    Works from the ends backwards: `fits` says with which rest of `other` the words of `one` from here on can meet. The
    cost is the product of the two lengths, whatever the pattern.
    """
    fits = [False] * len(other) + [True]
    for place in range(len(other) - 1, -1, -1):  # `one` is used up: only `#` is left over well
        fits[place] = fits[place + 1] and other[place] == "#" and not literal
    for word in reversed(one):
        below, fits = fits, [False] * (len(other) + 1)
        for place in range(len(other), -1, -1):
            theirs = other[place] if place < len(other) else None
            many = theirs == "#" and not literal
            if word == "#" or many:
                # One of the two stands for no further word, or for one more.
                fits[place] = below[place] or (theirs is not None and fits[place + 1])
            elif theirs is not None:
                same = word in (theirs, "*") or (theirs == "*" and not literal)
                fits[place] = same and below[place + 1]
    return fits[0]
