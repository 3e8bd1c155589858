"""`make bench`: one private node, every contender in turn, three rounds; then docs/performance.md."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from choreo.testing.rabbitmq.node import Node
from tests.benchmarks import growth, page, parts
from tests.benchmarks.peers import CONTENDERS, Contender
from tests.benchmarks.referee import WORKLOADS, Referee, Run, RunFailed, Workload
from tests.benchmarks.results import Comparison, keep

ROUNDS = 3
GROWTH = "growth"


def main() -> int:
    """Run what was asked for; return how the program ends."""
    asked = _arguments()
    good = True
    with tempfile.TemporaryDirectory(prefix="choreo-bench-") as folder, Node.start(Path(folder) / "node") as node:
        if asked.growth:
            group, data = "growth", growth.measure(node, Path(folder), asked.events or growth.EVENTS)
        else:
            comparison = Comparison()
            referee = Referee(node, Path(folder))
            for workload in asked.workloads:
                for round_ in range(asked.rounds):
                    good &= _round(referee, workload, _rotated(asked.contenders, round_), asked, comparison)
                comparison.show(workload)
            group, data = "comparison", comparison.data(asked.contenders, asked.rounds) | {"parts": parts.measure()}
    if asked.write:
        page.write(keep(group, data, node.version))
        print(f"\n{page.PAGE} is written", file=sys.stderr)
    return 0 if good else 1


def _round(
    referee: Referee, workload: Workload, contenders: list[Contender], asked: argparse.Namespace, results: Comparison
) -> bool:
    """Give every contender one run; return whether all of them did what they should."""
    good = True
    for contender in contenders:
        if workload.work == "publish" and not contender.publishes:
            continue
        pace = 1 if workload.paced else contender.pace
        events = (asked.events or workload.events) * pace
        if contender.serial and workload.work == "publish":
            events = max(events // 4, 10)
        try:
            run = referee.run(contender, workload, events)
        except (RunFailed, OSError) as error:
            print(f"*** {workload.name}: {error}", file=sys.stderr, flush=True)
            good = False
        else:
            results.add(workload, contender, run)
            _say(workload, contender, run)
    return good


def _rotated(contenders: list[Contender], by: int) -> list[Contender]:
    """Return the contenders in another order each round: nobody is always first."""
    shift = by % len(contenders)
    return contenders[shift:] + contenders[:shift]


def _say(workload: Workload, contender: Contender, run: Run) -> None:
    if sys.stderr.isatty():
        print(f"  {workload.name} {contender.name}: {run.events / run.seconds:,.0f}/s", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    groups = {name for each in WORKLOADS for name in (each.name, each.name.partition("-")[0])}
    parser.add_argument(
        "workloads", nargs="*", metavar="WORKLOAD", help=f"some of {', '.join(sorted(groups))}; or growth"
    )
    known = {each.name: each for each in CONTENDERS}
    parser.add_argument("--contenders", help=f"some of {','.join(known)}; with commas between")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--events", type=int, help="how many the slowest contender gets in place of each workload's")
    parser.add_argument("--write", action="store_true", help=f"write {page.PAGE}; a whole run does so by itself")
    asked = parser.parse_args()
    asked.growth = asked.workloads == [GROWTH]
    asked.write |= not (
        asked.contenders or asked.events or asked.rounds != ROUNDS or (asked.workloads and not asked.growth)
    )
    if asked.growth:
        return asked
    if unknown := set(asked.workloads) - groups:
        parser.error(f"there is no workload {', '.join(unknown)}; known: {', '.join(sorted(groups))}")
    wanted = asked.workloads or groups
    asked.workloads = [each for each in WORKLOADS if {each.name, each.name.partition("-")[0]} & set(wanted)]
    names = asked.contenders.split(",") if asked.contenders else list(known)
    if unknown := set(names) - known.keys():
        parser.error(f"there is no contender {', '.join(unknown)}; known: {', '.join(known)}")
    asked.contenders = [known[name] for name in names if not known[name].missing]
    for name in names:
        if known[name].missing:
            print(f"*** {known[name].title} is LEFT OUT: it is not on this machine ***", file=sys.stderr)
    return asked


if __name__ == "__main__":
    sys.exit(main())
