"""The pure parts of looking at dead letters: bodies and texts that people can read, and what a repair raises."""

from __future__ import annotations

from typing import Any

import pytest

from choreo.cli.dlq import _line
from choreo.cli.output import lines
from choreo.errors import (
    BrokerUnreachable,
    ChoreoError,
    InvalidName,
    PartlyDone,
    PublishFailed,
    UsageError,
)
from choreo.operate.dlq import check_name, readable
from choreo.operate.repair import Failure, Repair


@pytest.mark.parametrize(
    ("body", "value"),
    [(b'{"a": [1, "\xc3\xa9"]}', {"a": [1, "é"]}), (b"null", None), (b'"x"', "x")],
)
def test_json_body_is_shown_as_json(body: bytes, value: Any):
    assert readable(body) == (value, True)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", ""),
        (b"no json", "no json"),
        (b"\xff\x00", "\\xff\x00"),
        (b'{"a": 1, "a": 2}', '{"a": 1, "a": 2}'),
        (b"NaN", "NaN"),
        (b"1e999", "1e999"),
        (b'"\\ud800"', '"\\ud800"'),
        (b"9" * 5000, "9" * 5000),
        (b"[" * 100_000, "[" * 100_000),
    ],
)
def test_body_that_json_cannot_show_is_shown_as_it_is(body: bytes, text: str):
    """Nothing of it is lost in between: keys that stand there twice, or what no JSON writer would write again."""
    assert readable(body) == (text, False)


def test_line_of_a_table_is_one_short_line():
    row = {"error_type": "shop.Down", "error": "first\nsecond " * 30, "last_failure": None, "attempts": 3, "id": "\x07"}
    line = _line(row)
    assert line["error"].startswith("Down: first second")
    assert len(line["error"]) == 80
    assert lines([line], ["id"])[1] == "\\x07"
    assert (line["attempts"], line["last_failure"]) == (3, None)


@pytest.mark.parametrize("name", ["", "../x", "Payment", "a" * 64, "a b", "a\n", "a:b"])
def test_name_that_no_agent_can_have_is_refused(name: str):
    with pytest.raises(InvalidName) as caught:
        check_name(name)
    assert "\n" not in caught.value.message


FAILED = Failure("id-1", "order.placed", "nacked")


@pytest.mark.parametrize(
    ("repair", "kind", "code", "says"),
    [
        (
            Repair(3, 2, [FAILED]),
            PartlyDone,
            3,
            "2 of 3 replayed, the rest is still there: id-1 (order.placed): nacked",
        ),
        (Repair(2, 1, missing=("id-9",)), PartlyDone, 3, "id-9: no such dead letter was found"),
        (
            Repair(9, 4, ended=BrokerUnreachable("gone")),
            PartlyDone,
            3,
            "4 of 9 replayed, the rest is still there: gone",
        ),
        (
            Repair(9, 9, ended=BrokerUnreachable("gone")),
            PartlyDone,
            3,
            "9 of 9 replayed, the last ones may be still there",
        ),
        (Repair(9, 4), PartlyDone, 3, "another consumer holds them"),
        (Repair(1, 0, [FAILED]), PublishFailed, 1, "nothing replayed: id-1 (order.placed): nacked"),
        (Repair(9, 0, ended=BrokerUnreachable("gone")), BrokerUnreachable, 69, "gone"),
        (Repair(1, 0, missing=("id-9",)), UsageError, 2, "id-9: no such dead letter was found"),
        (Repair(9, 0), ChoreoError, 1, "another consumer holds them"),
    ],
)
def test_repair_that_is_not_complete_says_what_is_left(repair: Repair, kind: type[ChoreoError], code: int, says: str):
    with pytest.raises(kind) as caught:
        repair.check("replayed")
    assert type(caught.value) is kind
    assert caught.value.exit_code == code
    assert says in caught.value.message


def test_complete_repair_is_no_error():
    Repair(3, 3).check("replayed")
    Repair(0).check("dropped")
