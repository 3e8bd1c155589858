"""`choreo dev`: a broker and the agents, by one command, on a machine with nothing but Python."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from choreo.cli import options, output, run, streams
from choreo.cli.options import LogLevel, Url
from choreo.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from choreo.agent import Agent
    from choreo.composition.dev_broker import Kind, Place
    from choreo.config.settings import Settings
    from choreo.runtime.starting import Start

_SHOWN: Final = 3  # events that the start shows how to publish


def dev(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Agents to run; all by default.", show_default=False)
    ] = None,
    *,
    broker: Annotated[
        str | None,
        typer.Option(
            "--broker",
            metavar="embedded|rabbitmq",
            help="Broker to start: choreo's own, or a private RabbitMQ node. [default: the broker that is named in"
            " CHOREO_URL or another setting, else embedded]",
            show_default=False,
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            parser=options.whole("--port", 0, 65535),
            help="Port of the broker; 0 takes a free one. [default: 5672, or any free one for rabbitmq]",
            show_default=False,
        ),
    ] = None,
    persist: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Keep durable queues and messages in this file across restarts.", show_default=False
        ),
    ] = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="Restart the agents when a file changes (needs watchfiles).")
    ] = False,
    log_level: LogLevel = None,
    url: Url = None,
) -> None:
    """Run a broker and the agents until Ctrl-C, for development.

    Each delivery is one line: handled, with the events that follow; failed, with the next attempt; or dead.
    --log-level warning hides the handled ones.

    Other commands in the same project (publish, inspect, dlq, run) find this broker automatically, unless a setting
    names another one.
    """
    from choreo import loader
    from choreo.config.settings import load
    from choreo.observe import logs
    from choreo.runtime.starting import Start

    streams.prints_never_fail()
    start = Start("starting a broker")
    began = time.monotonic()
    settings = options.settings(url=url, log_level=log_level)
    log_format = "compact" if settings.log_format == "auto" else settings.log_format
    logs.configure(settings.log_level, log_format)
    kind = _kind(settings, broker, port, persist, url=url)
    # Before the broker: what cannot be imported is a mistake to say at once, and not below a broker that came and went.
    if kind is None and not names and not loader.any_agents(settings.agents_folder):
        raise ConfigurationError(
            f"there is nothing to run: {settings.name_of('url')} names a broker, and there is no agents folder"
            f" {settings.agents_folder}",
            "write an agent there (choreo new NAME makes a project), or start a broker alone: --broker embedded",
        )
    agents, left_out = _agents(names or [], settings, reload=reload)
    with ExitStack() as stack:
        place = None if kind is None else _start(stack, kind, settings, port, persist)
        if place is None:
            output.tell(f"broker   {settings.brokers()[0].censored}, named in {settings.name_of('url')}")
        else:
            url = place.url
        settings = load(url=url, log_level=log_level, log_format=log_format)

        def ready(without: Sequence[str] = left_out) -> None:
            but = f", without {', '.join(without)}: what is wrong there is said above" if without else ""
            output.tell(f"ready    in {time.monotonic() - began:.1f} s{but}; Ctrl-C ends it")

        serving = _serving(agents, names or [], settings, start, ready, whole=not left_out)
        code = output.wait_for(serving if place is None else _beside(place, serving))
    run.end(code)


def _kind(
    settings: Settings, broker: str | None, port: int | None, persist: Path | None, *, url: str | None
) -> Kind | None:
    """Return which broker to start; None for the one that is named."""
    from choreo.composition.dev_broker import Kind

    if broker is not None and broker not in list(Kind):
        raise options.not_allowed("--broker", broker, options.alternatives(Kind))
    named = settings.found is None and "url" in settings.model_fields_set
    kind = Kind(broker) if broker is not None else None if named else Kind.EMBEDDED
    if url is not None and kind is not None:
        raise UsageError("--url names a broker and --broker starts one", "say one of the two")
    if kind is None and (port is not None or persist is not None):
        option = "--port" if port is not None else "--persist"
        raise UsageError(
            f"{option} is for a broker that is started, and {settings.name_of('url')} names one",
            "say --broker embedded to start one all the same",
        )
    if kind is Kind.RABBITMQ and persist is not None:
        raise UsageError("--persist is for the embedded broker", "leave one of --broker rabbitmq and --persist out")
    if persist is not None and persist.is_dir():
        allowed = f"a file, such as {persist / 'broker.db'}; this is a folder"
        raise options.not_allowed("--persist", str(persist), allowed)
    return kind


def _start(stack: ExitStack, kind: Kind, settings: Settings, port: int | None, persist: Path | None) -> Place:
    from choreo.composition import dev_broker
    from choreo.config import dev_file

    fire = stack.enter_context(dev_file.light(settings.root))
    place = stack.enter_context(dev_broker.opened(kind, port=port, persist=persist))
    fire.shine(place.url, place.kind)
    for number, line in enumerate(place.text.splitlines()):
        output.tell(f"{'' if number else 'broker':<9}{line}")
    if settings.found is None and "url" in settings.model_fields_set:
        output.tell(f"         other commands go on using the broker that {settings.name_of('url')} names")
    return place


def _agents(names: list[str], settings: Settings, *, reload: bool) -> tuple[list[Agent] | None, list[str]]:
    """Return the agents to run in this process, and the names of those that cannot be imported.

    With `reload`, None: nothing is imported here, since a file that is broken may be fixed by the next change.
    """
    from choreo import loader

    if not reload:
        there = names or loader.any_agents(settings.agents_folder)
        return run.find_good(names, settings) if there else ([], [])
    run.require_watchfiles()
    for name in names:
        loader.require(name, settings.agents_folder)
    return None, []


def _serving(
    agents: list[Agent] | None,
    names: list[str],
    settings: Settings,
    start: Start,
    ready: Callable[..., None],
    *,
    whole: bool,
) -> Coroutine[Any, Any, int]:
    """Say who runs and how to put an event in; return what runs them."""
    from choreo import loader
    from choreo.composition.sessions import connector, management
    from choreo.operate.development import nobody, ways_in
    from choreo.runtime.service import serve

    folder = settings.agents_folder
    if not names and not loader.any_agents(folder):
        output.tell(
            f"agents   none: there is no folder {folder} (choreo new NAME makes a project); only the broker runs"
        )
        return nobody(ready)
    if agents is None:
        shown = ", ".join(names or loader.known(folder)) or f"none yet in {folder}"
        output.tell(f"agents   {shown}; in a separate process, which restarts when a file changes")
        group = [*(names or ["--all"]), "--leave-out-broken"]
        return run.supervise([group], settings, start, reload=True, on_ready=ready)
    output.tell(f"agents   {', '.join(agent.name for agent in agents)}; in this process")
    if not names:
        output.note_forgotten(names, settings)
    # Other commands import all agents, and say what is wrong with one; these forms of them import none.
    publish, inspect = ("publish", "inspect") if whole else ("publish --raw", "inspect queues")
    for topic, example in ways_in(agents)[:_SHOWN]:
        output.note(f"publish  choreo {publish} {topic} {shlex.quote(example) if example else '@event.json'}")
    output.note(f"look     choreo {inspect}; choreo dlq list {agents[0].name}")
    return serve(agents, settings, connector, start, ready, management=management(settings))


async def _beside(place: Place, serving: Coroutine[Any, Any, int]) -> int:
    from choreo.operate.development import beside

    return await beside(place.failed, serving)
