"""What all runs came to, kept in a file between the groups of workloads, and told on the terminal."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.peers import Contender
from tests.benchmarks.referee import WORKLOADS, Run, Workload

KEPT: Final = Path(".bench/results.json")


@dataclass(frozen=True, slots=True)
class Figures:
    """The medians of a contender's runs of one workload; microseconds of CPU per event, milliseconds of latency."""

    rate: float
    lowest: float
    highest: float
    client: float
    broker: float
    p50: float | None
    p99: float | None

    @classmethod
    def of(cls, runs: list[Run]) -> Figures:
        """Return the figures of `runs`."""
        rates = [run.events / run.seconds for run in runs]
        middle = statistics.median
        return cls(
            rate=middle(rates),
            lowest=min(rates),
            highest=max(rates),
            client=middle(run.client_cpu / run.events * 1e6 for run in runs),
            broker=middle(run.broker_cpu / run.events * 1e6 for run in runs),
            p50=middle(_percentile(run, 50) for run in runs) if runs[0].took else None,
            p99=middle(_percentile(run, 99) for run in runs) if runs[0].took else None,
        )


class Comparison:
    """All runs of this time, by workload and contender."""

    def __init__(self) -> None:
        self._runs: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))

    def add(self, workload: Workload, contender: Contender, run: Run) -> None:
        """Note one run."""
        self._runs[workload.name][contender.name].append(run)

    def figures(self, workload: Workload) -> dict[str, Figures]:
        """Return the figures of each contender."""
        return {name: Figures.of(runs) for name, runs in self._runs[workload.name].items()}

    def show(self, workload: Workload) -> None:
        """Print a workload's table."""
        found = self.figures(workload)
        ours = found.get("choreo")
        print(f"\n{workload.title}: median (spread), ratio of choreo's rate to it, client and broker CPU per event")
        for name, each in found.items():
            if workload.paced:
                text = f"p50 {each.p50:.2f} ms   p99 {each.p99:.2f} ms"
            else:
                ratio = f"{ours.rate / each.rate:6.2f}x" if ours else ""
                text = f"{each.rate:>8,.0f}/s  ({f'{each.lowest:,.0f} to {each.highest:,.0f}':<18})  {ratio}"
            print(f"  {name:<12} {text}  client {each.client:>5.1f} µs  broker {each.broker:>5.1f} µs", flush=True)

    def data(self, contenders: Iterable[Contender], rounds: int) -> dict[str, Any]:
        """Return everything that a page says of this comparison."""
        versions = {each.name: each.versions() for each in contenders}
        workloads = {
            each.name: {name: asdict(figures) for name, figures in self.figures(each).items()} for each in WORKLOADS
        }
        return {"rounds": rounds, "versions": versions, "workloads": workloads}


def keep(group: str, data: dict[str, Any], broker: str) -> dict[str, Any]:
    """Note what one group of workloads came to, where and when; return what all groups came to last."""
    kept: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    kept[group] = {"surroundings": _surroundings(broker), **data}
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps(kept, indent=1))
    return kept


def _surroundings(broker: str) -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    try:
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        system = platform.system()
    python = platform.python_version()
    return (
        f"{datetime.now(UTC):%Y-%m-%d}: RabbitMQ {broker}, Python {python}, {os.cpu_count()} cores of {processor}, "
        f"{memory:.0f} GiB, {system}"
    )


def _percentile(run: Run, percent: int) -> float:
    return run.took[min(len(run.took) * percent // 100, len(run.took) - 1)] * 1000
