"""Twenty orders through the example agents, on a broker. All that it starts is gone at the end."""

import argparse
import asyncio
import contextlib
import importlib.util
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from choreo import ChoreoError
from choreo.composition.dev_broker import Kind
from choreo.config.settings import load
from choreo.loader import load_all
from choreo.observe import logs
from demo import hints, orders
from demo.broker import opened
from demo.ledger import Ledger
from demo.play import Play
from demo.processes import Processes
from demo.screen import Screen, summary
from demo.watcher import watcher

DEADLINE = 45.0  # seconds for all orders to end


def main() -> int:
    """Run the demo and return its exit code: 0 when every order is accounted for."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument(
        "--keep",
        action="store_true",
        default=bool(os.environ.get("KEEP")),
        help="keep broker and agents until Ctrl-C, to look around from a second terminal [env: KEEP]",
    )
    parser.add_argument(
        "--broker",
        type=Kind,
        choices=list(Kind),
        help="start this one; the default is the broker that CHOREO_URL names, else the embedded one",
    )
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell has us started with it ignored
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    logs.configure("critical")  # the watcher's; the agents log to files
    try:
        return perform(Console(highlight=False), options.broker, keep=options.keep)
    except ChoreoError as error:
        print(f"demo: {error.message}", file=sys.stderr)
        if error.way_out:
            print(f"  {error.way_out}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def perform(console: Console, kind: Kind | None, *, keep: bool) -> int:
    """Get a broker and the agents, let the orders run, and end everything, whatever happens."""
    began = time.monotonic()
    reloading = keep and importlib.util.find_spec("watchfiles") is not None
    placed = orders.draw()
    ledger = Ledger(each.order for each in placed)
    screen = Screen(console, ledger, {each.order: orders.text(each) for each in placed})
    watching = watcher(ledger, screen)

    def afterwards() -> None:
        console.print(summary(ledger), soft_wrap=True)
        console.print(
            f"\n{len(placed)} orders, {len(placed) - len(ledger.open)} accounted for; {ledger.retries} tries repeated; "
            f"{time.monotonic() - began:.0f} seconds"
        )
        console.print(
            hints.staying(broker, reloading=reloading) if keep else hints.over(), soft_wrap=True, markup=False
        )

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="choreo-demo-")))
        everyone = [*load_all(load().agents_folder), watching]
        broker = stack.enter_context(opened(kind, everyone))
        console.print("broker   " + broker.text.replace("\n", "\n         "), soft_wrap=True)
        options = ["--reload"] if reloading else []
        processes = stack.enter_context(Processes(folder, broker.environment, *options))
        stack.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)  # the end takes a moment, and is not cut short
        console.print(f"agents   {', '.join(each.name for each in processes.all)}: a process each")
        os.environ.update(broker.variables)  # this process takes part as well
        play = Play(placed, ledger, screen, watching, processes, load(concurrency=1))
        all_ended = asyncio.run(play.run(deadline=DEADLINE, afterwards=afterwards, stay=keep))
    console.print("\nNothing is left running.")
    return 0 if all_ended else 1


if __name__ == "__main__":
    sys.exit(main())
