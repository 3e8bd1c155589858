"""Log lines on stderr: readable on a terminal, one JSON object per line everywhere else; compact for developing.

structlog and the standard library's loggers go through the same chain, so a library's warning has the shape
of our own lines. Whatever a value is, its line is printed, bounded in length, without a URL's password; and
nothing that goes wrong on the way (stderr closed, a repr() that raises) reaches the code that logs.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import sys
import traceback
from collections.abc import Collection
from datetime import date
from decimal import Decimal
from pathlib import PurePath
from typing import Any, Literal
from uuid import UUID

import structlog
from structlog.typing import EventDict, Processor

from choreo import censor
from choreo.censor import censored
from choreo.errors import ConfigurationError
from choreo.logger import get_logger, guarded, lost
from choreo.observe.compact import Compact
from choreo.printable import visible

Format = Literal["auto", "pretty", "json", "compact"]

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
FORMATS = ("auto", "pretty", "json", "compact")

# The broker session logs its own account of every lost connection and refusal; the client libraries would
# tell each of them again at error, with a traceback. asyncio's debug and info lines speak of selectors.
_QUIETER = {
    "aio_pika": logging.CRITICAL,
    "aiormq": logging.CRITICAL,
    "asyncio": logging.WARNING,
    "watchfiles": logging.WARNING,  # the supervisor says itself what changed
}

# journald cuts lines at 48 KiB and a cut JSON line is not JSON: one text never comes near that.
_TEXT_LIMIT = 8_192
_HEAD = 2_048
_ITEMS = 64
_DEPTH = 4
_INTEGER_BITS = 1_024  # Python refuses to write an integer of more than 4,300 digits in decimal

_OF_DELIVERIES = "of_deliveries"


def configure(level: str = "info", format: Format = "auto") -> None:  # noqa: A002 - named as its setting is
    """Send every log line of this process to stderr. Call it once, at start: a used logger is cached.

    `level` is one of debug, info, warning, error, critical. `format` "auto" is "pretty" on a terminal and
    "json" elsewhere; "compact" is for developing: local time, one short line for each delivery, also for those that
    are handled, unless `level` is above info. Raises ConfigurationError for any other.

    A call below the level costs 30 to 120 ns on a bound logger (`structlog.get_logger().bind(...)`), and
    500 ns on the lazy one that `get_logger()` returns: bind once where every event passes.
    """
    threshold = LEVELS.get(level.lower())
    if threshold is None:
        raise ConfigurationError(f"{level!r} is not a log level", f"use one of: {', '.join(LEVELS)}")
    if format not in FORMATS:
        raise ConfigurationError(f"{format!r} is not a log format", f"use one of: {', '.join(FORMATS)}")

    if format == "auto":
        format = "pretty" if _on_terminal() else "json"  # noqa: A001
    chain = _chain(format)
    structlog.configure(
        processors=[structlog.processors.add_log_level, *chain],
        wrapper_class=_wrapper(threshold, handled=format == "compact" and threshold <= logging.INFO),
        logger_factory=_Stderr,
        cache_logger_on_first_use=True,
    )
    _route_standard_library(threshold, chain)


def of_deliveries() -> structlog.typing.FilteringBoundLogger:
    """Return a logger for what becomes of each delivery: where lines are compact, it shows at info what was handled.

    Bound already, because the lazy logger costs half a microsecond to ask for its level, a bound one a tenth of that.
    """
    try:
        wrapper = structlog.get_config()["wrapper_class"]
        wrapper = getattr(wrapper, _OF_DELIVERIES, wrapper)
        return guarded(structlog.wrap_logger(None, wrapper_class=wrapper).bind())
    except Exception:  # noqa: BLE001 - the program's own configuration; the lazy logger says what is wrong with it
        return get_logger()


def _wrapper(threshold: int, *, handled: bool) -> type[structlog.typing.FilteringBoundLogger]:
    """Return the class of all loggers. It carries that of deliveries' logger: both are one configuration."""
    everybody = structlog.make_filtering_bound_logger(threshold)
    if not handled:
        return everybody
    return type("Logger", (everybody,), {_OF_DELIVERIES: structlog.make_filtering_bound_logger(logging.DEBUG)})


def shown(error: BaseException) -> str:
    """Return the repr of an exception, also of one that has none."""
    try:
        return repr(error)
    except BaseException:  # noqa: BLE001 - an exception's own __repr__ is the user's code too
        return f"<{type(error).__name__}, whose repr fails>"


def _chain(format: Format) -> list[Processor]:  # noqa: A002
    compact = format == "compact"
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if compact else "iso", utc=not compact),
        _traceback_as_text,
        _printable,
    ]
    if format == "json":
        return [*shared, _as_json]
    colors = _on_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    if compact:
        return [*shared, _visible, Compact(colours=colors, width=_columns)]
    return [
        *shared,
        _visible,
        structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback),
    ]


