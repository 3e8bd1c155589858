"""`choreo run`: start a worker for some agents."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from choreo.cli import options, output, streams
from choreo.cli.options import LogLevel, Url
from choreo.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from choreo.agent import Agent
    from choreo.config.settings import Settings
    from choreo.runtime.starting import Start


def run(  # noqa: PLR0917 - typer makes an option of each
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Agents: a module in the agents folder, an entry point, or package.module:attribute.",
            show_default=False,
        ),
    ] = None,
    everyone: Annotated[bool, typer.Option("--all", help="Run every agent in the agents folder.")] = False,
    concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER", help="Reactions of one agent that run concurrently. [default: 16]", show_default=False
        ),
    ] = None,
    prefetch: Annotated[
        str | None,
        typer.Option(metavar="NUMBER", help="Deliveries that one agent prefetches. [default: 100]", show_default=False),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(
            metavar="NUMBER",
            parser=options.whole("--processes", 1, 1024),
            help="Number of processes that run the same agents, under one supervisor.",
        ),
    ] = 1,
    process_per_agent: Annotated[
        bool,
        typer.Option(
            "--process-per-agent", help="Run each agent in its own processes, so that agents cannot block each other."
        ),
    ] = False,
    apart: Annotated[bool, typer.Option("--apart", hidden=True)] = False,
    drain: Annotated[
        str | None,
        typer.Option(
            help="Time for running reactions to finish after SIGTERM. [default: 30s]",
            metavar="TIME",
            show_default=False,
        ),
    ] = None,
    wait: Annotated[
        str | None,
        typer.Option(help="Time to wait for the broker at start. [default: 5s]", metavar="TIME", show_default=False),
    ] = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="Restart when an agent's file changes (needs watchfiles).")
    ] = False,
    health_port: Annotated[
        str | None,
        typer.Option(metavar="PORT", help="Serve /live and /ready on this port; 0: any free one.", show_default=False),
    ] = None,
    health_host: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="Address for /live and /ready. [default: 127.0.0.1]", show_default=False),
    ] = None,
    leave_out_broken: Annotated[bool, typer.Option("--leave-out-broken", hidden=True)] = False,
    log_level: LogLevel = None,
    url: Url = None,
) -> None:
    """Run agents until SIGTERM or Ctrl-C, then drain and exit.

    The first signal drains: nothing new is taken, what runs is finished, the rest is requeued. A second one ends at
    once. Exit code 0: drained; 75: the time ran out, what was cut off will be delivered again.
    """
    from choreo import loader
    from choreo.observe import logs
    from choreo.runtime.starting import Start

    streams.prints_never_fail()
    start = Start("reading its settings")
    settings = options.settings(
        url=url,
        concurrency=concurrency,
        prefetch=prefetch,
        drain=drain,
        wait=wait,
        health_port=health_port,
        health_host=health_host,
        log_level=log_level,
    )
    logs.configure(settings.log_level, settings.log_format)
    output.note_broker(settings)
    if apart:
        output.note("choreo: --apart is called --process-per-agent now")
        process_per_agent = True
    if reload:
        require_watchfiles()
        for name in names or []:
            loader.require(name, settings.agents_folder)
    start.step(f"importing {', '.join(names or ['all agents'])}")
    start.serve_health(settings)
    # With --reload a file that cannot be imported is for its process to say: the next change may fix it.
    if leave_out_broken:  # the process that `choreo dev --reload` starts
        agents, left_out = find_good(names or [], settings)
        start.notifier.left_out(left_out)
    else:
        agents = (
            find(names or [], settings, everyone=everyone) if not reload or (process_per_agent and everyone) else []
        )
    if processes > 1 or reload or process_per_agent:
        named = names or ([agent.name for agent in agents] if process_per_agent else ["--all"])
        groups = [[each] for each in named] if process_per_agent else [named]
        code = output.wait_for(supervise(groups, settings, start, processes, reload=reload))
    else:
        from choreo.composition.sessions import connector, management
        from choreo.runtime.service import serve

        code = output.wait_for(serve(agents, settings, connector, start, management=management(settings)))
    end(code)


def find(names: list[str], settings: Settings, *, everyone: bool) -> list[Agent]:
    """Return the agents that are named, or all in the agents folder; it is an error to have none."""
    from choreo import loader

    if bool(names) == everyone:
        raise UsageError(
            "name the agents to run, or use --all" if not names else "give either names or --all",
            f"known in {settings.agents_folder}: {', '.join(loader.known(settings.agents_folder)) or 'none'}",
        )
    if everyone:
        everybody = loader.load_all(settings.agents_folder)
        if not everybody:
            raise loader.nobody(settings.agents_folder)
        return everybody
    agents = {name: loader.load(name, settings.agents_folder) for name in names}
    return list({agent.name: agent for agent in agents.values()}.values())


def find_good(names: list[str], settings: Settings) -> tuple[list[Agent], list[str]]:
    """Return those agents that can be imported, and the names of the others; say what is wrong with those.

    It is an error when none can be. For development: whoever serves orders must not miss an agent.
    """
    from choreo import loader
    from choreo.cli import complaints

    agents, left_out = loader.load_good(settings.agents_folder, names)
    if left_out and not agents:
        *others, last = left_out.items()
        same = {name: error for name, error in others if (type(error), str(error)) != (type(last[1]), str(last[1]))}
        complaints.of_left_out(same)
        raise last[1]
    if not agents:
        raise loader.nobody(settings.agents_folder)
    complaints.of_left_out(left_out)
    return agents, list(left_out)


def require_watchfiles() -> None:
    """Raise ConfigurationError where what --reload needs is not installed."""
    if find_spec("watchfiles") is None:
        raise ConfigurationError("--reload needs watchfiles", f"{sys.executable} -m pip install 'watchfiles>=1'")


async def supervise(
    groups: Sequence[Sequence[str]],
    settings: Settings,
    start: Start,
    processes: int = 1,
    *,
    reload: bool,
    on_ready: Callable[[Sequence[str]], None] = lambda _: None,
) -> int:
    """Run `processes` of each group of agents until a signal ends them; return the exit code.

    With `reload` they restart when a file changes. `on_ready` is called once, when all are ready for the first time,
    with the names of those agents that they have left out.
    """
    from choreo.runtime.processes import Supervisor, command

    # The processes read the settings for themselves; what was said on this command line goes by the environment, where
    # a password in a URL is not for everybody to see.
    for name in ("url", "concurrency", "prefetch", "drain", "wait", "log_level", "log_format"):
        value = getattr(settings, name)
        os.environ[f"CHOREO_{name.upper()}"] = str(getattr(value, "get_secret_value", lambda v=value: v)())
    commands = [command(arguments) for arguments in groups for _ in range(processes)]
    watched = (settings.agents_folder,) if reload else ()
    return await Supervisor(commands, settings, start, watched, on_ready).run()


def end(code: int) -> None:
    """End the process, also when a reaction's thread hangs."""
    leave_threads(code)
    raise typer.Exit(code)


def leave_threads(code: int) -> None:
    """End the process at once if a reaction's thread still runs: Python would wait for it, maybe for ever."""
    if any(thread.name.startswith("reaction") for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
