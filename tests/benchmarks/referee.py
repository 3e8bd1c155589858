"""One run of one contender: its queues filled, its process started, times taken at both ends, what it left counted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from choreo.testing.rabbitmq.node import Node
from tests.benchmarks.contenders.order import WINDOW
from tests.benchmarks.peers import NAMESPACE, PLAIN, Contender
from tests.benchmarks.wire import Copies, Wire

RATE: Final = 200.0  # events per second of the latency workload
_WARM: Final = 100  # answers of it that do not count
_AFTERWARDS: Final = 0.3  # seconds for the last acknowledgements to arrive, before a contender is ended
_PATIENCE: Final = 180.0  # seconds for one run
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class RunFailed(Exception):
    """A contender did not do what it was asked to."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of run; `events` is how many the slowest contender gets."""

    name: str
    work: str
    events: int
    prefetch: int
    title: str
    paced: bool = False

    @property
    def outstanding(self) -> int:
        """How many events are under way at once."""
        return WINDOW if self.work == "publish" else self.prefetch


@dataclass(frozen=True, slots=True)
class Spread:
    """How many events a run has, and between which two of them it is measured."""

    total: int
    begin: int = 0
    end: int = 0

    @classmethod
    def over(cls, events: int, outstanding: int) -> Spread:
        """Measure `events`, after a tenth to warm up, and before too few are left for the window to be full."""
        begin = max(events // 10, outstanding)
        return cls(begin + events + outstanding, begin, begin + events)


WORKLOADS: Final = (
    Workload("consume-100", "consume", 10_000, 100, "Consume, prefetch 100"),
    Workload("consume-1000", "consume", 10_000, 1000, "Consume, prefetch 1000"),
    Workload("hop", "hop", 2_500, 100, "Hop: consume, publish confirmed, acknowledge"),
    Workload("publish", "publish", 6_000, 100, "Publish, 500 outstanding"),
    Workload("latency", "hop", 1_000, 100, "Latency of a hop at 200 events/s", paced=True),
)


@dataclass(frozen=True, slots=True)
class Run:
    """What one run came to. CPU is in seconds; `took` are the seconds of each event of a paced run, sorted."""

    events: int
    seconds: float
    client_cpu: float
    broker_cpu: float
    took: tuple[float, ...] = ()


class Referee:
    """Runs contenders on one node."""

    def __init__(self, node: Node, folder: Path) -> None:
        self._node = node
        self._log = folder / "contender.log"
        self._samples: dict[str, Copies] = {}
        self._declared = {*PLAIN}
        with Wire(node.url) as wire:
            wire.exchange("plain.events")
            for queue, key in zip(PLAIN, ("order.placed", "order.seen"), strict=True):
                wire.declare(queue)
                wire.bind(queue, "plain.events", key)

    def run(self, contender: Contender, workload: Workload, events: int) -> Run:
        """Have `contender` do `workload`. Raises RunFailed, also when events are missing afterwards."""
        copies = self.sample(contender)
        work, sink = contender.queues
        with Wire(self._node.url) as wire:
            wire.purge(work)
            wire.purge(sink)
            if workload.paced:
                return self._paced(contender, workload, events, copies)
            spread = Spread.over(events, 1 if contender.serial and workload.work == "publish" else workload.outstanding)
            if workload.work != "publish":
                wire.fill(copies, spread.total)
        return self._timed(contender, workload, spread)

    def sample(self, contender: Contender) -> Copies:
        """Return one order, ready to be copied, as `contender` itself publishes it; its queues are there then."""
        if contender.name not in self._samples:
            if contender.queues[0] in self._declared:  # by another one, which may have left something
                with Wire(self._node.url) as wire:
                    wire.purge(contender.queues[0])
            self._declared.add(contender.queues[0])
            with self._started(contender, "sample", Spread(1), 100) as process:
                self._join(process, contender)
            with Wire(self._node.url) as wire:
                until(lambda: wire.ready(contender.queues[0]) == 1, f"{contender.name} has published one order")
                self._samples[contender.name] = wire.sample(contender.queues[0])
        return self._samples[contender.name]

    def _timed(self, contender: Contender, workload: Workload, spread: Spread) -> Run:
        with self._started(contender, workload.work, spread, workload.prefetch) as process:
            assert process.stdout is not None
            begun = broker = 0.0
            for line in process.stdout:
                if line == "begun\n":
                    begun = _cpu(self._node.pid)
                elif line.startswith("{"):
                    broker = _cpu(self._node.pid) - begun
                    said = json.loads(line)
                    break
            else:
                raise RunFailed(f"{contender.name} ended early: {self._said()}")
            total = spread.total
            left = {"consume": (0, 0), "hop": (0, total), "publish": (total, 0)}[workload.work]
            self._check(contender, left)
            time.sleep(_AFTERWARDS)
            process.send_signal(signal.SIGTERM)
            self._join(process, contender, expected=None)
        self._check(contender, left)
        return Run(said["events"], said["seconds"], said["cpu"], broker)

    def _paced(self, contender: Contender, workload: Workload, events: int, copies: Copies) -> Run:
        work, sink = contender.queues
        with (
            self._started(contender, workload.work, Spread(0), workload.prefetch) as process,
            Wire(self._node.url) as wire,
            Wire(self._node.url) as eye,
        ):
            until(lambda: eye.consumers(work) > 0 or process.poll() is not None, f"{contender.name} consumes")
            wire.paced(copies, sink, _WARM, RATE)
            broker, client, begin = _cpu(self._node.pid), _cpu(process.pid), time.perf_counter()
            took = sorted(wire.paced(copies, "", events, RATE))
            seconds = time.perf_counter() - begin
            client, broker = _cpu(process.pid) - client, _cpu(self._node.pid) - broker
            process.send_signal(signal.SIGTERM)
            self._join(process, contender, expected=None)
        return Run(events, seconds, client, broker, tuple(took))

    @contextmanager
    def _started(
        self, contender: Contender, work: str, spread: Spread, prefetch: int
    ) -> Iterator[subprocess.Popen[str]]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CHOREO_")} | {
            "BENCH_WORK": work,
            "BENCH_EVENTS": str(spread.total),
            "BENCH_BEGIN": str(spread.begin),
            "BENCH_END": str(spread.end),
            "BENCH_PREFETCH": str(prefetch),
            "CHOREO_URL": self._node.url,
            "CHOREO_NAMESPACE": NAMESPACE,
            "NODE_PATH": str(Path(".bench/node/node_modules").absolute()),
            "PYTHONPATH": str(Path.cwd()),
        }
        with self._log.open("w") as log, _process(contender.command, environment, log) as process:
            yield process

    def _join(self, process: subprocess.Popen[str], contender: Contender, expected: int | None = 0) -> None:
        try:
            code = process.wait(20)
        except subprocess.TimeoutExpired:
            raise RunFailed(f"{contender.name} does not end: {self._said()}") from None
        if expected is not None and code != expected:
            raise RunFailed(f"{contender.name} ended with {code}: {self._said()}")

    def _check(self, contender: Contender, left: tuple[int, int]) -> None:
        with Wire(self._node.url) as wire:
            until(
                lambda: tuple(map(wire.ready, contender.queues)) == left,
                f"{contender.name} has left {left} in {contender.queues}",
                lambda: f"there are {tuple(map(wire.ready, contender.queues))}",
            )

    def _said(self) -> str:
        return self._log.read_text()[-2000:].strip() or "it said nothing"


@contextmanager
def _process(command: tuple[str, ...], environment: dict[str, str], log: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """Start a process that is ended by force after a while, and at the end of the block."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    timer = threading.Timer(_PATIENCE, process.kill)
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def until(done: Callable[[], bool], what: str, instead: Callable[[], str] = lambda: "", timeout: float = 15.0) -> None:
    """Wait until `done`. A count may lag: the broker takes it from time to time only."""
    end = time.monotonic() + timeout
    while not done():
        if time.monotonic() > end:
            raise RunFailed(f"not true after {timeout:g} s: {what}; {instead()}")
        time.sleep(0.02)


def _cpu(pid: int) -> float:
    """Return the CPU seconds of a process, its threads included. Linux only; elsewhere 0."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(after_name[11]) + int(after_name[12])) / _TICKS
