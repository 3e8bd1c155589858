"""How cost grows: with agents in a process, with waiting dead letters, with a backlog; and what a start costs."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from choreo.testing.rabbitmq.node import Node
from tests.benchmarks.peers import CONTENDERS
from tests.benchmarks.referee import Referee, Spread, until
from tests.benchmarks.wire import Wire

EVENTS: Final = 1_000_000  # of the backlog; the others are parts of it
_AGENTS: Final = (1, 10, 100)
_PREFETCH: Final = 100
_FIRST: Final = 50  # letters that `choreo dlq list` shows unless told otherwise
_LISTED: Final = 65_535  # the most
_STEPS: Final = 10
_STARTS: Final = 5
_CHOREO: Final = str(Path(sys.executable).with_name("choreo"))
_MODULE: Final = "tests.benchmarks.contenders.growing_agents"
_PATIENCE: Final = 600.0


def measure(node: Node, folder: Path, events: int) -> dict[str, Any]:
    """Measure everything; `events` is the size of the backlog."""
    growth = Growth(node, folder)
    data: dict[str, Any] = {}
    for name, work in (
        ("worker", growth.worker),
        ("agents", lambda: [growth.agents(count, events // 25) for count in _AGENTS]),
        ("letters", lambda: list(growth.letters([1, *(events // by for by in (1000, 100, 10))]))),
        ("backlog", lambda: list(growth.backlog(events))),
    ):
        data[name] = work()
        print(f"{name}: {json.dumps(data[name])}", flush=True)
    return data


class Growth:
    """Measures `choreo` itself on one node, in a namespace for each thing."""

    def __init__(self, node: Node, folder: Path) -> None:
        self._node = node
        self._folder = folder
        self._order = Referee(node, folder).sample(CONTENDERS[0])

    def worker(self) -> dict[str, float]:
        """Measure starts in milliseconds, and memory at rest in megabytes."""
        helps = [self._run(0, "bench-start", "--help")[0] for _ in range(_STARTS + 1)][1:]
        firsts: list[float] = []
        agains: list[float] = []
        rests: list[float] = []
        for number in range(_STARTS):
            for starts in (firsts, agains):
                begin = time.perf_counter()
                with self._worker(1, f"bench-start-{number}", Spread(0)) as process:
                    starts.append(time.perf_counter() - begin)
                    if starts is agains:
                        time.sleep(1)  # at rest: whatever a start leaves to be done has been done
                        rests.append(_rss(process.pid))
        middle = statistics.median
        return {
            "help": middle(helps) * 1000,
            "ready": middle(firsts) * 1000,
            "again": middle(agains) * 1000,
            "rest": middle(rests),
        }

    def agents(self, count: int, events: int) -> dict[str, float]:
        """Have `count` agents in one process share about `events` deliveries: each event goes to all of them."""
        namespace = f"bench-agents-{count}"
        spread = Spread.over(events, _PREFETCH * count)
        each = -(-spread.total // count)
        with self._worker(count, namespace, Spread(0)):
            pass  # it has declared its topology
        with Wire(self._node.url) as wire:
            wire.fill(self._order.to(f"{namespace}.events"), each)
        with self._worker(count, namespace, spread) as process:
            assert process.stdout is not None
            said = json.loads(next(line for line in process.stdout if line.startswith("{")))
            rss = _rss(process.pid)
        return {
            "agents": count,
            "rate": said["events"] / said["seconds"],
            "cpu": said["cpu"] / said["events"] * 1e6,
            "rss": rss,
        }

    def letters(self, counts: list[int]) -> Iterator[dict[str, float]]:
        """List dead letters while as many wait as each of `counts`: the first few, and as many as can be listed."""
        namespace = "bench-letters"
        queue = f"{namespace}.failing.dlq"
        with self._process([f"{_MODULE}:failing"], namespace, Spread(0)), Wire(self._node.url) as wire:
            wire.publish(f"{namespace}.events", "order.refused", b'{"order": "o-00000000"}')
            until(partial(_filled, wire, queue, 1), "one event is a dead letter")
            letter = wire.sample(queue)
        with Wire(self._node.url) as wire:
            for count in counts:
                wire.purge(queue)
                wire.fill(letter, count)
                until(partial(_filled, wire, queue, count), f"{count} dead letters wait")
                arguments = ("dlq", "list", "failing", "--output", "jsonl")
                first, _ = self._run(min(count, _FIRST), namespace, *arguments)
                shown = min(count, _LISTED)
                seconds, rss = self._run(shown, namespace, *arguments, "--limit", str(_LISTED))
                yield {"letters": count, "first": first, "shown": shown, "seconds": seconds, "rss": rss}

    def backlog(self, events: int) -> Iterator[dict[str, float]]:
        """Watch the memory of a worker that works off `events`, at every tenth of them."""
        namespace = "bench-backlog"
        with self._worker(1, namespace, Spread(0)):
            pass
        queue = f"{namespace}.part-0"
        with Wire(self._node.url) as wire:
            wire.fill(self._order.to(f"{namespace}.events"), events)
            until(partial(_filled, wire, queue, events), "the backlog is complete")
            with self._worker(1, namespace, Spread(0)) as process:
                for step in range(1, _STEPS + 1):
                    left = events - events * step // _STEPS
                    until(partial(_drained, wire, queue, left), f"{left} events are left", timeout=_PATIENCE)
                    yield {"done": events - left, "rss": _rss(process.pid)}

    def _worker(self, agents: int, namespace: str, spread: Spread) -> Any:
        return self._process([f"{_MODULE}:agent_{number}" for number in range(agents)], namespace, spread)

    @contextmanager
    def _process(self, references: list[str], namespace: str, spread: Spread) -> Iterator[subprocess.Popen[str]]:
        """Run a worker; the block begins when it has told that it is ready, as it tells systemd."""
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.bind(f"{folder}/notify")
            told.settimeout(120)
            with (self._folder / "worker.log").open("w") as log:
                process = subprocess.Popen(
                    [_CHOREO, "run", *references],
                    env=self._environment(namespace, spread) | {"NOTIFY_SOCKET": f"{folder}/notify"},
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            try:
                while told.recv(4096) != b"READY=1":
                    pass
                yield process
                process.send_signal(signal.SIGTERM)
                process.wait(60)
            finally:
                process.kill()
                process.wait()
                assert process.stdout is not None
                process.stdout.close()

    def _run(self, expected: int, namespace: str, *arguments: str) -> tuple[float, float]:
        """Run choreo to its end; return the seconds and the megabytes that it took."""
        with (self._folder / "printed").open("w+") as printed, (self._folder / "notes").open("w") as notes:
            begin = time.perf_counter()
            process = subprocess.Popen(
                [_CHOREO, *arguments], env=self._environment(namespace, Spread(0)), stdout=printed, stderr=notes
            )
            _, code, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - begin
            process.returncode = code
            printed.seek(0)
            lines = sum(1 for _ in printed)
        if code != 0 or (expected and lines != expected):
            raise RuntimeError(f"choreo {' '.join(arguments)} ended with {code} after {lines} lines of {expected}")
        return seconds, usage.ru_maxrss / 1024

    def _environment(self, namespace: str, spread: Spread) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CHOREO_")}
        return kept | {
            "BENCH_WORK": "consume",
            "BENCH_EVENTS": str(spread.total),
            "BENCH_BEGIN": str(spread.begin),
            "BENCH_END": str(spread.end),
            "BENCH_PREFETCH": str(_PREFETCH),
            "CHOREO_URL": self._node.url,
            "CHOREO_NAMESPACE": namespace,
            "PYTHONPATH": str(Path.cwd()),
        }


def _filled(wire: Wire, queue: str, count: int) -> bool:
    return wire.ready(queue) == count


def _drained(wire: Wire, queue: str, left: int) -> bool:
    return wire.ready(queue) <= left


def _rss(pid: int) -> float:
    """Return the resident memory of a process in megabytes. Linux only; elsewhere 0."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0
