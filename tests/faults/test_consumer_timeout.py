"""A broker that takes deliveries back while their reactions still run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from choreo.testing.rabbitmq.node import Node
from tests.faults.conftest import Scale
from tests.faults.report import Row
from tests.faults.stream import Stream
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import Running

SECONDS = 1  # that the broker waits
ROUNDS = 3  # times that it takes back what is held
PAUSE = 2.0  # seconds that the neighbour may stand still

# Releases before 4.3 know one timeout for all, and look for it once in a minute unless told otherwise.
BEFORE_43 = (
    f"application:set_env(rabbit, consumer_timeout, {SECONDS * 1000}),"
    " application:set_env(rabbit, channel_tick_interval, 500)."
)

CLERK = """
import os, time

from choreo import Agent
from agents.desk import Asked

agent = Agent("clerk")
file = os.open("clerk", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@agent.on
async def note(asked: Asked) -> None:
    os.write(file, f"{asked.number} {time.monotonic()}\\n".encode())
"""


@pytest.mark.timeout(300)
async def test_reactions_longer_than_the_consumer_timeout_run_once(
    start_choreo: Callable[..., Running],
    project: Path,
    fresh_node: Node,
    namespace: str,
    scale: Scale,
    report: Callable[[Row], None],
) -> None:
    """From 4.3 on the broker is asked to wait; before, one subscription is replaced, and what comes back waits for the
    run that goes on. The session and the agent beside it do not notice."""
    older = tuple(map(int, fresh_node.ctl("version").split(".")[:2])) < (4, 3)
    if older:
        fresh_node.ctl("eval", BEFORE_43)
    else:
        policy = f'{{"consumer-timeout": {SECONDS * 1000}}}'
        fresh_node.ctl("set_policy", "impatient", ".*", policy, "--apply-to", "queues")
    stream = Stream(project, start_choreo, fresh_node.url, namespace)
    (project / "agents" / "clerk.py").write_text(CLERK)
    worker = start_choreo("run", "desk", "clerk", env=stream.environment)
    worker.wait_for('"state": "consuming"')
    repetitions = scale.of(5, short=1)
    for repetition in range(1, repetitions + 1):
        (project / "hold").touch()
        began = time.monotonic()
        async with stream.flowing(20):
            if older:
                await asyncio.to_thread(worker.wait_for, '"event": "consumer timeout"', times=ROUNDS * repetition)
            await eventually(partial(has_passed, began + ROUNDS * SECONDS), what="the timeout")
        (project / "hold").unlink()
        await eventually(lambda: stream.confirmed.keys() <= {number for number, _ in stream.handled}, what="all")
    account = await stream.account()
    times = [float(line.split()[1]) for line in (project / "clerk").read_text().splitlines()]
    pause = max((after - before for before, after in pairwise(sorted(times)) if after - before < 10), default=0.0)
    lost_sessions = worker.output.count('"event": "session lost"')
    report(
        Row(
            fault="consumer timeout shorter than the reactions",
            repetitions=repetitions,
            events=account.confirmed,
            lost=account.lost,
            duplicated=account.duplicated,
            worst_recovery=None,
            must="lost 0, duplicated 0, no session lost",
            met=not (account.lost or account.duplicated or lost_sessions or account.dead),
            note=f"the broker waits {SECONDS} s, the reactions run for {ROUNDS} s or more",
        )
    )
    assert (account.lost, account.duplicated, dict(account.dead)) == (0, 0, {})
    assert lost_sessions == 0
    assert pause < scale.limit(PAUSE)
    if older:
        line = worker.wait_for('"event": "consumer timeout"')
        assert f"consumer timeout of {SECONDS} s" in line
        assert "consumer_timeout in rabbitmq.conf" in line
    else:
        assert '"event": "consumer timeout"' not in worker.output


def has_passed(moment: float) -> bool:
    """Whether it is later than `moment`, on the monotonic clock."""
    return time.monotonic() > moment
