"""Queues that go, and queues that are full, under the agents that need them."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import aio_pika
import pytest

import choreo
from choreo.config.broker_url import BrokerUrl
from choreo.message import Message
from choreo.rabbit import session as rabbit
from choreo.testing.rabbitmq.node import Node
from choreo.topology import LEVELS, Names, Topology
from choreo.transport import Confirmed
from tests.faults.conftest import Scale
from tests.faults.report import Row
from tests.faults.stream import Stream
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import Running

HELD = 20  # events in a queue that is deleted
LONGEST_PAUSE = 5.0  # seconds until an agent whose queue was deleted consumes again
ROOM = 10  # dead letters that fit
EVENTS = 20  # published after something of the topology was deleted
LONGEST_HEALING = 10.0  # seconds until the first of them is where it belongs


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
    longest = scale.limit(LONGEST_PAUSE)
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


CLERK = """
from choreo import Agent, Context, Event, Retry

class Asked(Event, topic="NS.asked", external=True):
    number: int

agent = Agent("clerk", retry=Retry(on=OSError, attempts=3, first="1s"))

@agent.on
async def answer(asked: Asked, ctx: Context) -> None:
    raise (OSError if ctx.attempt == 1 else ValueError)(f"no {asked.number}")
"""


async def delete(channel: aio_pika.abc.AbstractChannel, what: str, names: Names) -> None:
    topology = Topology.of((), names.namespace)
    match what:
        case "dead-letter queue":
            await channel.queue_delete(names.dlq("clerk"))
        case "delays":
            for queue in topology.queues:
                if queue.kind == "delay" and queue.name != names.due:  # that one has consumers, as work queues have
                    await channel.queue_delete(queue.name)
        case "exchanges":
            for exchange in topology.exchanges:
                await channel.exchange_delete(exchange.name)
        case _:
            bound = await channel.get_queue(names.dlq("clerk"), ensure=False)
            await bound.unbind(names.dead, "clerk")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", ["dead-letter queue", "delays", "exchanges", "binding"])
async def test_deleted_topology_is_declared_anew_under_load(
    what: str,
    start_choreo: Callable[..., Running],
    project: Path,
    broker_url: str,
    namespace: str,
    scale: Scale,
    report: Callable[[Row], None],
) -> None:
    """At the running session, within seconds: what is confirmed from then on is retried and buried, none is held."""
    (project / "agents" / "clerk.py").write_text(CLERK.replace("NS", namespace))
    worker = start_choreo("run", "clerk", env={"CHOREO_URL": broker_url, "CHOREO_NAMESPACE": namespace})
    worker.wait_for('"state": "consuming"')
    names, repetitions, recoveries = Names(namespace), scale.of(10, short=1), list[float]()
    confirmed = buried = 0
    session = await rabbit.connect([BrokerUrl.parse(broker_url)], name="test")

    async def publish() -> bool:
        message = Message(b'{"number": 1}', type=f"{namespace}.asked")
        topic = f"{namespace}.asked"
        return await session.publish(message, exchange=names.events, routing_key=topic, timeout=10) == Confirmed()

    async def dead(more_than: int = 0) -> int:
        found = await session.stats(names.dlq("clerk"))
        return found.ready if found is not None and found.ready > more_than else 0

    async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
        for _ in range(repetitions):
            await publish()
            await eventually(dead, within=60, what="a dead letter")
            await delete(channel, what, names)
            before, began = await dead(), time.monotonic()
            for _ in range(EVENTS):
                confirmed += 1
                await eventually(publish, within=60, what="a confirmed event")
            await eventually(partial(dead, before), within=60, what="a dead letter")
            recoveries.append(time.monotonic() - began)
            await eventually(partial(dead, before + EVENTS - 1), within=60, what="all dead letters")
            buried += await dead() - before
    await session.close()
    report(
        Row(
            fault=f"{what} deleted under load",
            repetitions=repetitions,
            events=confirmed,
            lost=max(0, confirmed - buried),
            duplicated=max(0, buried - confirmed),
            worst_recovery=max(recoveries),
            must=f"declared again <= {scale.limit(LONGEST_HEALING):.0f} s, no session lost, lost 0 of what comes then",
            met=max(recoveries) <= scale.limit(LONGEST_HEALING),
            note="what a deleted queue held is lost with it, and the worker says so; a retry of 1 s is in the time",
        )
    )
    assert max(recoveries) <= scale.limit(LONGEST_HEALING)
    assert '"event": "topology incomplete"' in worker.output or what == "binding"
    assert '"event": "session lost"' not in worker.output
    worker.send(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait) == 0, "nothing is held any more"


async def has_or_holds(stream: Stream, queue: str, count: int, worker: Running) -> bool:
    """Whether `count` messages are in the queue, or the worker holds one that it has no room for."""
    return await stream.ready(queue) >= count or '"event": "held"' in worker.output


@pytest.mark.timeout(300)
@pytest.mark.parametrize("overflow", ['"overflow": "reject-publish", ', ""], ids=["rejecting", "dropping"])
async def test_full_dead_letter_queue_holds_deliveries(
    overflow: str,
    start_choreo: Callable[..., Running],
    project: Path,
    node: Node,
    namespace: str,
    scale: Scale,
    report: Callable[[Row], None],
) -> None:
    """What cannot be buried stays with the worker, which says so, until there is room again; no policy with a length
    drops what is there."""
    stream = Stream(project, start_choreo, node.url, namespace)
    count = scale.of(1_000, short=40)
    worker = stream.start()
    dlq = stream.names.dlq("desk")
    definition = f'{{{overflow}"max-length": {ROOM}}}'
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
            fault="dead-letter queue full" if overflow else "dead-letter queue under a length that drops",
            repetitions=1,
            events=account.confirmed,
            lost=account.lost,
            duplicated=account.duplicated,
            worst_recovery=recovery,
            must="lost 0, deliveries held, an error logged",
            met=account.lost == 0 and account.dead == {"failed": count},
            note="a dead letter that cannot be written is held by the worker and retried at most every 15 s",
        )
    )
    assert account.lost == 0
    assert account.dead == {"failed": count}
    assert len(stream.handled) == 1


BESIDE = """
import os, time

