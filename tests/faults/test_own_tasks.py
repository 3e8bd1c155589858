"""The worker's own tasks fail under load: nothing is lost, and no process stays that only looks alive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Running
from tests.faults.conftest import Scale
from tests.faults.report import Row
from tests.faults.stream import STEADY, Stream

RATE = 100  # events a second
WITHIN = 30.0  # seconds until events flow again

# While a file named sabotage is there, whatever a task of the worker waits for raises. Which one is left to chance, so
# that those of the client library and of the event loop are among them.
SABOTEUR = """
import asyncio, random
from contextlib import asynccontextmanager
from pathlib import Path

from choreo import Agent

async def sabotage():
    while True:
        await asyncio.sleep(0.1)
        if not Path("sabotage").exists():
            continue
        waiting = [
            found
            for task in asyncio.all_tasks() - {asyncio.current_task()}
            if (found := getattr(task, "_fut_waiter", None)) is not None
            if not isinstance(found, asyncio.Task) and not found.done()
        ]
        if waiting:
            random.choice(waiting).set_exception(RuntimeError("sabotaged"))

@asynccontextmanager
async def lifespan():
    task = asyncio.create_task(sabotage())
    yield
    task.cancel()

agent = Agent("saboteur", lifespan=lifespan)
"""


@pytest.mark.timeout(400)
async def test_own_tasks_that_fail_cost_time_and_nothing_else(
    start_choreo: Callable[..., Running],
    project: Path,
    broker_url: str,
    namespace: str,
    scale: Scale,
    report: Callable[[Row], None],
) -> None:
    """Ten failures a second in each of two processes, again and again; the supervisor starts anew what has ended."""
    stream = Stream(project, start_choreo, broker_url, namespace)
    (project / "agents" / "saboteur.py").write_text(SABOTEUR)
    running = start_choreo("run", "--processes", "2", "desk", "saboteur", env=stream.environment)
    running.wait_for('"state": "consuming"', times=2)
    repetitions, recoveries = scale.of(10, short=1), list[float]()
    async with stream.flowing(RATE):
        for _ in range(repetitions):
            (project / "sabotage").touch()
            await asyncio.sleep(3)
            (project / "sabotage").unlink()
            over = time.monotonic()
            assert await stream.flows(over, within=4 * WITHIN), running.output[-3_000:]
            recoveries.append(max(0.0, time.monotonic() - over - STEADY))
    account = await stream.account()
    ended = sum('"process ended"' in line for line in running.stderr)
    row = Row(
        fault="tasks of the worker itself raise, ten times a second",
        repetitions=repetitions,
        events=account.confirmed,
        lost=account.lost,
        duplicated=account.duplicated,
        worst_recovery=max(recoveries),
        must=f"lost 0, dead only as failed, events flow again within {WITHIN:g} s",
        met=account.lost == 0 and max(recoveries) <= scale.limit(WITHIN) and account.dead.keys() <= {"failed"},
        note=f"{ended} processes ended by themselves and were started again; a failure may also hit a reaction",
    )
    report(row)
    assert row.met, (row, account.dead)
