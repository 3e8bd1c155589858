"""What all runs came to: medians and spread, told on the terminal."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass, field

from tests.benchmarks.peers import Contender
from tests.benchmarks.referee import Run, Workload


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
        percentiles = [(_percentile(run, 50), _percentile(run, 99)) for run in runs if run.took]
        return cls(
            rate=middle(rates),
            lowest=min(rates),
            highest=max(rates),
            client=middle(run.client_cpu / run.events * 1e6 for run in runs),
            broker=middle(run.broker_cpu / run.events * 1e6 for run in runs),
            p50=middle(p50 for p50, _ in percentiles) if percentiles else None,
            p99=middle(p99 for _, p99 in percentiles) if percentiles else None,
        )


@dataclass
class Results:
    """All runs of this time."""

    broker: str = ""
    runs: dict[str, dict[str, list[Run]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))

    def begin(self, broker: str) -> None:
        """Note which broker it is."""
        self.broker = broker

    def add(self, workload: Workload, contender: Contender, run: Run) -> None:
        """Note one run."""
        self.runs[workload.name][contender.name].append(run)

    def show(self, workload: Workload) -> None:
        """Print a workload's table."""
        found = {name: Figures.of(runs) for name, runs in self.runs[workload.name].items()}
        ours = found.get("choreo")
        print(f"\n{workload.title}: median (spread), client and broker CPU per event")
        for name, each in found.items():
            if workload.paced:
                text = f"p50 {each.p50:.2f} ms   p99 {each.p99:.2f} ms"
            else:
                ratio = f"{ours.rate / each.rate:6.2f}x" if ours else ""
                text = f"{each.rate:>8,.0f}/s  ({f'{each.lowest:,.0f} to {each.highest:,.0f}':<18})  {ratio}"
            print(f"  {name:<12} {text}  client {each.client:>5.1f} µs  broker {each.broker:>5.1f} µs", flush=True)


def _percentile(run: Run, percent: int) -> float:
    return run.took[min(len(run.took) * percent // 100, len(run.took) - 1)] * 1000
