"""`choreo new`: a small project that runs at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from choreo.cli import output


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the project, and of the folder made for it.")],
) -> None:
    """Make a small project in the new folder NAME: an agent, its events, a test. It runs at once with choreo dev.

    Overwrites nothing. Exit code 2 when the name cannot be used or the folder is not empty, 78 when it cannot be
    written.
    """
    from choreo.operate import new_project

    folder = new_project.create(name, Path())
    output.write(str(folder))
    output.note(f"next: cd {folder} && choreo dev")
