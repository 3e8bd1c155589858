"""`choreo publish`: put events into the choreography, each checked before and confirmed after."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from choreo.cli import complaints, options
from choreo.cli.options import Output, OutputOption, Url
from choreo.cli.output import keep_data_apart, note, note_broker, progress, wait_for, write_json
from choreo.cli.output import write as write_text
from choreo.errors import ChoreoError

if TYPE_CHECKING:
    from choreo.config.settings import Settings
    from choreo.message import Message
    from choreo.operate.batch import Batch
    from choreo.operate.payload import Form
    from choreo.operate.sending import Pace, Tally

Write = Callable[["Message"], None]


def publish(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="Topic of the event, or the name of its class.")],
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="JSON|-|@FILE",
            help="The event as JSON, - for stdin, or @FILE. If omitted, only the --set fields.",
        ),
    ] = None,
    *,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Set a field; use dots for nested fields. Can be repeated."),
    ] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Read one event per line, from stdin or @FILE.")] = False,
    count: Annotated[
        int,
        typer.Option(
            "--count",
            metavar="NUMBER",
            parser=options.whole("--count", 1),
            help="Number of times to publish each event.",
        ),
    ] = 1,
    rate: Annotated[
        str | None,
        typer.Option("--rate", metavar="NUMBER", help="Maximum events per second: 50, or 0.5."),
    ] = None,
    delay: Annotated[
        str | None,
        typer.Option(
            "--delay",
            metavar="TIME",
            help="Deliver after a delay (30s, 5m, 2h) to the queues bound then. If none is: choreo dlq list unclaimed.",
        ),
    ] = None,
    correlation_id: Annotated[
        str | None,
        typer.Option(
            "--correlation-id", metavar="ID", help="Correlation id: the transaction that the event belongs to."
        ),
    ] = None,
    event_id: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help="Event id. Reuse it to repeat a publish whose outcome is unknown."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Validate and print the event, but do not send it.")
    ] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Publish any JSON to any topic, without validation.")] = False,
    output: OutputOption = Output.TEXT,
    url: Url = None,
) -> None:
    """Publish events. All are validated before the first is sent; the broker confirms each one.

    Prints topic and id of each confirmed event. Stops at the first failure.
    """
    from choreo.errors import UsageError
    from choreo.observe import logs
    from choreo.operate.payload import identifier
    from choreo.operate.sending import Pace

    keep_data_apart()
    settings = options.settings(url=url)
    logs.configure(settings.log_level, settings.log_format)
    pace = Pace.parse(rate, delay)
    make_ids = {
        "event_id": identifier("--id", event_id),
        "correlation_id": identifier("--correlation-id", correlation_id),
    }
    if event_id and (lines or count > 1):
        raise UsageError("--id is for one event, --count and --lines are for many", "leave one of them out")
    if not dry_run:
        settings.brokers()  # a URL that cannot be used is said before anything is read
        note_broker(settings)
    form = _form(topic, changes or (), settings, raw=raw)
    with _read(form, data, lines=lines) as bodies:
        messages = ((line, form.message(body, **make_ids)) for line, body in bodies for _ in range(count))
        if dry_run:
            with _writer(output, partial(_plan, delay=pace.delay), _plan_text) as write:
                for _, message in messages:
                    write(message)
            return
        total = bodies.total * count
        with _writer(output, _receipt, _receipt_text) as write, progress("publishing", total, pace.interval) as advance:

            def confirmed(message: Message) -> None:
                try:
                    write(message)
                except BrokenPipeError:
                    raise ChoreoError("the reader of stdout has closed it", "let the reader take all of it") from None
                advance()

            tally, interrupted = wait_for(_send(settings, form.topic, pace, messages, total, confirmed))
    if interrupted:
        note(f"choreo: interrupted; {tally}")
        raise typer.Exit(130)
    tally.check()
    if total > 1:
        note(f"{tally}")


def _form(topic: str, changes: Iterable[str], settings: Settings, *, raw: bool) -> Form:
    """Return how the event is made. Unless it is raw, all agents are imported: with them come their events."""
    from choreo import loader
    from choreo.operate.payload import Change, Form

    wanted = tuple(Change.parse(each) for each in changes)
    if raw:
        return Form.raw(topic, wanted, settings.max_body)
    _, left_out = loader.load_sound(settings.agents_folder)
    complaints.of_left_out(left_out)
    return Form.known(topic, wanted, settings.max_body)


def _read(form: Form, data: str | None, *, lines: bool) -> Batch:
    from choreo.operate.batch import Batch, opened

    stdin = sys.stdin.buffer if sys.stdin else None
    given = "-" if data is None and lines else data
    if given == "-" and sys.stdin and sys.stdin.isatty():
        note("reading from the terminal; Ctrl-D ends it")
    with opened(given, stdin) as (source, name):
        if not lines:
            return Batch.of_one(form, source, name)
        with progress("checking", None) as advance:
            return Batch.of_lines(form, source, name, advance)


async def _send(
    settings: Settings,
    topic: str,
    pace: Pace,
    messages: Iterator[tuple[int | None, Message]],
    total: int,
    on_confirmed: Write,
) -> tuple[Tally, bool]:
    """Publish, and say what became of it and whether somebody pressed Ctrl-C."""
    import asyncio
    from signal import SIGINT

    from choreo.composition.sessions import connector
    from choreo.operate.payload import SOURCE
    from choreo.operate.sending import Sending
    from choreo.runtime.publisher import Publisher

    async with Publisher(settings, connector(settings, "choreo publish"), source=SOURCE) as publisher:
        sending = Sending(publisher, topic, pace, on_confirmed)
        interrupted = asyncio.Event()

        def interrupt() -> None:
            if interrupted.is_set():
                sending.abort()
                return
            interrupted.set()
            sending.stop()
            note("choreo: waiting for confirmations; press Ctrl-C again to stop at once")

        asyncio.get_running_loop().add_signal_handler(SIGINT, interrupt)  # until the loop ends
        return await sending.send(messages, total), interrupted.is_set()


@contextmanager
def _writer(
    output: Output, as_data: Callable[[Message], dict[str, Any]], as_text: Callable[[Message], str]
) -> Iterator[Write]:
    """Write messages as they come: a million of them need no memory, whatever the output."""
    written, failed = 0, False

    def write(message: Message) -> None:
        nonlocal written, failed
        try:
            if output is Output.TEXT:
                write_text(as_text(message))
            else:
                before = (", " if written else "[") if output is Output.JSON else ""
                write_json(as_data(message), before=before, nl=output is not Output.JSON)
        except (ChoreoError, BrokenPipeError):
            failed = True
            raise
        written += 1

    try:
        yield write
    finally:
        if written and output is Output.JSON and not failed:
            write_text("]")


def _receipt(message: Message) -> dict[str, Any]:
    return {"id": message.message_id, "correlation_id": message.correlation_id, "topic": message.type}


def _receipt_text(message: Message) -> str:
    return f"{message.type} {message.message_id}"


def _plan(message: Message, delay: float) -> dict[str, Any]:
    return {
        **_receipt(message),
        "delay": delay,
        "headers": message.headers,
        "body": _shown(message),
    }


def _plan_text(message: Message) -> str:
    from choreo.message import HIDDEN

    headers = "".join(f"\n  {name}: {value}" for name, value in message.headers.items())
    body = json.dumps(_shown(message), ensure_ascii=False) if HIDDEN in message.headers else message.body.decode()
    return f"{_receipt_text(message)}{headers}\n  {body}"


def _shown(message: Message) -> Any:
    """Return the body without its secrets."""
    from choreo.body.codec import masked

    return masked(json.loads(message.body), message.headers)
