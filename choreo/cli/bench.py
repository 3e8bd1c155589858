"""`choreo bench`: what one process of this machine gets out of a broker."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Annotated

import typer

from choreo.cli import options
from choreo.cli import output as out
from choreo.cli.options import Output, OutputOption, Url

if TYPE_CHECKING:
    from choreo.operate.bench import Bench, Measured

COLUMNS = ("workload", "events", "per_second", "cpu_us", "p50_ms", "p99_ms")


def bench(
    *,
    events: Annotated[
        int,
        typer.Option(
            "--events",
            metavar="NUMBER",
            parser=options.whole("--events", 100, 10_000_000),
            help="Maximum events for each workload.",
        ),
    ] = 20_000,
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds",
            metavar="NUMBER",
            parser=options.decimal("--seconds", 1, 3600),
            help="Approximate time limit for each workload.",
        ),
    ] = 10.0,
    output: OutputOption = Output.TEXT,
    url: Url = None,
) -> None:
    """Measure a broker: throughput of publish, consume and hop, and the latency of a hop at 200 events/s.

    Events of 512 bytes go through one process, with the ordinary worker and publisher. They use a random namespace,
    bench-*, which is deleted afterwards, also on Ctrl-C. Other queues are not touched, but their consumers share the
    broker. In a hop, one event is consumed, another is published and confirmed, and the first is acknowledged. Latency
    is measured from publishing an event until the event that follows from it arrives.
    """
    from choreo.composition.sessions import connector
    from choreo.observe import logs
    from choreo.operate.bench import Bench

    out.keep_data_apart()
    settings = options.settings(url=url)
    logs.configure("warning", settings.log_format)  # what the worker says of itself would hide the table
    work = Bench(settings, connector(settings, "choreo bench"), events=events, seconds=seconds)
    out.note(f"choreo: measuring in the namespace {work.namespace}, which is deleted afterwards")
    found = out.wait_for(_run(work))
    out.rows([each.data() for each in found], output, COLUMNS)


async def _run(work: Bench) -> list[Measured]:
    """Run it; every signal that asks for an end is one to clean up first, as Ctrl-C is."""
    import asyncio

    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    found: list[Measured] = []
    try:
        await work.run(found.append)
    except asyncio.CancelledError:
        out.note("choreo: interrupted")
        raise KeyboardInterrupt from None
    return found
