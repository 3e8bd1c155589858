"""One delivery is held for long while very many others are settled beside it."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Running
from tests.faults.conftest import Scale
from tests.faults.report import Row
from tests.faults.stream import Stream
from tests.waiting import eventually

CHUNK = 1_000  # publishes at once

# Event 0 is held for as long as a file named held is there. Whenever an event's number is a multiple of 500, what is
# kept of settled deliveries in this process is written down.
DESK = """
import asyncio, gc, os, time
from pathlib import Path

from choreo import Agent, Event
from choreo.rabbit.settlements import Settlements

class Asked(Event, topic="NS.asked", external=True):
    number: int

agent = Agent("desk", timeout="10m")
file = os.open("desk", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
kept = os.open("kept", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@agent.on
async def answer(asked: Asked) -> None:
    while asked.number == 0 and Path("held").exists():
        await asyncio.sleep(0.01)
    if asked.number % 500 == 0:
        found = sum(len(each) for each in gc.get_objects() if isinstance(each, Settlements))
        os.write(kept, f"{found}\\n".encode())
    os.write(file, f"{asked.number} {time.monotonic()}\\n".encode())
"""


@pytest.mark.timeout(600)
async def test_what_is_settled_beside_a_delivery_that_is_held_is_not_kept(
    start_choreo: Callable[..., Running],
    project: Path,
    broker_url: str,
    namespace: str,
    scale: Scale,
    report: Callable[[Row], None],
) -> None:
    """What the worker keeps of settled deliveries is bounded by its prefetch; each event is handled once."""
    stream, prefetch = Stream(project, start_choreo, broker_url, namespace), 100
    (project / "agents" / "desk.py").write_text(DESK.replace("NS", namespace))
    (project / "held").touch()
    running = stream.start(CHOREO_PREFETCH=str(prefetch))
    events = scale.of(100_000, short=5_000)
    for _ in range(events // CHUNK):
        await stream.publish(CHUNK)
    await eventually(lambda: len(stream.handled) == events - 1, within=300, what="all but the one that is held")
    released = time.monotonic()
    (project / "held").unlink()
    await eventually(lambda: len(stream.handled) == events, what="the one that was held")
    recovery = time.monotonic() - released
    account = await stream.account()
    most = max(json.loads(line) for line in (project / "kept").read_text().splitlines())
    row = Row(
        fault="a delivery is held while all others are settled",
        repetitions=1,
        events=account.confirmed,
        lost=account.lost,
        duplicated=account.duplicated,
        worst_recovery=recovery,
        must=f"lost 0, duplicated 0, no more is kept of what is settled than the prefetch of {prefetch}",
        met=account.lost == account.duplicated == 0 and most <= prefetch,
        note=f"at most {most} entries were kept",
    )
    report(row)
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    assert row.met, row
