"""The network between workers and broker fails: loudly, silently, on one side, in one direction."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from choreo.testing.rabbitmq.node import Node
from tests.faults.conftest import Scale
from tests.faults.ledger import BOTH, CONSUMING, LOST, PREFETCH, Ledger, Start, most_repeated, said
from tests.faults.proxy import Proxy
from tests.faults.report import Row

ORDERS = 300  # for each session
FOUND = 35.0  # seconds; a heartbeat of 10 s finds a silent connection after 33


def reset(proxy: Proxy, _ledger: Ledger) -> float:
    at = time.time()
    proxy.reset()
    return at


def go_silent(proxy: Proxy, _ledger: Ledger) -> float:
    at = time.time()
    proxy.blackhole()
    return at


def half_open(proxy: Proxy, _ledger: Ledger) -> float:
    at = time.time()
    proxy.half_open()
    return at


def lose_acknowledgements(proxy: Proxy, ledger: Ledger) -> float:
    """The workers hear the broker and are not heard, until the connection ends."""
    ledger.goes_on("shop", PREFETCH // 2)  # payment is ahead by then: the shop has been given enough to go on with
    proxy.lose_replies()
    ledger.goes_on("shop", PREFETCH // 5)  # acknowledged by the worker, and still held by the broker
    return reset(proxy, ledger)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("fault", "do", "short"),
    [
        ("connection reset", reset, 1),
        ("acknowledgements lost, then the connection", lose_acknowledgements, 1),
        ("connection silent: every byte is dropped", go_silent, 0),
        ("connection half open: the broker's side is gone", half_open, 0),
    ],
    ids=["reset", "lost-acknowledgements", "silent", "half-open"],
)
def test_a_network_that_fails_costs_nothing_but_duplicates(
    start_choreo: Start,
    project: Path,
    node: Node,
    namespace: str,
    scale: Scale,
    report: Callable[[Row], None],
    fault: str,
    do: Callable[[Proxy, Ledger], float],
    short: int,
) -> None:
    """It happens to as many processes at once as there are repetitions: each finds it out by itself, some in half a
    minute. The shop is slower than payment, so that there is something in every queue."""
    repetitions = scale.of(10, short=short)
    if not repetitions:
        pytest.skip("takes half a minute; make faults runs it")
    ledger = Ledger(project, start_choreo, node.url, namespace, pace=(0.05, 0.1))
    with Proxy(node.port) as proxy:
        workers = ledger.start(*BOTH, url=proxy.url, processes=repetitions)
        ledger.place(ORDERS * repetitions)
        ledger.go()
        ledger.goes_on("shop", 1)
        at = do(proxy, ledger)
        proxy.pass_on()
        assert ledger.in_flight()
        found = [said(workers, LOST, times=number + 1) - at for number in range(repetitions)]
        consuming = [said(workers, CONSUMING, times=repetitions + number + 1) - at for number in range(repetitions)]
        limit = scale.limit(FOUND)
        balance = ledger.settle()
    row = balance.row(
        fault,
        repetitions,
        must=f"lost 0, found <= {limit:g} s",
        met=max(found) <= limit and balance.duplicated <= most_repeated(repetitions),
        recoveries=consuming,
        note=f"found after at most {max(found):.1f} s",
    )
    report(row)
    assert row.met, row
    if do is lose_acknowledgements:
        assert balance.duplicated >= PREFETCH // 5, "they were lost indeed"
