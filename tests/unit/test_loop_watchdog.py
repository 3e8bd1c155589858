"""What is said of an event loop that stands still, and when the process ends for it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from structlog.testing import capture_logs

from choreo.agent import Agent
from choreo.event import Event
from choreo.reaction import Reaction
from choreo.runtime import loop_watchdog
from choreo.runtime.calling import call
from tests.waiting import eventually

linux = pytest.mark.skipif(sys.platform != "linux", reason="only there a thread knows how often it asked for the lock")

BLOCKED, AGAIN = "event loop blocked", "event loop turns again"


class Placed(Event, topic="test-stall.placed"):
    pass


class Paid(Event, topic="test-stall.paid"):
    pass


class Kept(Event, topic="test-stall.kept"):
    pass


class Locked(Event, topic="test-stall.locked"):
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
    with capture_logs() as logs, loop_watchdog.watch(lambda: 1.0, end=never, noticed=1.0):
        for _ in range(60):
            await asyncio.sleep(0.02)
    assert logs == []


async def test_blocked_loop_is_said_with_its_stack_and_again_when_the_time_doubles() -> None:
    """Once at the start, once per doubling, and once with the total when it turns again."""
    with capture_logs() as logs, loop_watchdog.watch(lambda: 60, end=never, noticed=0.1):
        block(1.0)
        await eventually(lambda: said(logs, AGAIN))
    blocked = said(logs, BLOCKED)
    assert 3 <= len(blocked) <= 4, "0.1, 0.2, 0.4, 0.8"
    assert blocked[0]["where"].startswith("tests/unit/test_loop_watchdog.py:")
    assert blocked[0]["where"].endswith(" block")
    assert blocked[0]["stack"].endswith(blocked[0]["where"])
    assert not any("stack" in each for each in blocked[1:]), "once, as long as it is the same"
    assert blocked[0]["task"].startswith("Task-")
    assert said(logs, AGAIN)[0]["seconds"] == pytest.approx(1.0, abs=0.5)
    assert logs[-1]["event"] == AGAIN


@pytest.mark.parametrize("reaction", agent.reactions[:2], ids=lambda reaction: reaction.name)
async def test_reaction_that_blocks_is_named(reaction: Reaction) -> None:
    """Agent, reaction and the place of work; a reaction that others call too is found by its call, not by its name."""
    with capture_logs() as logs, loop_watchdog.watch(lambda: 60, end=never, noticed=0.1):
        await asyncio.create_task(call(reaction, reaction.function, (Placed(),), None), name="staller-3")
    blocked = said(logs, BLOCKED)[0]
    assert (blocked["agent"], blocked["reaction"], blocked["task"]) == ("staller", reaction.name, "staller-3")
    assert blocked["stack"].startswith("tests/unit/test_loop_watchdog.py:"), "it begins with the user's code"
    assert blocked["where"].endswith(" compute")


async def test_loop_that_stands_still_too_long_ends_the_process() -> None:
    """It says why first."""
    ended: list[int] = []
    with capture_logs() as logs, loop_watchdog.watch(lambda: 0.3, end=ended.append, noticed=0.1):
        block(0.8)
    assert set(ended) == {loop_watchdog.STALLED}
    assert said(logs, "event loop blocked beyond every deadline")


async def test_limit_is_that_of_what_runs_now() -> None:
    """A lifespan may take its time, a reaction may not; which of the two runs changes."""
    ended: list[int] = []
    limits = iter([60.0] * 3)
    with capture_logs(), loop_watchdog.watch(lambda: next(limits, 0.2), end=ended.append, noticed=0.1):
        block(0.8)
    assert ended


def keep_the_lock(seconds: float) -> None:
    """Stand still as a call into C does that does not give Python's global lock back: no thread runs."""
    ctypes.PyDLL(None).usleep(int(seconds * 1_000_000))


@agent.on
def compute_in_c(kept: Kept) -> None:
    keep_the_lock(0.8)


@agent.on
async def compute_in_c_on_the_loop(locked: Locked) -> None:
    keep_the_lock(0.8)


@linux
@pytest.mark.parametrize("name", ["compute_in_c", "compute_in_c_on_the_loop"])
async def test_reaction_that_keeps_the_lock_of_python_is_named_afterwards(name: str) -> None:
    """Also one that runs in a thread, where it holds up the loop all the same; and it is not ended for what is over."""
    (reaction,) = (each for each in agent.reactions if each.name == name)
    with capture_logs() as logs, loop_watchdog.watch(lambda: 0.4, end=never, noticed=0.2) as watch:
        with ThreadPoolExecutor(1) as pool:
            await call(reaction, reaction.function, (Placed(),), pool if reaction.in_thread else None)
        found = await watch.standstill()
        await eventually(lambda: said(logs, BLOCKED))
    line = said(logs, BLOCKED)[0]
    assert (line["agent"], line["reaction"]) == ("staller", name)
    assert "global lock" in line["why"]
    assert 0.6 < line["seconds"] < 10
    assert found is not None
    assert found.reaction is reaction
    assert found.seconds >= 0.6


@linux
async def test_thread_that_waits_is_not_blamed_for_a_process_that_was_stopped() -> None:
    """A SIGSTOP while a `def` reaction waits for its database: nobody is named, and nothing is said of a lock."""
    resume = "import os, signal, sys, time; os.kill(int(sys.argv[1]), signal.SIGSTOP); time.sleep(0.8);"
    resume += "os.kill(int(sys.argv[1]), signal.SIGCONT)"
    (reaction,) = (each for each in agent.reactions if each.name == "compute_in_c")
    release = threading.Event()
    with (
        capture_logs() as logs,
        loop_watchdog.watch(lambda: 60, end=never, noticed=0.2) as watch,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = asyncio.ensure_future(call(reaction, lambda _: release.wait(), (Placed(),), pool))
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", resume, str(os.getpid()))
        await process.wait()
        found = await watch.standstill()
        release.set()
        await waiting
    assert not [line for line in said(logs, BLOCKED) if "why" in line]
    assert found is not None
    assert found.reaction is None


async def test_process_that_was_stopped_as_a_whole_is_not_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a suspended machine or a SIGSTOP the clock has jumped, and the loop gets the time to turn."""
    jump = 0.0
    clock: Callable[[], float] = time.monotonic
    monkeypatch.setattr("choreo.runtime.loop_watchdog.time.monotonic", lambda: clock() + jump)
    with loop_watchdog.watch(lambda: 0.5, end=never, noticed=0.2):
        jump = 3600.0
        block(0.2)  # the thread looks before the loop turns
        await asyncio.sleep(0.1)


async def test_thread_ends_with_the_watch() -> None:
    with loop_watchdog.watch(lambda: 1):
        assert "stall" in [thread.name for thread in threading.enumerate()]
    await eventually(lambda: "stall" not in [thread.name for thread in threading.enumerate()])


async def test_a_watch_that_fails_ends_the_process_as_a_blocked_loop_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else would see the loop stand still."""
    ends = list[int]()
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    def broken() -> float:
        raise RuntimeError("no answer")

    with capture_logs() as logs, loop_watchdog.watch(broken, end=ends.append, noticed=0.02):
        block(0.5)
        await eventually(lambda: ends)
    assert ends == [loop_watchdog.STALLED]
    assert said(logs, "the watch over the event loop has failed")
