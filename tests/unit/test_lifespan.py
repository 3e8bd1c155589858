"""A lifespan that hangs is said, and bounded; everything else about it is the user's own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from choreo.agent import Agent
from choreo.errors import DeadlinePassed, DeclarationError
from choreo.runtime import lifespan


def soon(seconds: float = 0.05) -> float:
    return asyncio.get_running_loop().time() + seconds


@asynccontextmanager
async def never_begins() -> AsyncIterator[None]:
    await asyncio.Event().wait()
    yield


@asynccontextmanager
async def never_ends() -> AsyncIterator[str]:
    yield "resources"
    await asyncio.Event().wait()


@asynccontextmanager
async def times_out(where: str) -> AsyncIterator[None]:
    if where == "before":
        raise TimeoutError("the database")
    yield
    raise TimeoutError("the database")


async def enter(agent: Agent, stopping: asyncio.Event | None = None) -> Any:
    """Enter and leave it at once."""
    async with contextlib.AsyncExitStack() as stack:
        return await lifespan.enter(stack, agent, stopping or asyncio.Event(), soon)


async def test_agent_without_one_has_no_resources() -> None:
    assert await enter(Agent("payment")) is None


async def test_one_that_does_not_begin_is_said_ever_more_rarely_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifespan, "_FIRST_WORD", 0.1)
    monkeypatch.setattr(lifespan, "START_TIMEOUT", 0.5)
    with capture_logs() as logs, pytest.raises(DeadlinePassed, match="agent payment has not begun"):
        await enter(Agent("payment", lifespan=never_begins))
    assert [line["agent"] for line in logs] == ["payment", "payment"], "after 0.1 and 0.3 s"


async def test_one_that_does_not_begin_ends_when_the_worker_is_told_to_stop() -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, stopping.set)
    with pytest.raises(lifespan.StoppedError):
        await enter(Agent("payment", lifespan=never_begins), stopping)


async def test_one_that_does_not_end_is_said_and_cut_off() -> None:
    """The others are left all the same."""
    with capture_logs() as logs:
        assert await enter(Agent("payment", lifespan=never_ends)) == "resources"
    assert [(line["agent"], line["where"]) for line in logs] == [("payment", "at its end")]


@pytest.mark.parametrize("where", ["before", "after"])
async def test_its_own_timeout_is_its_own(where: str) -> None:
    """A TimeoutError of the user's is raised as it is, and not taken for ours."""
    with pytest.raises(TimeoutError, match="the database"):
        await enter(Agent("payment", lifespan=lambda: times_out(where)))


async def bare() -> AsyncIterator[None]:
    yield


async def a_coroutine() -> None: ...


@contextlib.contextmanager
def synchronous() -> Iterator[None]:
    yield


def a_generator() -> Iterator[None]:
    yield


class Resources:
    async def __aenter__(self) -> str:
        return "resources"

    async def __aexit__(self, *_: object) -> None: ...


@pytest.mark.parametrize(
    ("wrong", "why", "way_out"),
    [
        (bare, r"bare \(tests/unit/test_lifespan\.py:\d+\) is an async generator", "@asynccontextmanager"),
        (a_coroutine, "a_coroutine .* is a coroutine function", "@asynccontextmanager"),
        (synchronous, "synchronous .* is not an asynchronous context manager", "@asynccontextmanager"),
        (a_generator, "a_generator .* is not an asynchronous context manager", "@asynccontextmanager"),
        (never_ends(), "has been called already", "without ()"),
        (Resources(), "has been called already", "without ()"),
        (times_out, "times_out .* cannot be called without arguments: missing a required argument", "partial"),
        ("payment", "'payment' is not a function", "@asynccontextmanager"),
        (dict, "dict is not an asynchronous context manager", "@asynccontextmanager"),
    ],
)
def test_one_of_the_wrong_shape_is_refused_at_import(wrong: Any, why: str, way_out: str) -> None:
    """Whatever cannot be entered is refused when the agent is declared, with its line and the way out."""
    with pytest.raises(
        DeclarationError, match=f"agent payment: its lifespan {why}" if why[0] != "h" else why
    ) as caught:
        Agent("payment", lifespan=wrong)
    assert way_out in caught.value.way_out


async def test_whatever_returns_an_asynchronous_context_manager_is_one() -> None:
    """A class, a partial and a lambda will do; a lambda that returns something else is refused when it is called."""
    factories: list[Any] = [Resources, lambda: Resources(), functools.partial(never_ends)]  # noqa: PLW0108
    with capture_logs():
        assert [await enter(Agent("payment", lifespan=each)) for each in factories] == ["resources"] * 3
    wrong: Any = lambda: "nothing"  # noqa: E731
    with pytest.raises(DeclarationError, match="its lifespan returned an object of type str"):
        await enter(Agent("payment", lifespan=wrong))
