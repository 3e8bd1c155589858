"""The page of the fault suite has a section for each release of RabbitMQ that it was run on."""

from __future__ import annotations

from tests.faults.report import Row, page


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
