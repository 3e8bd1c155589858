"""The figures to reach, each beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Figures = Mapping[str, Mapping[str, Any]]  # of one workload, by contender


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure to reach. `measured` is None when a part of it was not measured."""

    what: str
    wanted: str
    measured: str | None
    met: bool = False

    @property
    def verdict(self) -> str:
        """Say in a word or two whether it was reached."""
        return "not measured" if self.measured is None else "met" if self.met else "**not met**"


def of_comparison(workloads: Mapping[str, Figures]) -> Iterator[Goal]:
    """Return the goals that are ratios within one run."""
    for name, faststream, c, cpu in (
        ("consume-100", 12, 0.8, 20),
        ("consume-1000", 12, 0.8, 20),
        ("hop", 4, 0.9, 70),
        ("publish", 3, 0.6, None),
    ):
        figures = workloads.get(name, {})
        yield _ratio(name, figures, "faststream", "FastStream", faststream)
        yield _ratio(name, figures, "rabbitmq_c", "the C client", c)
        if cpu is not None:
            ours = figures.get("choreo", {}).get("client")
            yield _at_most(f"{name}: client CPU per event", ours, cpu, "µs")
    latency = workloads.get("latency", {})
    for percentile in ("p50", "p99"):
        theirs = latency.get("aio_pika", {}).get(percentile)
        ours = latency.get("choreo", {}).get(percentile)
        what = f"latency: {percentile} no worse than raw aio-pika's"
        if ours is None or theirs is None:
            yield Goal(what, "-", None)
        else:
            yield Goal(what, f"≤ {theirs:.2f} ms", f"{ours:.2f} ms", ours <= theirs)


def of_growth(growth: Mapping[str, Any]) -> Iterator[Goal]:
    """Return the goals for memory and start-up."""
    worker = growth.get("worker", {})
    yield _at_most("worker at rest: memory", worker.get("rest"), 60, "MB")
    backlog = growth.get("backlog", [])
    # The first quarter fills windows and caches; from then on nothing may accumulate.
    quarter = len(backlog) // 4
    grown = backlog[-1]["rss"] - backlog[quarter]["rss"] if backlog else None
    yield _at_most("memory growth over the last three quarters of a backlog", grown, 5, "MB")
    yield _at_most("`choreo --help`", worker.get("help"), 200, "ms")
    yield _at_most("worker ready", worker.get("ready"), 500, "ms")


def _ratio(workload: str, figures: Figures, other: str, title: str, wanted: float) -> Goal:
    what = f"{workload}: rate beside {title}"
    if "choreo" not in figures or other not in figures:
        return Goal(what, f"≥ {wanted:g}×", None)
    ratio = figures["choreo"]["rate"] / figures[other]["rate"]
    return Goal(what, f"≥ {wanted:g}×", f"{ratio:.2f}×", ratio >= wanted)


def _at_most(what: str, measured: float | None, wanted: float, unit: str) -> Goal:
    shown = None if measured is None else f"{measured:.1f} {unit}"
    return Goal(what, f"≤ {wanted:g} {unit}", shown, measured is not None and measured <= wanted)
