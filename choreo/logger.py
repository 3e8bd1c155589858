"""Loggers that never raise: what watches has no say in what becomes of a delivery.

Lines go where structlog is configured to send them. On the way stands code of the user's: processors, wrapper classes,
handlers, a `__repr__`. What that raises costs the line and nothing else, and is said once on stderr.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import traceback
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any, Final, cast

import structlog
from structlog.stdlib import AsyncBoundLogger
from structlog.typing import FilteringBoundLogger

_SYNC: Final = ("debug", "info", "warning", "warn", "error", "critical", "fatal", "exception", "msg", "log")
_LINES: Final = frozenset((*_SYNC, *(f"a{name}" for name in _SYNC)))
_BINDING: Final = frozenset(("bind", "unbind", "try_unbind", "new"))

_FILTER: Final = structlog.make_filtering_bound_logger(0).__module__
_MOST_SAID: Final = 16

_said: set[str] = set()  # in this process: nobody needs to read it for every line


def get_logger(*name: str) -> FilteringBoundLogger:
    """Return structlog's logger as choreo uses it: it never raises, and it follows a later configuration."""
    return guarded(_Latest(name))


def guarded(logger: Any, *, awaited: bool = False) -> FilteringBoundLogger:
    """Return `logger`, of structlog's, as one that never raises, nor do those that are bound from it.

    `awaited`: whoever logs awaits the lines of a logger that wants it so; else they are logged at once.
    """
    return cast("FilteringBoundLogger", _Guarded(logger, awaited=awaited))


class _Latest:
    """The logger of the present configuration, also after one that keeps the first that it has made."""

    __slots__ = ("_name",)

    def __init__(self, name: tuple[str, ...]) -> None:
        self._name = name

    def bind(self, **values: Any) -> Any:
        return structlog.get_logger(*self._name).bind(**values)


class _Guarded:
    """Whatever of `logger` is called, an exception gets no further than here; KeyboardInterrupt, a person's, does."""

    __slots__ = ("_awaited", "_logger", "is_enabled_for")

    def __init__(self, logger: Any, *, awaited: bool) -> None:
        self._logger = logger
        self._awaited = awaited
        # Asked for each delivery: structlog's own filter compares two numbers, and needs no guard [50 ns, else 220].
        own = getattr(type(logger), "is_enabled_for", None)
        asked = logger.is_enabled_for if getattr(own, "__module__", "") == _FILTER else _asking(logger)
        self.is_enabled_for: Callable[[int], bool] = asked

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            logger = self._logger if self._awaited or name in _BINDING else _at_once(self._logger)
            found = getattr(logger, name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if name not in _LINES and name not in _BINDING:
                raise
            lost(error)
            return partial(self._instead, name)
        return partial(self._call, name, found) if callable(found) else found

    def _instead(self, name: str, /, *_: Any, **__: Any) -> Any:
        return self if name in _BINDING else _NOTHING

    def _call(self, name: str, method: Callable[..., Any], /, *args: Any, **values: Any) -> Any:
        try:
            result = method(*args, **values)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - see above
            lost(error)
            return self if name in _BINDING else _NOTHING
        if name in _BINDING:
            return _Guarded(result, awaited=self._awaited)
        return _waited_for(result) if inspect.isawaitable(result) else result


class _Nothing:
    """Stands for a line that is lost, also where somebody awaits it."""

    def __await__(self) -> Generator[Any, None, None]:
        yield from ()


_NOTHING: Final = _Nothing()


def _asking(logger: Any) -> Callable[[int], bool]:
    """Return what says whether lines of a level are written, as far as `logger` knows."""
    question: Callable[[int], bool] | None = None

    def ask(level: int) -> bool:
        nonlocal question
        try:
            if question is None:
                question = _question(logger)
            return question(level)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - see above
            lost(error)
            return True

    return ask


def _question(logger: Any) -> Callable[[int], bool]:
    """Return what says whether a level is logged. structlog's classes have it by two names, or not at all.

    Some answer to every name, and would log the question: only what the class declares is asked.
    """
    bound = _at_once(logger)
    for name in ("is_enabled_for", "isEnabledFor"):
        if callable(getattr(type(bound), name, None)):
            question: Callable[[int], bool] = getattr(bound, name)
            return question
    return lambda _: True


async def _waited_for(line: Awaitable[Any]) -> Any:
    try:
        return await line
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise  # whoever waits here is cancelled, which is none of the logger's doing
        lost(error)


def _at_once(logger: Any) -> Any:
    """Return what logs now, also of structlog's AsyncBoundLogger."""
    bound = logger.bind()
    return bound.sync_bl if isinstance(bound, AsyncBoundLogger) else bound


def lost(error: BaseException) -> None:
    """Say on stderr that lines are lost, and to what; its text is left out, since it may hold what nobody may see."""
    try:
        kind = type(error).__name__
        if kind in _said or len(_said) >= _MOST_SAID:
            return
        _said.add(kind)
        last = traceback.extract_tb(error.__traceback__)[-1]
        sys.stderr.write(
            f"choreo: a log line is lost, and so may others be: the logger raised {kind} at"
            f" {last.filename}:{last.lineno}; the work goes on; look at what is given to structlog.configure\n"
        )
        sys.stderr.flush()
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - closed, full, or never there; or no stack is left to say it on
        return
