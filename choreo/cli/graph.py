"""`choreo graph`: who emits and who takes what, from the agents' signatures alone."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from choreo.cli import complaints, options, output

if TYPE_CHECKING:
    from choreo.config.settings import Settings
    from choreo.graph.choreography import Choreography

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME", help="Agents to include; all by default."),
]


class Format(StrEnum):
    """How the choreography is drawn."""

    TEXT = "text"
    MERMAID = "mermaid"
    JSON = "json"


def graph(
    names: Names = None,
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            "-f",
            metavar="text|mermaid|json",
            parser=options.one_of("--format", Format),
            help="Text, a Mermaid flowchart, or JSON.",
        ),
    ] = Format.TEXT,
) -> None:
    """Draw the choreography: events, retries, dead-letter queues, compensations. Needs no broker."""
    from choreo.graph import render
    from choreo.observe import logs

    output.keep_data_apart()
    settings = options.settings()
    logs.configure(settings.log_level, settings.log_format)
    choreography = declared(names or (), settings, whole=False)
    match form:
        case Format.TEXT:
            output.write(render.as_text(choreography, settings.namespace), nl=False)
        case Format.MERMAID:
            output.write(render.as_mermaid(choreography), nl=False)
        case Format.JSON:
            output.write_json(render.as_json(choreography, settings.namespace))


def declared(names: Sequence[str], settings: Settings, *, whole: bool = True) -> Choreography:
    """Return the choreography of the named agents, or of all there are; it is an error to have none.

    Unless it shall be whole, installed agents that are broken are left out, and that is said.
    """
    from choreo import loader
    from choreo.graph.choreography import Choreography

    folder = settings.agents_folder
    if names:
        agents = [loader.load(name, folder) for name in names]
    elif whole:
        agents = loader.load_all(folder)
    else:
        agents, left_out = loader.load_sound(folder)
        complaints.of_left_out(left_out)
    if not agents:
        raise loader.nobody(folder)
    return Choreography.of(agents)
