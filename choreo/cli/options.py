"""Options that several commands share, spelt and explained once."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from choreo.errors import UsageError
from choreo.printable import visible

if TYPE_CHECKING:
    from choreo.config.settings import Settings

Choice = TypeVar("Choice", bound=StrEnum)
Number = TypeVar("Number", int, float)


class Output(StrEnum):
    """How data is written to stdout."""

    TEXT = "text"
    JSON = "json"
    JSONL = "jsonl"


def settings(**options: Any) -> Settings:
    """Return the settings, `options` of the command line among them; say which variables seem to be misspelt."""
    from choreo.config.settings import from_command_line

    found = from_command_line(**options)
    for doubt in found.doubts:
        typer.echo(visible(f"choreo: {doubt}"), err=True)
    return found


def not_allowed(option: str, value: object, allowed: str) -> UsageError:
    """Return the error for a value that an option cannot have, in the words of the settings' own."""
    return UsageError(f"{option} {value!r:.80} is not allowed", f"allowed: {allowed}")


def whole(option: str, least: int, most: int | None = None) -> Callable[[Any], int]:
    """Return what reads a whole number. Typer's own would say neither the value nor both ends of the range."""
    return _number(option, int, "a whole number", least, most)


def decimal(option: str, least: float, most: float | None = None) -> Callable[[Any], float]:
    """Return what reads a number."""
    return _number(option, float, "a number", least, most)


def _number(
    option: str, kind: Callable[[Any], Number], name: str, least: Number, most: Number | None
) -> Callable[[Any], Number]:
    allowed = f"{name} from {least:g} to {most}" if most is not None else f"{name}, at least {least:g}"

    def read(written: Any) -> Number:
        try:
            value = kind(written)
        except ValueError:
            raise not_allowed(option, written, allowed) from None
        if not least <= value <= (float("inf") if most is None else most):
            raise not_allowed(option, written, allowed)
        return value

    return read


def one_of(option: str, kind: type[Choice]) -> Callable[[Any], Choice]:
    """Return what reads one of the words of an enumeration."""

    def read(written: Any) -> Choice:
        if written not in list(kind):
            raise not_allowed(option, written, alternatives(kind))
        return kind(written)

    return read


def alternatives(kind: type[StrEnum]) -> str:
    """Return the words of an enumeration as a sentence has them."""
    *others, last = kind
    return f"{', '.join(others)} or {last}"


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
    typer.Option(
        "--url",
        metavar="URL",
        help="Broker, amqp://user@host:5672/vhost. [env: CHOREO_URL]",
        callback=_warn_of_password,
    ),
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
OutputOption = Annotated[
    Output,
    typer.Option(
        "--output",
        "-o",
        metavar="text|json|jsonl",
        parser=one_of("--output", Output),
        help="Data on stdout as text, JSON or JSON lines.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
