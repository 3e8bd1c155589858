"""Where the time of a consumed event goes: each part of the delivery path by itself, without a broker.

Each part is given what the one before it made of 512 different orders. The garbage collector rests meanwhile: here
everything is kept that a worker lets go of.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, cast

from choreo import Agent, Event
from choreo.amqp import decode, encode, frames
from choreo.envelope import open_envelope, seal
from choreo.observe import logs
from choreo.rabbit.fast_path.consuming import Consuming
from choreo.rabbit.fast_path.protocol import FastPath, _Splitter
from choreo.runtime.delivery import DeliveryProcessor
from choreo.runtime.overdue import Overdue
from choreo.runtime.subscription import _Consumer
from choreo.runtime.task_pool import Arrivals
from choreo.topology import Names
from choreo.transport import Consumer, Delivery, Session
from tests.benchmarks.contenders.order import Order, fields

_ORDERS: Final = 512
_TIMES: Final = 40
_FRAME_MAX: Final = 131_072


class OrderPlaced(Event, Order, topic="bench.placed", external=True):
    pass


work = Agent("parts")


@work.on
async def consume(placed: OrderPlaced) -> None: ...


class _Line(asyncio.WriteTransport):
    """A connection that nobody is at the other end of."""

    def write(self, data: bytes | bytearray | memoryview) -> None: ...

    def is_closing(self) -> bool:
        return False


class _Kept:
    """Who takes what arrives: it keeps the parts."""

    def __init__(self) -> None:
        self.parts: list[tuple[bytes, bytes, bytes]] = []

    def content(self, payload: bytes, properties: bytes, body: bytes) -> None:
        self.parts.append((payload, properties, body))


def _raised(error: Exception) -> None:
    raise error


class _Receiver:
    """A fast path's consumer without a session."""

    def __init__(self, fast_path: FastPath, subscription: _Consumer) -> None:
        self.queue = "bench"
        self._fast_path = fast_path
        self._subscription = subscription
        self.renew()

    def renew(self) -> None:
        """Begin with an empty channel: tags count up from 1."""
        self.channel = Consuming(self._fast_path, 1, cast("Consumer", self), self._subscription._arrived, _raised)
        self._subscription._consumer = cast("Consumer", self)

    def acknowledge(self, delivery: Delivery) -> None:
        self.channel.acknowledge(delivery.tag)


class _Idle:
    """A session that is not lost, which is all that is asked of it."""

    def __init__(self) -> None:
        self.lost = asyncio.get_running_loop().create_future()


def measure() -> list[tuple[str, float]]:
    """Return each part with its microseconds per event, in their order on the way."""
    logs.configure("warning", "json")
    return asyncio.run(_measure())


async def _measure() -> list[tuple[str, float]]:
    messages = [seal(OrderPlaced.model_validate(fields(number)), source="shop") for number in range(_ORDERS)]
    topic, exchange = "bench.placed", Names("bench").events
    prefix = frames.NUMBER.pack(frames.DELIVER) + b"\x01t"
    place = encode.short(exchange) + encode.short(topic)
    wire = bytearray()
    for tag, each in enumerate(messages, 1):
        wire += frames.frame(frames.METHOD, 1, prefix + frames.TAG.pack(tag, 0) + place)
        wire += frames.content(1, encode.properties(each, each.message_id), each.body, _FRAME_MAX)
    data = bytes(wire)

    fast_path, kept = FastPath(0), _Kept()
    splitter = _Splitter(fast_path, asyncio.StreamReader(), asyncio.get_running_loop())
    splitter.connection_made(_Line())
    fast_path.take(1, cast("Any", kept))
    split = _cost(lambda: splitter.data_received(data), before=kept.parts.clear)
    read = _cost(lambda: [decode.message(properties, body) for _, properties, body in kept.parts])

    arrived: Arrivals[Delivery] = Arrivals(1, _ORDERS, lambda: True)
    consumer, deliveries = (
        _Receiver(fast_path, _Consumer(arrived.put, Overdue(lambda *_: None, lambda _: ()))),
        list[Delivery](),
    )
    seat = arrived.seat()

    def hand_on() -> None:
        for parts in kept.parts:
            consumer.channel.content(*parts)
        while (delivery := seat.take_now()) is not None:
            deliveries.append(delivery)

    handed_on = _cost(hand_on, before=deliveries.clear)
    envelopes = [open_envelope(each.message, topic) for each in deliveries]
    opened = _cost(lambda: [open_envelope(each.message, topic) for each in deliveries])
    checked = _cost(lambda: [each.event(OrderPlaced) for each in envelopes])
    validate = OrderPlaced.__pydantic_validator__.validate_json
    validated = _cost(lambda: [validate(each.body) for each in envelopes])

    with ThreadPoolExecutor() as executor:
        processor, session = DeliveryProcessor(work, Names("bench"), executor, 2**20, 10.0), cast("Session", _Idle())

        async def deliver() -> None:
            for each in deliveries:
                await processor.deliver(session, each, seat.leave)

        delivered = _cost(lambda: _run(deliver()), before=consumer.renew)
    if processor.counters.handled != _ORDERS * _TIMES:
        raise RuntimeError(f"not all orders were handled: {processor.counters}")
    return [
        ("frames taken apart", split),
        ("properties and headers read", read),
        ("handed on through window and pool", handed_on - read),
        ("envelope opened", opened),
        ("body checked for keys that come twice and numbers too large", checked - validated),
        ("body validated by pydantic", validated),
        ("reaction called, delivery counted and acknowledged", delivered - opened - checked),
    ]


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run what waits for nothing."""
    with suppress(StopIteration):
        work.send(None)


def _cost(part: Callable[[], Any], before: Callable[[], Any] = lambda: None) -> float:
    """Return microseconds per order, the best of several times: whatever else the machine does only adds to it."""
    best = float("inf")
    gc.disable()
    try:
        for _ in range(_TIMES):
            before()
            begin = time.perf_counter()
            part()
            best = min(best, time.perf_counter() - begin)
    finally:
        gc.enable()
    return best / _ORDERS * 1e6
