"""The broker runs out of memory or disk, and takes nothing more for a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from choreo.testing.rabbitmq.node import Node
from tests.faults.conftest import Scale
from tests.faults.ledger import BOTH, Ledger, Start
from tests.faults.report import Row

ORDERS = 400  # for each alarm
PUBLISHES = 100  # during an alarm
DEADLINE = 1.0  # seconds for each of them
MARGIN = 1.0  # seconds that an answer may come late
PREFETCH = 20  # small, so that a worker whose acknowledgements are not read stands still soon
SETTLED = 5 * PREFETCH  # effects during an alarm that only acknowledged deliveries can make room for

MEMORY = ("set_vm_memory_high_watermark", "0"), ("set_vm_memory_high_watermark", "0.4")
DISK = ("set_disk_free_limit", "1000000GB"), ("set_disk_free_limit", "50MB")


@contextmanager
def alarm(node: Node, on: tuple[str, ...], off: tuple[str, ...]) -> Iterator[None]:
    """The alarm holds inside, and is over behind it."""
    node.ctl(*on)
    try:
        yield
    finally:
        node.ctl(*off)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("fault", "switch"), [("memory alarm", MEMORY), ("disk alarm", DISK)], ids=["memory", "disk"])
def test_an_alarm_blocks_publishers_and_nothing_else(
    start_choreo: Start,
    project: Path,
    node: Node,
    namespace: str,
    scale: Scale,
    report: Callable[[Row], None],
    fault: str,
    switch: tuple[tuple[str, ...], tuple[str, ...]],
) -> None:
    """A publish ends at its deadline, with an answer that leaves open whether it is stored. The worker, whose own
    publishes wait too, acknowledges meanwhile what needs none."""
    repetitions = scale.of(3, short=1)
    ledger = Ledger(project, start_choreo, node.url, namespace, pace=(0.01, 0.01))
    ledger.start(*BOTH, CHOREO_PREFETCH=str(PREFETCH))
    ledger.go()
    waited, recoveries = [], []
    for _ in range(repetitions):
        ledger.hold("shop")
        ledger.place(ORDERS)
        ledger.goes_on("payment", ORDERS // 2)
        with alarm(node, *switch):
            waited += ledger.place(PUBLISHES, timeout=DEADLINE)
            ledger.go("shop")
            ledger.goes_on("shop", SETTLED)
        over = time.monotonic()
        ledger.place(1)
        recoveries.append(time.monotonic() - over)
    balance = ledger.settle()
    longest = DEADLINE + scale.limit(MARGIN)
    row = balance.row(
        fault,
        repetitions,
        must=f"lost 0, no publish waits longer than {longest:g} s, and {SETTLED} deliveries are settled meanwhile",
        met=max(waited) <= longest,
        recoveries=recoveries,
        note=f"{len(waited)} publishes with a deadline of {DEADLINE:g} s waited at most {max(waited):.1f} s",
    )
    report(row)
    assert row.met, row
    assert balance.unknown >= len(waited) // 2, "the alarm was felt"
