"""Named points of a delivery at which a worker ends itself by SIGKILL. An agent of the ledger imports this.

Nothing of choreo is changed but the function that opens a session: what it returns is wrapped in another session, which
sees everything that a delivery does with its broker.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any, Final

from choreo.message import Message
from choreo.rabbit import session as rabbit
from choreo.transport import Confirmed, Consumer, Delivery, OnDelivery, Publication, Session

ARRIVED: Final = "it has arrived"
BEGUN: Final = "the reaction has begun"
EFFECT: Final = "the reaction has had its effect"
WRITTEN: Final = "the event it emits is written, not confirmed"
EMITTED: Final = "the event it emits is confirmed"
RETRIED: Final = "its retry is confirmed"
BURIED: Final = "its dead letter is confirmed"
DRAINED: Final = "it is finished during the drain"
POINTS: Final = (ARRIVED, BEGUN, EFFECT, WRITTEN, EMITTED, RETRIED, BURIED, DRAINED)

CONFIRMED_ON: Final = {"events": EMITTED, "delay": RETRIED, "dead": BURIED}  # by exchange
TURNS: Final = 10  # of the event loop until a publish is on the wire; its confirmation takes a disk's write longer

_armed = Path("point")  # in the project's folder: which point ends the next worker that comes to it


def arm(project: Path, point: str) -> None:
    """Have the next worker of `project` that comes to `point` end there."""
    (project / _armed).write_text(point)


def is_armed(project: Path) -> bool:
    """Say whether no worker has come to the point yet."""
    return (project / _armed).exists()


def reached(point: str) -> None:
    """End this process if `point` is armed. One process only: who takes the file away."""
    try:
        if _armed.read_text() != point:
            return
        _armed.unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def watch() -> None:
    """Wrap every session that this process opens from now on."""
    connect = rabbit.Connector.__call__

    async def connect_watched(connector: rabbit.Connector) -> Watched:
        return Watched(await connect(connector))

    rabbit.Connector.__call__ = connect_watched  # type: ignore[assignment,method-assign]


class Watched:
    """A session, and the points that a delivery passes in it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    async def consume(self, queue: str, *, on_delivery: OnDelivery, **options: Any) -> Consumer:
        def arrived(delivery: Delivery) -> None:
            reached(ARRIVED)
            delivery.consumer = WatchedConsumer(delivery.consumer)
            on_delivery(delivery)

        return await self._session.consume(queue, on_delivery=arrived, **options)

    async def publish(self, message: Message, *, exchange: str, **options: Any) -> Publication:
        kind = exchange.rpartition(".")[2]
        publishing = asyncio.ensure_future(self._session.publish(message, exchange=exchange, **options))
        if kind == "events":
            for _ in range(TURNS):
                await asyncio.sleep(0)
            if not publishing.done():
                reached(WRITTEN)
        result = await publishing
        if isinstance(result, Confirmed):
            reached(CONFIRMED_ON[kind])
        return result


class WatchedConsumer:
    """A subscription, and the last point before a delivery is settled."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def acknowledge(self, delivery: Delivery) -> None:
        reached(DRAINED)  # armed only after the drain has begun
        self._consumer.acknowledge(delivery)
