"""Queues that go, and queues that are full, under the agents that need them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import aio_pika
import pytest

from choreo.rabbit.node import Node
from tests.faults.conftest import Scale
from tests.faults.report import Row
from tests.faults.stream import Stream
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import Running

HELD = 20  # events in a queue that is deleted
LONGEST_PAUSE = 5.0  # seconds until an agent whose queue was deleted consumes again
ROOM = 10  # dead letters that fit


@pytest.mark.timeout(1200)
async def test_deleted_queue_is_consumed_again(
    start_choreo: Callable[..., Running],
    project: Path,
    broker_url: str,
    namespace: str,
    scale: Scale,
    report: Callable[[Row], None],
) -> None:
    """The worker says which queue went and that what it held is gone, declares it anew and goes on."""
    stream = Stream(project, start_choreo, broker_url, namespace)
    worker = stream.start(CHOREO_PREFETCH="1")
    queue = stream.names.queue("desk")
    repetitions, pauses = scale.of(20, short=2), list[float]()
    longest = scale.limit(LONGEST_PAUSE)
    async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
        for repetition in range(repetitions):
            (project / "hold").touch()
            await stream.publish(HELD)
            await channel.queue_delete(queue)
            began = time.monotonic()
            (project / "hold").unlink()
            async with stream.flowing(50):
                await eventually(partial(flowing_since, stream, began), within=30, what="a handled event")
            pauses.append(max(stream.confirmed.values()) - began)
            lines = await asyncio.to_thread(worker.wait_for, '"event": "session lost"', times=repetition + 1)
            assert queue in lines
            assert "what it held is gone" in lines
            await asyncio.to_thread(worker.wait_for, '"event": "queue gone"', times=repetition + 1)
    account = await stream.account()
    report(
        Row(
            fault="queue deleted under its consumer",
            repetitions=repetitions,
            events=account.confirmed,
            lost=account.lost,
            duplicated=account.duplicated,
            worst_recovery=max(pauses),
            must=f"consuming again <= {longest:.0f} s, the loss logged",
            met=max(pauses) <= longest,
            note=f"{HELD} events were in the queue each time; they are lost with it, and each time the worker says so",
        )
    )
    assert max(pauses) <= longest
    assert account.lost <= HELD * repetitions, "what was published to the new queue is not lost"
    assert worker.process.poll() is None


def flowing_since(stream: Stream, began: float) -> bool:
    """Whether an event was handled that was confirmed after `began`."""
    return any(stream.confirmed.get(number, 0.0) > began for number, _ in stream.handled)


async def has_or_holds(stream: Stream, queue: str, count: int, worker: Running) -> bool:
    """Whether `count` messages are in the queue, or the worker holds one that it has no room for."""
    return await stream.ready(queue) >= count or '"event": "held"' in worker.output


@pytest.mark.timeout(300)
async def test_full_dead_letter_queue_holds_deliveries(
    start_choreo: Callable[..., Running],
    project: Path,
    node: Node,
    namespace: str,
    scale: Scale,
    report: Callable[[Row], None],
) -> None:
    """What cannot be buried stays with the worker, which says so, until there is room again."""
    stream = Stream(project, start_choreo, node.url, namespace)
    count = scale.of(1_000, short=40)
    worker = stream.start()
    dlq = stream.names.dlq("desk")
    definition = f'{{"max-length": {ROOM}, "overflow": "reject-publish"}}'
    await asyncio.to_thread(
        node.ctl, "set_policy", namespace, f"^{dlq}$".replace(".", r"\."), definition, "--apply-to", "queues"
    )
    (project / "fail").touch()
    # Whoever fills a quorum queue is told so a moment later, and what it wrote until then is taken all the same.
    for filled in range(ROOM, 3 * ROOM, ROOM):
        await stream.publish(ROOM)
        await eventually(partial(has_or_holds, stream, dlq, filled, worker), what="dead letters")
    await stream.publish(count - filled)
    line = await asyncio.to_thread(worker.wait_for, '"event": "held"')
    assert '"level": "error"' in line
    assert await stream.ready(dlq) < count
    began = time.monotonic()
    await asyncio.to_thread(node.ctl, "clear_policy", namespace)

    async def buried() -> bool:
        return await stream.ready(dlq) >= count

    await eventually(buried, within=60, what="all dead letters")
    recovery = time.monotonic() - began
    (project / "fail").unlink()
    await stream.publish(1)
    account = await stream.account()
    report(
        Row(
            fault="dead-letter queue full",
            repetitions=1,
            events=account.confirmed,
            lost=account.lost,
            duplicated=account.duplicated,
            worst_recovery=recovery,
            must="lost 0, deliveries held, an error logged",
            met=account.lost == 0 and account.dead == {"failed": count},
            note="what cannot be buried is held by the worker and tried again at most every 15 s",
        )
    )
    assert account.lost == 0
    assert account.dead == {"failed": count}
    assert len(stream.handled) == 1
