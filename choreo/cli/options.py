"""Options that several commands share, spelt and explained once."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Output(StrEnum):
    """How data is written to stdout."""

    TEXT = "text"
    JSON = "json"
    JSONL = "jsonl"


def _warn_of_password(url: str | None) -> str | None:
    """Say so when a password stands where every user of the machine can read it."""
    login = (url or "").partition("://")[2].rpartition("@")[0]
    if ":" in login:
        typer.echo(
            "choreo: a password in --url can be seen by every user of this machine; CHOREO_URL or CHOREO_PASSWORD_FILE"
            " keeps it to yourself",
            err=True,
        )
    return url


Url = Annotated[
    str | None,
    typer.Option("--url", help="Broker, amqp://user@host:5672/vhost. [env: CHOREO_URL]", callback=_warn_of_password),
]
LogLevel = Annotated[
    str | None,
    typer.Option(
        "--log-level",
        metavar="LEVEL",
        help="debug, info, warning, error or critical. [default: info; env: CHOREO_LOG_LEVEL]",
        show_default=False,
    ),
]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="Data on stdout as a table, JSON or JSON lines.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before destroying anything.")]