def _columns() -> int | None:
    """Return how wide the terminal is, None where stderr is none."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or None
    except (AttributeError, OSError, ValueError):
        return None


def _on_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # None when the process was started without a stderr; closed since
        return False


def _route_standard_library(threshold: int, chain: list[Processor]) -> None:
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Route)]:
        root.removeHandler(handler)
    root.addHandler(_Route(chain))
    root.setLevel(threshold)
    for name, least in _QUIETER.items():
        logging.getLogger(name).setLevel(max(least, threshold))
    logging.captureWarnings(capture=True)


class _Stderr:
    """The end of the chain: one write per line, to what is stderr then (tests and daemons replace it)."""

    def __init__(self, *_name: object) -> None:
        pass

    def msg(self, line: str) -> None:
        try:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001 - closed, full, never there, or what the program has put in its place
            return  # nobody is left to tell, and the work must go on

    debug = info = warning = error = critical = msg


class _Route(logging.Handler):
    """Passes a record of the standard library's logging on to our chain."""

    def __init__(self, chain: list[Processor]) -> None:
        super().__init__()
        self._chain = chain
        self._out = _Stderr()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._pass_on(record)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - it must not reach the code that logs
            lost(error)

    def _pass_on(self, record: logging.LogRecord) -> None:
        try:
            event = record.getMessage()
        except Exception:  # noqa: BLE001 - arguments that do not fit the format string: show both
            event = f"{_plain(record.msg)} {_plain(record.args)}"
        level = record.levelname.lower()
        line: Any = {"event": event, "level": level, "logger": record.name, "exc_info": record.exc_info}
        for step in self._chain:
            line = step(None, level, line)
        self._out.msg(line)


def _traceback_as_text(_logger: object, _method: str, line: EventDict) -> EventDict:
    given = line.pop("exc_info", None)
    if given is True:
        given = sys.exception()
    elif isinstance(given, tuple):
        given = given[1]
    if isinstance(given, BaseException):
        try:
            line["exception"] = "".join(traceback.format_exception(given)).rstrip()
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - a __cause__ or __notes__ of the user's that raises when read
            line["exception"] = type(given).__name__
    return line


def _printable(_logger: object, _method: str, line: EventDict) -> EventDict:
    first = {key: line.pop(key, "") for key in ("event", "level", "timestamp")}
    return {_text(str(key)): _plain(value) for key, value in (first | dict(line)).items()}


def _plain(value: object, depth: int = _DEPTH) -> object:
    """Return what JSON can say of `value`. pydantic's secrets come out as the stars that their repr() is."""
    try:
        if isinstance(value, dict | list | tuple | set | frozenset) and depth:
            return _contents(value, depth - 1)
        return _scalar(value)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - repr() is the user's code, and a log line must not fail for it
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


def _contents(value: dict[Any, Any] | Collection[Any], depth: int) -> object:
    left_out = len(value) - _ITEMS
    some = list(itertools.islice(value, _ITEMS))
    if isinstance(value, dict):
        shown = {_text(str(key)): _plain(value[key], depth) for key in some}
        return shown | {"...": f"and {left_out} more"} if left_out > 0 else shown
    listed = [_plain(item, depth) for item in some]
    return [*listed, f"and {left_out} more"] if left_out > 0 else listed


def _scalar(value: object) -> object:
    match value:
        case None | bool():
            return value
        case str():
            return _text(value)
        case int() if value.bit_length() < _INTEGER_BITS:
            return value
        case float() if math.isfinite(value):  # JSON has neither NaN nor Infinity
            return value
        case date() | UUID() | Decimal() | PurePath():
            return _text(str(value))
        case _:
            return _text(repr(value))


def _text(value: str) -> str:
    if len(value) <= _TEXT_LIMIT:
        return censored(value)
    # A traceback says most at its end, and where it began at its start.
    head, tail = value[:_HEAD], value[_HEAD - _TEXT_LIMIT :]
    head, tail = censor.ended(head), censor.begun(tail)
    return f"{censored(head)} [{len(value) - len(head) - len(tail)} characters left out] {censored(tail)}"


def _visible(_logger: object, _method: str, line: EventDict) -> EventDict:
    for key, value in line.items():
        if isinstance(value, str):
            # Tab and newline are kept: the renderer quotes a value that has one, and a traceback is made of them.
            line[key] = visible(value)
    line["event"] = str(line["event"]).replace("\n", "\\n")
    return line


def _as_json(_logger: object, _method: str, line: EventDict) -> str:
    return json.dumps(line)
