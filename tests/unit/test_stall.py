"""What is said of an event loop that stands still, and when the process ends for it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from choreo.agent import Agent
from choreo.event import Event
from choreo.reaction import Reaction
from choreo.runtime import stall
from choreo.runtime.calling import call
from tests.waiting import eventually

BLOCKED, AGAIN = "event loop blocked", "event loop turns again"


class Placed(Event, topic="test-stall.placed"):
    pass


class Paid(Event, topic="test-stall.paid"):
    pass


agent = Agent("staller")


@agent.on
async def compute(placed: Placed) -> None:
    time.sleep(0.5)  # noqa: ASYNC251 - what this is about


@agent.on
async def compute_later(paid: Paid) -> None:
    await asyncio.sleep(0)
    await compute(Placed())


def never(code: int) -> None:
    """Fails the test: pytest makes a warning of it, and an error of that."""
    raise AssertionError(code)


def block(seconds: float) -> None:
    """Stands still as a computation does: other threads run meanwhile."""
    time.sleep(seconds)


def said(logs: list[Any], event: str) -> list[Any]:
    return [line for line in logs if line["event"] == event]


async def test_loop_that_turns_is_not_spoken_of() -> None:
    with capture_logs() as logs, stall.watch(1.0, armed=lambda: True, end=never, noticed=1.0):
        for _ in range(60):
            await asyncio.sleep(0.02)
    assert logs == []


async def test_blocked_loop_is_said_with_its_stack_and_again_when_the_time_doubles() -> None:
    """Once at the start, once per doubling, and once with the total when it turns again."""
    with capture_logs() as logs, stall.watch(60, armed=lambda: True, end=never, noticed=0.1):
        block(1.0)
        await eventually(lambda: said(logs, AGAIN))
    blocked = said(logs, BLOCKED)
    assert 3 <= len(blocked) <= 4, "0.1, 0.2, 0.4, 0.8"
    assert "block" in blocked[0]["stack"]
    assert "test_stall.py" in blocked[0]["stack"]
    assert blocked[0]["task"].startswith("Task-")
    assert said(logs, AGAIN)[0]["seconds"] == pytest.approx(1.0, abs=0.5)
    assert logs[-1]["event"] == AGAIN


@pytest.mark.parametrize("reaction", agent.reactions, ids=lambda reaction: reaction.name)
async def test_reaction_that_blocks_is_named(reaction: Reaction) -> None:
    """Agent, reaction and the place of work; a reaction that others call too is found by its call, not by its name."""
    with capture_logs() as logs, stall.watch(60, armed=lambda: True, end=never, noticed=0.1):
        await asyncio.create_task(call(reaction, reaction.function, (Placed(),), None), name="staller-3")
    blocked = said(logs, BLOCKED)[0]
    assert (blocked["agent"], blocked["reaction"], blocked["task"]) == ("staller", reaction.name, "staller-3")


@pytest.mark.parametrize("armed", [True, False])
async def test_loop_that_stands_still_too_long_ends_the_process(armed: bool) -> None:
    """It says why first. Not while the worker starts: a lifespan may take its time."""
    ended: list[int] = []
    with capture_logs() as logs, stall.watch(0.3, armed=lambda: armed, end=ended.append, noticed=0.1):
        block(0.8)
    assert set(ended) == ({stall.STALLED} if armed else set())
    assert bool(said(logs, "event loop blocked beyond every deadline")) == armed


async def test_process_that_was_stopped_as_a_whole_is_not_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a suspended machine or a SIGSTOP the clock has jumped, and the loop gets the time to turn."""
    jump = 0.0
    clock: Callable[[], float] = time.monotonic
    monkeypatch.setattr("choreo.runtime.stall.time.monotonic", lambda: clock() + jump)
    with stall.watch(0.5, armed=lambda: True, end=never, noticed=0.2):
        jump = 3600.0
        block(0.2)  # the thread looks before the loop turns
        await asyncio.sleep(0.1)


async def test_thread_ends_with_the_watch() -> None:
    with stall.watch(1, armed=lambda: True):
        assert "stall" in [thread.name for thread in threading.enumerate()]
    await eventually(lambda: "stall" not in [thread.name for thread in threading.enumerate()])