import tenacity

from choreo import Agent, Context, Event, Retry

class Told(Event, topic="NS.told", external=True):
    number: int

agent = Agent("beside", retry=Retry(on=OSError, stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_fixed(1)))
file = os.open("beside", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@agent.on
async def note(told: Told, ctx: Context) -> None:
    os.write(file, f"{told.number} {ctx.attempt} {time.monotonic()}\\n".encode())
    if ctx.attempt == 1:
        raise OSError("once")
"""


@pytest.mark.real_node("policies")
@pytest.mark.timeout(900)
async def test_delays_of_others_do_not_wait_for_a_full_queue(
    start_choreo: Callable[..., Running],
    project: Path,
    node: Node,
    namespace: str,
    scale: Scale,
    report: Callable[[Row], None],
) -> None:
    """An agent is down and its queue full, while hundreds of scheduled events are for it: the retries and scheduled
    events of another one are in time, and those of the full queue arrive when there is room."""
    (project / "agents" / "beside.py").write_text(BESIDE.replace("NS", namespace))
    stream = Stream(project, start_choreo, node.url, namespace)
    count, told = scale.of(2_000, short=200), 20
    worker = stream.start()  # so that its queue is there
    worker.send(signal.SIGTERM)
    await asyncio.to_thread(worker.wait)
    beside = start_choreo("run", "beside", env=stream.environment)
    await asyncio.to_thread(beside.wait_for, '"state": "consuming"')
    pattern = f"^{stream.names.queue('desk')}$".replace(".", r"\.")
    await asyncio.to_thread(node.ctl, "set_policy", namespace, pattern, '{"max-length": 5}', "--apply-to", "queues")
    await stream.publish(count, delay=1)
    async with stream.session() as session, choreo.connect(stream.url, namespace=namespace) as publisher:

        async def refused() -> bool:  # all have been due, and most of them wait again
            levels = [await session.stats(stream.names.level(level)) for level in range(1, LEVELS)]
            return sum(each.ready for each in levels if each is not None) >= count / 2

        await eventually(refused, within=60, what="refused events in the delays")
        topic, scheduled = f"{namespace}.told", dict[int, float]()
        for number in range(told):
            delay = number % 2 or None
            scheduled[number] = time.monotonic() + (delay or 0)
            await publisher.send(Message(b'{"number": %d}' % number, message_id=f"told-{number}"), topic, delay=delay)

        def noted() -> list[tuple[int, int, float]]:
            lines = (project / "beside").read_text().splitlines() if (project / "beside").exists() else []
            return [(int(number), int(attempt), float(when)) for number, attempt, when in map(str.split, lines)]

        await eventually(lambda: len(noted()) >= 2 * told, within=60, what="the retries of the other agent")
    tries = {(number, attempt): when for number, attempt, when in noted()}
    late = max(
        *(tries[number, 1] - due for number, due in scheduled.items()),
        *(tries[number, 2] - tries[number, 1] - 1 for number in scheduled),
    )
    await asyncio.to_thread(node.ctl, "clear_policy", namespace)
    began = time.monotonic()
    stream.start()
    await eventually(lambda: len({number for number, _ in stream.handled}) == count, within=400, what="all of them")
    recovery = time.monotonic() - began
    account = await stream.account()
    longest = scale.limit(2.0)
    row = Row(
        fault="an agent is down and its queue full (max-length), with scheduled events for it",
        repetitions=1,
        events=account.confirmed,
        lost=account.lost,
        duplicated=account.duplicated,
        worst_recovery=recovery,
        must=f"lost 0; delays of another agent at most {longest:.0f} s late",
        met=account.lost == 0 and late <= longest and len(noted()) == 2 * told,
        note=f"those were {late:.1f} s late at most; what was refused is published again after 1, 2, 4 … 256 s",
    )
    report(row)
    assert row.met, row
