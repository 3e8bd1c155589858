"""`choreo inspect`: how the agents, their queues and bindings stand, once or again and again."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer

from choreo.cli import complaints, options
from choreo.cli import output as out
from choreo.cli.options import Output, OutputOption, Url
from choreo.printable import visible

if TYPE_CHECKING:
    from choreo.agent import Agent
    from choreo.config.settings import Settings
    from choreo.topology import Names
    from choreo.transport import Management, Session

AGENTS = ("agent", "state", "ready", "consumers", "dead", "consumes", "emits", "retry")
_PASSED = ("delay", "retry")  # empty ones say nothing
QUEUES = ("queue", "agent", "kind", "ready", "consumers", "state")
_WORDS = ("agents", "queues", "bindings")
BINDINGS = ("source", "pattern", "destination", "agent")
_SHORTEST = 0.1  # seconds from one look to the next
_NAME = "choreo inspect"  # which the broker shows
_RATES = ("publish", "deliver", "ack")


@dataclass(frozen=True)
class Page:
    """What a look has found: rows of a table, or one thing (`data`) and how it reads (`text`); `failed`: nothing."""

    rows: Sequence[dict[str, Any]] = ()
    columns: Sequence[str] = ()
    empty: str = ""
    data: dict[str, Any] | None = None
    text: str = ""
    notes: Sequence[str] = ()
    failed: bool = False

    def write(self, output: Output) -> None:
        """Write it to stdout."""
        if self.data is None:
            rows = [_spoken(row) for row in self.rows] if output is Output.TEXT else self.rows
            out.rows(rows, output, self.columns, self.empty)
        else:
            out.document(self.data, output, self.text)


Look = Callable[["Session"], Awaitable[Page]]


def inspect(
    what: Annotated[
        str, typer.Argument(metavar="agents|queues|bindings|NAME", help="What to show; NAME is one agent.")
    ] = "agents",
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="In tables, also show empty delays and the bindings of delays.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh until Ctrl-C.")] = False,
    interval: Annotated[
        str, typer.Option("--interval", metavar="TIME", help="Time between refreshes of --watch.")
    ] = "2s",
    output: OutputOption = Output.TEXT,
    url: Url = None,
) -> None:
    """Show the state of agents, queues or bindings, or everything about one agent. Needs only AMQP.

    With CHOREO_MANAGEMENT_URL, the broker's management API adds rates, memory, consumers, and what no agent of this
    project declares.
    """
    from choreo.composition import sessions
    from choreo.observe import logs
    from choreo.topology import Names

    out.keep_data_apart()
    settings = options.settings(url=url)
    logs.configure(settings.log_level, settings.log_format)
    out.note_broker(settings)
    pause = _seconds(interval)
    management = sessions.management(settings)
    names = Names(settings.namespace)
    everything = everything or output is not Output.TEXT
    if what == "queues":
        look = _look_at_queues(_names(settings, management), names, management, everything=everything)
    else:
        agents = _agents(what, settings, may_be_none=management is not None)
        look = _look(what, agents, names, management, everything=everything)
    if not watch:
        page = out.wait_for(_once(settings, look))
        page.write(output)
        for note in page.notes:
            out.note(f"choreo: {note}")
        return
    with _screen(output) as show:
        out.wait_for(_watch(settings, look, pause, show))


def _seconds(interval: str) -> float:
    from choreo import duration

    try:
        pause = duration.seconds(interval)
    except ValueError:
        pause = 0
    if pause < _SHORTEST:
        allowed = f"at least 100ms, because each look asks the broker: {duration.FORMS}"
        raise options.not_allowed("--interval", interval, allowed)
    return pause


def _agents(what: str, settings: Settings, *, may_be_none: bool) -> list[Agent]:
    from choreo import loader

    folder = settings.agents_folder
    if what not in _WORDS:
        near = get_close_matches(what, _WORDS, n=1)
        if near and what not in loader.known(folder):
            raise options.not_allowed("inspect", what, f"{', '.join(_WORDS)} or an agent; did you mean {near[0]}?")
        return [loader.load(what, folder)]
    if may_be_none and not loader.any_agents(folder):
        out.note(f"choreo: there is no agents folder {folder}; showing what the broker has")
        return []
    agents, left_out = loader.load_sound(folder)
    complaints.of_left_out(left_out)
    out.note_forgotten(None, settings)
    return agents


def _names(settings: Settings, management: Management | None) -> list[str]:
    """Return the names of the agents here. Nothing is imported for them: queues stand, whatever the code is like."""
    from choreo import loader

    folder = settings.agents_folder
    if not loader.any_agents(folder):
        shown = "what the broker has"
        if management is None:
            shown = "what all agents share; with CHOREO_MANAGEMENT_URL, also what the broker has besides"
        out.note(f"choreo: there is no agents folder {folder}; showing {shown}")
    return loader.known(folder)


def _look_at_queues(agents: Sequence[str], names: Names, management: Management | None, *, everything: bool) -> Look:
    from choreo.operate import queues

    async def look(session: Session) -> Page:
        snapshot = await queues.look(session, agents, names, management)
        rows = [row for row in snapshot.rows() if everything or row["kind"] not in _PASSED or row["ready"]]
        return Page(rows, QUEUES + (queues.DETAILS if snapshot.detailed else ()), "no queues", notes=snapshot.notes)

    return look


def _look(what: str, agents: Sequence[Agent], names: Names, management: Management | None, *, everything: bool) -> Look:
    """Return how to look at `what`."""
    from choreo.operate import queues

    async def of_agents(session: Session) -> Page:
        snapshot = await queues.look(session, [agent.name for agent in agents], names, management)
        rows = [queues.overview(agent, snapshot) for agent in agents]
        return Page(rows, AGENTS, "no agents", notes=snapshot.notes)

    async def of_bindings(session: Session) -> Page:  # noqa: ARG001 - they follow from the agents; see queues.bindings
        rows, notes = await queues.bindings(agents, names, management)
        if not everything:
            rows = [row for row in rows if row["source"] in (names.events, names.dead)]
        told = ("on_broker", "declared") if management is not None and not notes else ()
        return Page(rows, BINDINGS + told, "no bindings", notes=notes)

    async def of_one(session: Session) -> Page:
        data, notes = await queues.portrait(session, agents[0], names, management)
        return Page(data=data, text=_portrait(data), notes=notes)

    return {"agents": of_agents, "bindings": of_bindings}.get(what, of_one)


async def _once(settings: Settings, look: Look) -> Page:
    from choreo.composition import sessions

    async with sessions.session(settings, _NAME) as session:
        return await look(session)


async def _watch(settings: Settings, look: Look, pause: float, show: Callable[[Page], None]) -> None:
    """Look every `pause` seconds until cancelled. A broker that was there once is waited for."""
    import asyncio

    from choreo.composition.sessions import connector
    from choreo.errors import BrokerUnreachable

    connect = connector(settings, _NAME)
    session: Session | None = await connect()
    try:
        while True:
            try:
                session = session or await connect()
                show(await look(session))
            except BrokerUnreachable as error:
                show(Page(notes=[f"{error.message}; trying again"], failed=True))
            if session is not None and session.lost.done():
                await session.close()
                session = None
            await asyncio.sleep(pause)
    finally:
        if session is not None:
            await session.close()


@contextmanager
def _screen(output: Output) -> Iterator[Callable[[Page], None]]:
    """Return how to show one page after the other: in place on a terminal, else as blocks or lines with their time."""
    if output is Output.TEXT and out.stdout().isatty():
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        with Live(console=Console(file=out.stdout()), auto_refresh=False, vertical_overflow="crop") as live:

            def refresh(page: Page) -> None:
                shown = _plain(page, shutil.get_terminal_size().columns)
                lines = [f"{_now()}  {'; '.join(page.notes)}", "", shown]
                live.update(Text(visible("\n".join(lines)), no_wrap=True, overflow="ellipsis"), refresh=True)

            yield refresh
        return
    said: Sequence[str] = ()

    def write(page: Page) -> None:
        nonlocal said
        for note in page.notes if page.notes != said else ():
            out.note(f"choreo: {note}")
        said = page.notes
        if output is Output.TEXT:
            out.write(f"{_now()}\n{_plain(page)}\n")
        elif not page.failed:
            time = {"time": datetime.now().astimezone().isoformat()}
            data = None if page.data is None else time | page.data
            replace(page, rows=[time | row for row in page.rows], data=data).write(output)

    yield write


def _plain(page: Page, width: int | None = None) -> str:
    """Return a page as text in plain columns, for a terminal of so many characters."""
    if page.data is not None:
        return page.text
    return "\n".join(out.lines([_spoken(row) for row in page.rows], page.columns, width)) if page.rows else page.empty


def _spoken(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {True: "yes", False: "no"}[value] if isinstance(value, bool) else value for name, value in row.items()
    }


def _now() -> str:
    return datetime.now().astimezone().strftime("%H:%M:%S")


def _portrait(data: dict[str, Any]) -> str:
    """Return everything about one agent, for people."""
    from choreo import duration

    lines = [f"{data['agent']}  {data['where']}", *filter(None, [data["description"]]), ""]
    for row in data["queues"]:
        figures = (f"{row[name]} {name}" for name in ("ready", "unacked", "consumers") if row.get(name) is not None)
        rates = (f"{row[f'{name}_rate']:g} {name}/s" for name in _RATES if row.get(f"{name}_rate") is not None)
        lines.append(f"{row['kind']:<8}  {', '.join([row['queue'], row['state'], *figures, *rates])}")
    for each in data.get("consumer_details", ()):
        state = {True: "active", False: "inactive", None: ""}[each["active"]]
        lines.append(f"consumer  {each['user']} from {each['address']}, prefetch {each['prefetch']} {state}".rstrip())
    lines += [
        f"retry     {data['retry']}",
        f"timeout   {duration.text(data['timeout'])}",
        f"max hops  {data['max_hops']}",
    ]
    for each in data["reactions"]:
        lines += ["", f"{each['reaction']}  {each['where']}"]
        fields = {
            "takes": ", ".join(each["consumes"]),
            "emits": ", ".join(each["emits"]) or "nothing",
            "compensates": each["compensates"],
            "retry": each["retry"],
            "otherwise": each["otherwise"]
            and f"{each['otherwise']} -> {', '.join(each['otherwise_emits']) or 'nothing'}",
            "timeout": duration.text(each["timeout"]),
            "max hops": each["max_hops"],
        }
        lines += [f"  {name:<11}  {value}" for name, value in fields.items() if value is not None]
    return "\n".join(lines)
