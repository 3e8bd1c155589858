"""docs/performance.md and its picture, from what was kept of the last runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

from tests.benchmarks import chart, goals
from tests.benchmarks.peers import CONTENDERS
from tests.benchmarks.referee import WORKLOADS

PAGE: Final = Path("docs/performance.md")
PICTURE: Final = Path("docs/performance.svg")
_TITLES: Final = {each.name: each.title for each in CONTENDERS}

_OPENING: Final = """\
# Performance

<!-- Made by `make bench` and `make bench ARGS=growth`. What is written here by hand is gone after their next run. -->

Rates vary from run to run by a third, and from machine to machine by much more. What to trust are ratios within one
run, and CPU per event.
"""

_METHOD: Final = """\
## How it was measured

One private RabbitMQ node and one contender at a time, on one machine over loopback. In each round every contender does
the workload once, in rotating order; figures are medians of the rounds, with the lowest and the highest in brackets. An
event is an order of 512 bytes of JSON. In the Python contenders the same pydantic model validates it. All queues are
quorum queues with one member; choreo's have the dead-lettering and the limits that it gives them.

- **consume**: a backlog in the contender's queue, which it works off and acknowledges. Each contender's backlog is a
  message that its own publisher made, copied with other ids; so every one reads its own envelope.
- **hop**: the same, but for each event another one is published to a quorum queue, and only once that is confirmed is
  the first one acknowledged.
- **publish**: orders are made, serialized and published with 500 of them unconfirmed at a time, to a quorum queue. The
  publish of Dramatiq and Celery blocks: they have one outstanding.
- **latency**: events sent at 200 a second to a contender that hops; the time from just before an event is written to
  its socket until the emitted event has been read from another queue. A small client of the referee's does both, so
  that it is one clock and the same for all.

Counting begins after at least a tenth of the events, and ends while as many are under way as at its beginning. Client
CPU is that of the contender's own process, broker CPU that of the Erlang VM, user and system time together. After each
run the queues are counted: a contender that left or lost something has no figure.

A prefetch of 1000 is what choreo is told; it holds fewer where concurrency and deadlines ask for it, so that no
delivery outlasts the broker's patience (see `prefetch` in [settings](settings.md)).
"""


_PARTS: Final = """\
## Where the time goes

