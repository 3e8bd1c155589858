"""`choreo check`: what is wrong with the choreography, from the agents' signatures alone."""

from __future__ import annotations

import dataclasses

import typer

from choreo.cli import options
from choreo.cli.graph import Names, declared
from choreo.cli.options import Output, OutputOption
from choreo.cli.output import keep_data_apart, note_forgotten, write, write_json


def check(names: Names = None, output: OutputOption = Output.TEXT) -> None:
    """Find unbounded event cycles, events that no agent takes, and events that no agent emits. Needs no broker.

    A cycle through a program that is not an agent is not found, because check does not know what that program sends.
    Let such a program copy the headers of the event it answers; then max_hops bounds the cycle.

    Exit code 1 if there are findings.
    """
    from choreo.observe import logs

    keep_data_apart()
    settings = options.settings()
    logs.configure(settings.log_level, settings.log_format)
    choreography = declared(names or (), settings)
    note_forgotten(names, settings)
    findings = [dataclasses.asdict(finding) for finding in choreography.findings()]
    if output is Output.JSON:
        write_json({"findings": findings})
    elif output is Output.JSONL:
        for finding in findings:
            write_json(finding)
    else:
        for finding in findings:
            write("{severity} {rule}: {message}\n  at {where}\n  {hint}".format_map(finding))
        if not findings:
            agents, events = len(choreography.agents), len(choreography.events)
            write(f"no findings: {_count(agents, 'agent')}, {_count(events, 'event')}")
    if findings:
        raise typer.Exit(1)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
