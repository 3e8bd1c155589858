"""kill -9 of a worker at each point of a delivery at which something could be lost."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import points
from tests.faults.conftest import Scale
from tests.faults.ledger import PREFETCH, Ledger, Start
from tests.faults.report import Row

ORDERS = 150  # for each kill


@pytest.mark.timeout(900)
def test_a_worker_killed_at_any_point_of_a_delivery_loses_nothing(
    start_choreo: Start,
    project: Path,
    broker_url: str,
    namespace: str,
    scale: Scale,
    report: Callable[[Row], None],
) -> None:
    """What it had begun is begun again by the next one, with the same ids, and nothing else is."""
    each = scale.of(10, short=1)
    ledger = Ledger(project, start_choreo, broker_url, namespace)
    ledger.start("shop")
    payment = ledger.start("payment")
    ledger.place(ORDERS)
    ledger.go()
    killed_at = {}
    for point in points.POINTS * each:
        ledger.place(ORDERS)
        if point == points.DRAINED:
            ledger.hold()
            payment.send(signal.SIGTERM)
            payment.wait_for('"state": "draining"')
        points.arm(project, point)
        ledger.go()
        code = ledger.ended(payment)
        assert (code, points.is_armed(project)) == (-signal.SIGKILL, False), "it ended itself at that point"
        assert ledger.in_flight()
        killed_at[payment.pid] = point
        payment = ledger.start("payment")
        ledger.goes_on("payment", PREFETCH)
    balance = ledger.settle()

    again = charged_again(ledger, killed_at)
    row = balance.row(
        "worker killed (kill -9) at eight points of a delivery",
        len(killed_at),
        must=f"lost 0, duplicated <= {PREFETCH} (the prefetch) per kill",
        met=balance.duplicated <= PREFETCH * len(killed_at) and max(again.values(), default=0) <= PREFETCH * each,
        note=f"charged again by point: {'; '.join(f'{point}: {again[point]}' for point in points.POINTS)}",
    )
    report(row)
    assert row.met, row


def charged_again(ledger: Ledger, killed_at: dict[int, str]) -> Counter[str]:
    """Count the effects that came again, by the point at which the worker was killed that had them before."""
    before: dict[tuple[int, int], int] = {}
    again: Counter[str] = Counter()
    for line in ledger.lines("payment"):
        which = line.order, line.attempt
        if which in before:
            again[killed_at.get(before[which], "")] += 1
        before[which] = line.pid
    return again
