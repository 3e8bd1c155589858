"""Workers are replaced under load, one after the other, as a new version is rolled out."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Scale
from tests.faults.ledger import BOTH, Ledger, Start
from tests.faults.report import Row

ORDERS = 200  # for each stop


@pytest.mark.timeout(900)
def test_workers_that_are_replaced_under_load_lose_nothing_and_repeat_nothing(
    start_choreo: Start,
    project: Path,
    broker_url: str,
    namespace: str,
    scale: Scale,
    report: Callable[[Row], None],
) -> None:
    """By turns as Kubernetes does it, the new one first, and as systemd does: a stop, then a start. Each worker ends
    with everything settled that it had begun, so nothing comes a second time."""
    repetitions = scale.of(100, short=5)
    ledger = Ledger(project, start_choreo, broker_url, namespace, pace=(0.05, 0.02))
    for _ in range(2):
        ledger.start(*BOTH)
    ledger.go()
    stops = []
    for number in range(repetitions):
        new_one_first = number % 2 == 0
        if new_one_first:
            ledger.start(*BOTH)
        ledger.place(ORDERS)
        assert ledger.in_flight()
        began = time.monotonic()
        code = ledger.stop(ledger.workers[0])
        stops.append(time.monotonic() - began)
        assert code == 0, "it finished what it had begun"
        if not new_one_first:
            ledger.start(*BOTH)
    balance = ledger.settle()
    row = balance.row(
        "workers stopped (SIGTERM) and replaced under load",
        repetitions,
        must="lost 0, duplicated 0",
        met=balance.duplicated == 0,
        note=f"the slowest stop took {max(stops):.1f} s",
    )
    report(row)
    assert row.met, row
