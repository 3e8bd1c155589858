"""The broker is stopped in order, or killed, while events are in flight; the workers come back by themselves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from choreo.testing.rabbitmq import probe
from choreo.testing.rabbitmq.node import Node
from tests.faults.conftest import Scale
from tests.faults.ledger import CONSUMING, Ledger, Start, most_repeated, said
from tests.faults.report import Row
from tests.waiting import until

BETWEEN = 300  # orders charged between two faults
RECOVERY = 5.0  # seconds from the broker's port to "consuming"
REPEAT = 5  # seconds after which RabbitMQ repeats a dead-lettering that was not confirmed, in place of its 180


@pytest.fixture(scope="module")
def broker(new_node: Callable[..., Node], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The node of this module, which it ends and starts again."""
    directory = tmp_path_factory.mktemp("broker")
    setting = f"{{dead_letter_worker_publisher_confirm_timeout, {1000 * REPEAT}}}"
    (directory / "advanced.config").write_text(f"[{{rabbit, [{setting}]}}].")
    node = new_node(directory)
    yield node
    node.kill()


@contextmanager
def opening(port: int) -> Iterator[list[float]]:
    """Note in the list when, as `time.time`, the port accepts a connection for the first time."""
    opened: list[float] = []

    def watch() -> None:
        until(lambda: probe.accepts(port), within=60)
        opened.append(time.time())

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield opened
    watcher.join()


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("fault", "end"),
    [("broker restarted", "stop"), ("broker killed (kill -9)", "kill")],
    ids=["restarted", "killed"],
)
def test_a_broker_that_comes_back_has_lost_nothing(
    start_choreo: Start,
    project: Path,
    broker: Node,
    namespace: str,
    scale: Scale,
    report: Callable[[Row], None],
    fault: str,
    end: str,
) -> None:
    """Every order ends, and the workers consume again soon after the return of the broker's port."""
    repetitions = scale.of(10, short=1)
    ledger = Ledger(project, start_choreo, broker.url, namespace, pace=(0.005, 0.0))
    workers = [ledger.start("payment"), ledger.start("shop")]
    broker.flush()
    ledger.place(scale.of(20_000, short=2_000))
    ledger.go()
    recoveries = []
    for before in range(1, repetitions + 1):
        ledger.goes_on("payment", BETWEEN)
        assert ledger.in_flight()
        getattr(broker, end)()
        with opening(broker.port) as opened:
            broker.start_again()
        recoveries += [said(worker, CONSUMING, times=before + 1) - opened[0] for worker in workers]
    recovery = scale.limit(RECOVERY)
    back = time.monotonic()
    balance = ledger.settle()
    took = time.monotonic() - back
    row = balance.row(
        fault,
        repetitions,
        must=f"lost 0, consuming again <= {recovery:g} s after the port opens",
        met=max(recoveries) <= recovery and balance.duplicated <= most_repeated(repetitions),
        recoveries=recoveries,
        note=f"all had ended {took:.0f} s after the last return; what RabbitMQ moves between queues by itself, such as"
        f" at the end of a delay, and has not confirmed, it repeats here after {REPEAT} s, in place of its 180 s",
    )
    report(row)
    assert row.met, row
