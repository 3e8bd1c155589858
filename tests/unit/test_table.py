"""Tables as a person reads them: as wide as the terminal, and nothing cut off."""

from __future__ import annotations

import pytest

from choreo.cli import dlq, inspect
from choreo.cli.output import lines

LETTER = {
    "id": "e83f7e086d36d15f2d2f1bcdd553f632",
    "topic": "visitor.arrived",
    "reason": "failed",
    "error": "ValueError: the name of the visitor is longer than what fits on the plate beside the door",
    "reaction": "greet",
    "attempts": 1,
    "last_failure": "2026-11-23T05:09:32",
    "correlation_id": "0a3f7e086d36d15f2d2f1bcdd553f600",
}
AGENT = {
    "agent": "greeter",
    "state": "no consumer",
    "ready": 1000,
    "consumers": 0,
    "dead": 12,
    "consumes": ["visitor.arrived", "visitor.left", "visitor.announced"],
    "emits": [],
    "retry": "OSError: 5 attempts, 1s doubling to 5m, jittered",
}


def test_elsewhere_than_on_a_terminal_a_row_is_a_line():
    """So that cut and awk find their column."""
    head, row = lines([LETTER], dlq.COLUMNS)
    assert head.split() == list(dlq.COLUMNS)
    assert row.index("0a3f7e") == head.index("correlation_id")


@pytest.mark.parametrize(("row", "columns"), [(LETTER, dlq.COLUMNS), (AGENT, inspect.AGENTS)])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_on_a_terminal_no_line_is_too_wide_and_every_word_is_there(
    row: dict[str, object], columns: tuple[str, ...], width: int
):
    written = lines([row, row], columns, width)
    assert max(map(len, written)) <= width
    words = " ".join(written).split()
    for value in row.values():
        for each in value if isinstance(value, list) else [value]:
            assert all(word in words or f"{word}," in words for word in str(each).split())


def test_what_is_too_wide_stands_below_its_row():
    assert lines([LETTER], dlq.COLUMNS, 80) == [
        "id                                topic            reason  reaction  attempts",
        "e83f7e086d36d15f2d2f1bcdd553f632  visitor.arrived  failed  greet            1",
        "    error           ValueError: the name of the visitor is longer than what fits",
        "                    on the plate beside the door",
        "    last_failure    2026-11-23T05:09:32",
        "    correlation_id  0a3f7e086d36d15f2d2f1bcdd553f600",
    ]


def test_nothing_is_said_below_a_row_where_there_is_nothing():
    written = lines([AGENT | {"retry": None, "emits": []}], ("agent", "retry", "emits", "dead"), 10)
    assert written == ["agent", "greeter", "    dead   12"]


def test_numbers_are_on_the_right_of_a_terminal():
    assert lines([{"n": 7, "a": "x"}, {"n": 1000, "a": None}], ("n", "a"), 80) == ["   n  a", "   7  x", "1000  -"]
