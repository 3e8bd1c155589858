"""What the fault suite found is told as it was."""

from __future__ import annotations

from dataclasses import replace

from tests.faults.balance import Balance
from tests.faults.report import Row, page, table

NOTHING = Balance(confirmed=0, handled=0, queued=0, delayed=0, dead=0, astray=0, duplicated=0)


def test_a_table_has_a_line_for_each_fault_and_its_notes_below():
    rows = [
        Row("worker killed", 10, 2000, 0, 7, None, "lost 0", met=True),
        Row("broker killed", 3, 500, 2, 0, 1.26, "lost 0", met=False, note="two are nowhere"),
    ]
    assert table(rows).splitlines()[2:] == [
        "| worker killed | 10 | 2,000 | 0 | 7 |  | lost 0 | yes |",
        "| broker killed | 3 | 500 | 2 | 0 | 1.3 s | lost 0 | **no** |",
        "",
        "- broker killed: two are nowhere",
    ]


def test_the_page_says_what_was_run_on():
    text = page([], release="3.10.8", extent="full")
    assert "(full): choreo 0." in text
    assert "RabbitMQ 3.10.8, Python 3." in text
    assert text.endswith("|\n")


def row(fault: str) -> Row:
    return Row(fault, 10, 20_000, 0, 12, 1.25, "lost 0", met=True, note="a note")


def test_a_run_replaces_the_section_of_its_release_and_leaves_the_others() -> None:
    """In the order of their numbers, 3.10 before 4.0, whichever came first."""
    first = page([row("broker killed")], release="4.3.6", extent="full")
    second = page([row("broker lost")], release="3.10.8", extent="full", before=first)
    third = page([row("broker stopped")], release="4.3.6", extent="full", before=second)
    assert [line for line in third.splitlines() if line.startswith("## ")] == [
        "## RabbitMQ 3.10.8",
        "## RabbitMQ 4.3.6",
    ]
    assert "broker lost" in third
    assert "broker stopped" in third
    assert "broker killed" not in third
    assert third == page([row("broker lost")], release="3.10.8", extent="full", before=third)


def test_a_row_that_was_not_met_stands_out() -> None:
    missed = Row("broker killed", 10, 20_000, 3, 0, None, "lost 0", met=False)
    assert "| broker killed | 10 | 20,000 | 3 | 0 |  | lost 0 | **no** |" in page(
        [missed], release="1.2", extent="full"
    )


def test_what_is_nowhere_is_lost():
    short = replace(NOTHING, confirmed=10, handled=5, queued=1, delayed=1, dead=1)
    assert (short.lost, short.holds) == (2, False)
    assert not short.row("a fault", 1).met
    whole = replace(NOTHING, confirmed=10, handled=7, queued=1, delayed=1, dead=1)
    assert whole.row("a fault", 1).note == "10 confirmed = 7 handled + 1 dead + 1 queued + 1 delayed"
    assert whole.row("a fault", 1).met


def test_what_is_at_two_places_or_at_the_wrong_one_breaks_the_balance():
    astray = replace(NOTHING, confirmed=10, handled=10, astray=1)
    assert (astray.lost, astray.holds) == (0, False)
