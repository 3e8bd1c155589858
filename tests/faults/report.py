"""What the fault suite found, as a table: on the terminal, and as the page docs/reliability.md."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Final, Literal

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


HEADINGS: Final = ("fault", "repetitions", "events", "lost", "duplicated", "worst recovery", "must be", "met")

INTRODUCTION: Final = """\
# Reliability

<!-- Made by `make faults`. What is written here by hand is gone after its next run. -->

**What is promised.** Every event whose publish was confirmed is, for every agent bound to it, in exactly one place:
handled, in a queue, in a delay, or in a dead-letter queue with the reason on it. So it is while a worker, the broker or
the network between them fails. What a fault costs is time and duplicates; a duplicate has the id of the first.

**How it is proven.** A ledger keeps what was confirmed to the publisher and what the agents wrote down as they worked.
Then something is broken while events are in flight. When all is quiet the broker's queues are read, and every
confirmed event is looked for. `lost` are those that are nowhere. `duplicated` are effects beyond the one that was due.
`worst recovery` is the longest time, in all repetitions, from the fault (or from the return of what was gone) until the
work went on. Everything is counted, nothing is taken from a counter of choreo's.

**How to run it.** `make faults` does all of it on private RabbitMQ nodes, writes this page and ends by itself;
`make faults ARGS="-k rolling"` does some of it and leaves the page alone; `make faults ARGS="--faults=long"` takes ten
times as many of everything, for a night. `CHOREO_TEST_RABBITMQ_ROOT` names the root of another filesystem, to break
the release that it holds; the page has a section for each. `make test` runs a short form of most faults. The code is in
[`tests/faults`](../tests/faults).
"""


_RELEASE: Final = "## RabbitMQ "


def page(rows: Sequence[Row], *, release: str, extent: Extent, before: str = "") -> str:
    """Return the page for the present machine; `release` is RabbitMQ's. Of the page `before`, other releases stay."""
    facts = (
        f"Run of {datetime.now(UTC):%Y-%m-%d} ({extent}): choreo {version('choreo')}, RabbitMQ {release},"
        f" Python {platform.python_version()}, aio-pika {version('aio-pika')}, {os.cpu_count()} cores."
    )
    parts = {part.partition("\n")[0]: part for part in before.split(_RELEASE)[1:]}
    parts[release] = "\n".join((release, "", facts, "", table(rows), ""))
    sections = (_RELEASE + parts[name].rstrip() + "\n" for name in sorted(parts, key=_numbers))
    return "\n".join((INTRODUCTION, *sections))


def _numbers(release: str) -> list[int]:
    return [int(part) for part in release.split(".") if part.isdigit()]


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table, with their notes below it."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    for row in rows:
        recovery = "" if row.worst_recovery is None else f"{row.worst_recovery:.1f} s"
        cells = (row.fault, row.repetitions, f"{row.events:,}", row.lost, row.duplicated, recovery, row.must)
        lines.append(f"| {' | '.join(map(str, cells))} | {'yes' if row.met else '**no**'} |")
    notes = [f"- {row.fault}: {row.note}" for row in rows if row.note]
    return "\n".join([*lines, *(["", *notes] if notes else [])])
