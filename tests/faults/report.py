"""What the fault suite found, as a table: on the terminal, and as docs/reliability.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Extent = Literal["short", "full", "long"]


@dataclass(frozen=True, slots=True)
class Row:
    """One fault and what it cost. `worst_recovery` is in seconds, None where there is nothing to recover.

    `must` says in words what has to hold, `met` whether it did, `note` what a reader has to know besides.
    """

    fault: str
    repetitions: int
    events: int
    lost: int
    duplicated: int
    worst_recovery: float | None
    must: str
    met: bool
    note: str = ""


HEADINGS = ("fault", "repetitions", "events", "lost", "duplicated", "worst recovery", "must be", "met")


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, with their notes below it."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    for row in rows:
        recovery = "" if row.worst_recovery is None else f"{row.worst_recovery:.1f} s"
        cells = (row.fault, row.repetitions, f"{row.events:,}", row.lost, row.duplicated, recovery, row.must)
        lines.append(f"| {' | '.join(map(str, cells))} | {'yes' if row.met else '**no**'} |")
    notes = [f"- {row.fault}: {row.note}" for row in rows if row.note]
    return "\n".join([*lines, *(["", *notes] if notes else [])])
