"""Ways to configure structlog, well and badly, and what becomes of deliveries under each. As a program: prints that.

It runs with any structlog that choreo admits, so it is a program of its own, and needs no pytest.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from choreo import Agent, Context, Event, Retry
from choreo.testing import Rehearsal

JSON = structlog.processors.JSONRenderer()


def raising(error: BaseException) -> Callable[..., Any]:
    def raises(*_: Any, **__: Any) -> Any:
        raise error

    return raises


def recursing(*arguments: Any) -> Any:
    return recursing(*arguments)


class Empty:
    """A logger with no method at all."""


class BrokenWrapper(structlog.stdlib.BoundLogger):
    def __init__(self, *_: Any, **__: Any) -> None:
        raise ValueError("no wrapper")


class BrokenContext(dict[str, Any]):
    def update(self, *_: Any, **__: Any) -> None:
        raise ValueError("no context")

    __init__ = copy = update  # type: ignore[assignment]


class BrokenQuestion(structlog.stdlib.BoundLogger):
    def is_enabled_for(self, _: int) -> bool:
        raise ValueError("no answer")


class BrokenHandler(logging.Handler):
    def emit(self, _: logging.LogRecord) -> None:
        raise ValueError("no handler")


def broken_handler() -> Any:
    logger = logging.getLogger("structlog_recipes")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.handlers[:] = [BrokenHandler()]
    return logger


def standard(wrapper: type[Any]) -> dict[str, Any]:
    return {
        "processors": [structlog.stdlib.filter_by_level, structlog.stdlib.add_log_level, JSON],
        "wrapper_class": wrapper,
        "logger_factory": structlog.stdlib.LoggerFactory(),
        "cache_logger_on_first_use": True,
    }


RECIPES: dict[str, Callable[[], dict[str, Any]]] = {
    "structlog's own": dict,
    "the usual one": lambda: standard(structlog.stdlib.BoundLogger),
    "async bound logger": lambda: standard(structlog.stdlib.AsyncBoundLogger),
    "generic bound logger": lambda: standard(structlog.BoundLogger),
    "drops all": lambda: {"processors": [raising(structlog.DropEvent())]},
    "processor raises": lambda: {"processors": [raising(ValueError("no line"))]},
    "processor exits": lambda: {"processors": [raising(SystemExit(3))]},
    "processor cancels": lambda: {"processors": [raising(asyncio.CancelledError())]},
    "processor recurses": lambda: {"processors": [recursing]},
    "processor returns nonsense": lambda: {"processors": [lambda *_: 7]},
    "wrapper raises": lambda: standard(BrokenWrapper),
    "level raises": lambda: standard(BrokenQuestion),
    "factory raises": lambda: {"logger_factory": raising(OSError("no log file"))},
    "handler raises": lambda: standard(structlog.stdlib.BoundLogger) | {"logger_factory": broken_handler},
    "context raises": lambda: {"context_class": BrokenContext},
    "logger without methods": lambda: {"logger_factory": Empty},
}


class Job(Event, topic="recipe.job", external=True):
    kind: str


class Finished(Event, topic="recipe.finished", terminal=True):
    kind: str


class GivenUp(Event, topic="recipe.given-up", terminal=True):
    kind: str


class Shy(Exception):
    """One that cannot be shown."""

    def __str__(self) -> str:
        raise SystemExit("no text")

    __repr__ = __str__


@dataclass(frozen=True)
class Frozen(Exception):
    """One that lets nothing be set on it, neither a cause nor a context."""

    code: int


async def said(line: Any) -> None:
    """Await a line where the logger wants it so."""
    if inspect.isawaitable(line):
        await line


def play() -> dict[str, Any]:
    """Return what became of one event of each kind, and how often its reaction ran."""
    tries: Counter[str] = Counter()

    def give_up(job: Job, error: BaseException) -> GivenUp:
        if job.kind == "frozen":
            raise Frozen(2)
        return GivenUp(kind=job.kind)

    agent = Agent("worker", retry=Retry(on=(OSError, Frozen), attempts=3, immediate=1))

    @agent.on(otherwise=give_up)
    async def work(job: Job, ctx: Context) -> Finished:
        tries[job.kind] += 1
        await said(ctx.log.bind(kind=job.kind).info("begun %s", job.kind))
        await ctx.log.ainfo("waited for")
        match job.kind:
            case "retried" if tries["retried"] < 3:
                raise OSError("again")
            case "given up":
                raise OSError("never")
            case "shy":
                raise Shy
            case "frozen":
                raise Frozen(1)
        return Finished(kind=job.kind)

    async def scenario(rehearsal: Rehearsal) -> list[str]:
        for kind in ("good", "retried", "given up", "shy", "frozen"):
            await rehearsal.publish(Job(kind=kind))
        await rehearsal.settled(within="1h")
        return sorted(str(json.loads(letter.body)["kind"]) for letter in rehearsal.dead_letters)

    dead = Rehearsal(agent).run(scenario)
    return {"tries": dict(tries), "dead": dead}


EXPECTED = {
    "tries": {"good": 1, "retried": 3, "given up": 3, "shy": 1, "frozen": 3},
    "dead": ["frozen", "shy"],
}


@contextmanager
def configured(recipe: str) -> Iterator[None]:
    """Configure structlog as `recipe` says."""
    structlog.configure(**RECIPES[recipe]())
    try:
        yield
    finally:
        structlog.reset_defaults()


if __name__ == "__main__":
    for name in RECIPES:
        with configured(name):
            found = play()
        if found != EXPECTED:
            sys.exit(f"structlog {structlog.__version__}, {name}: {found}")
    print(structlog.__version__)