What choreo does for one consumed order with its own envelope, each part by itself and without a broker. To this come
the sockets, the turns of the event loop and the caches that a real worker shares with all of that: the client CPU above
has everything.
"""


def write(kept: Mapping[str, Any]) -> None:
    """Write the page and the picture."""
    PAGE.write_text(text(kept))
    if "comparison" in kept:
        PICTURE.write_text(picture(kept["comparison"]["workloads"]))


def text(kept: Mapping[str, Any]) -> str:
    """Return the page; a group of workloads that was never run has no section."""
    return "\n".join(chain([_OPENING], _goals(kept), _comparison(kept), _parts(kept), _growth(kept))).rstrip() + "\n"


def picture(workloads: Mapping[str, goals.Figures]) -> str:
    """Return the bar charts as SVG."""
    return chart.draw(list(_panels(workloads)))


def _goals(kept: Mapping[str, Any]) -> Iterator[str]:
    found = [
        *goals.of_comparison(kept.get("comparison", {}).get("workloads", {})),
        *goals.of_growth(kept.get("growth", {})),
    ]
    yield "## Figures to reach\n"
    yield _table(
        ("figure", "wanted", "measured", ""), ((e.what, e.wanted, e.measured or "-", e.verdict) for e in found)
    )


def _comparison(kept: Mapping[str, Any]) -> Iterator[str]:
    if (comparison := kept.get("comparison")) is None:
        return
    yield "## Beside its peers\n"
    yield f"Run of {comparison['surroundings']}; rounds: {comparison['rounds']}.\n"
    yield "![Rates, latency and CPU of choreo and its peers](performance.svg)\n"
    for workload in WORKLOADS:
        figures = comparison["workloads"].get(workload.name)
        if figures:
            yield f"### {workload.title}\n"
            yield _latencies(figures) if workload.paced else _rates(figures)
    yield _METHOD
    yield "## The contenders\n"
    rows = (
        (each.title, comparison["versions"][each.name], each.settings)
        for each in CONTENDERS
        if each.name in comparison["versions"]
    )
    yield _table(("", "versions", "settings"), rows)
    absent = [each.title for each in CONTENDERS if each.name not in comparison["versions"]]
    if absent:
        yield f"Left out, because the machine did not have them: {', '.join(absent)}.\n"


def _rates(figures: goals.Figures) -> str:
    ours = figures.get("choreo", {}).get("rate")
    ordered = sorted(figures.items(), key=lambda item: -item[1]["rate"])
    head = ("", "events per second", "choreo's rate to it", "client CPU per event", "broker CPU per event")
    return _table(
        head,
        (
            (
                _TITLES[name],
                f"{each['rate']:,.0f} ({each['lowest']:,.0f} to {each['highest']:,.0f})",
                f"{ours / each['rate']:.2f}×" if ours else "-",
                f"{each['client']:.1f} µs",
                f"{each['broker']:.1f} µs",
            )
            for name, each in ordered
        ),
    )


def _latencies(figures: goals.Figures) -> str:
    ordered = sorted(figures.items(), key=lambda item: float(item[1]["p50"]))
    return _table(
        ("", "p50", "p99", "client CPU per event", "broker CPU per event"),
        (
            (
                _TITLES[name],
                f"{e['p50']:.2f} ms",
                f"{e['p99']:.2f} ms",
                f"{e['client']:.0f} µs",
                f"{e['broker']:.0f} µs",
            )
            for name, e in ordered
        ),
    )


def _panels(workloads: Mapping[str, goals.Figures]) -> Iterator[chart.Panel]:
    for workload in WORKLOADS:
        figures = workloads.get(workload.name)
        if figures and workload.paced:
            yield _panel(figures, "p50", workload.title, "milliseconds, median; less is better", "{:.2f} ms", best=min)
        elif figures:
            yield _panel(figures, "rate", workload.title, "events per second; more is better", "{:,.0f}", best=max)
    if figures := workloads.get("consume-100"):
        title, note = "Client CPU per consumed event", "microseconds, prefetch 100; less is better"
        yield _panel(figures, "client", title, note, "{:.1f} µs", best=min)


def _panel(figures: goals.Figures, key: str, title: str, note: str, text: str, *, best: Any) -> chart.Panel:
    ordered = sorted(figures.items(), key=lambda item: float(item[1][key]), reverse=best is max)
    bars = [chart.Bar(_TITLES[name], each[key], text.format(each[key]), name == "choreo") for name, each in ordered]
    return chart.Panel(title, note, bars)


def _parts(kept: Mapping[str, Any]) -> Iterator[str]:
    if (parts := kept.get("comparison", {}).get("parts")) is None:
        return
    yield _PARTS
    rows = [*parts, ("together", sum(each for _, each in parts))]
    yield _table(("part of the delivery path", "per event"), ((what, f"{each:.1f} µs") for what, each in rows))


def _growth(kept: Mapping[str, Any]) -> Iterator[str]:
    if (growth := kept.get("growth")) is None:
        return
    yield "## How it grows\n"
    yield f"Run of {growth['surroundings']}.\n"
    yield "### Agents in one process\n"
    yield "All agents listen to one event, each in a queue of its own, and one `choreo run` works for all of them.\n"
    rows = (
        (f"{e['agents']}", f"{e['rate']:,.0f}", f"{e['cpu']:.1f} µs", f"{e['rss']:.1f} MB") for e in growth["agents"]
    )
    yield _table(("agents", "events per second", "client CPU per event", "memory"), rows)
    yield "### Waiting dead letters\n"
    yield "`choreo dlq list`, which shows the first 50, and with the highest `--limit`; the program's start included.\n"
    letters = (
        (f"{e['letters']:,}", f"{e['first']:.2f} s", f"{e['shown']:,}", f"{e['seconds']:.2f} s", f"{e['rss']:.1f} MB")
        for e in growth["letters"]
    )
    yield _table(("waiting", "the first 50", "as many as can be listed", "time", "most memory"), letters)
    backlog = growth["backlog"]
    yield f"### A backlog of {backlog[-1]['done']:,} events\n"
    yield "Memory of the worker while it works it off.\n"
    yield _table(("events done", "memory"), ((f"{e['done']:,}", f"{e['rss']:.1f} MB") for e in backlog))
    yield "### Start and rest\n"
    worker = growth["worker"]
    yield _table(
        ("", ""),
        (
            ("`choreo --help`", f"{worker['help']:.0f} ms"),
            ("worker of one agent, from start until ready", f"{worker['ready']:.0f} ms"),
            ("the same worker, its topology declared before", f"{worker['again']:.0f} ms"),
            ("memory of that worker at rest", f"{worker['rest']:.1f} MB"),
        ),
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
