"""pika's asynchronous adapter on its own select loop, as its asynchronous consumer and publisher examples have it."""

from __future__ import annotations

from collections import deque
from typing import Any

import pika
from pika.adapters.select_connection import SelectConnection

from tests.benchmarks.contenders.order import WINDOW, Meter, Order, Task, body, fields

task = Task.given()
PROPERTIES = pika.BasicProperties(content_type="application/json", delivery_mode=2)


class Client:
    """One connection with one channel; publishes are confirmed in the order in which they were made."""

    def __init__(self) -> None:
        self.published = 0
        self.confirmed = 0
        self.waiting: deque[int] = deque()  # delivery tags, in the order of the publishes that they wait for
        self.meter = Meter(task)
        self.connection = SelectConnection(pika.URLParameters(task.url), on_open_callback=self.opened)

    def run(self) -> None:
        self.connection.ioloop.start()

    def opened(self, connection: SelectConnection) -> None:
        connection.channel(on_open_callback=self.ready)

    def ready(self, channel: Any) -> None:
        self.channel = channel
        if task.work == "sample":
            channel.basic_publish("plain.events", "order.placed", body(0), PROPERTIES)
            self.connection.add_on_close_callback(lambda *_: self.connection.ioloop.stop())
            self.connection.close()
        elif task.work == "publish":
            channel.confirm_delivery(self.on_confirm, lambda _: self.publish(min(WINDOW, task.events)))
        else:
            if task.work == "hop":
                channel.confirm_delivery(self.on_confirm)
            channel.basic_qos(prefetch_count=task.prefetch)
            channel.basic_consume("plain.work", self.on_message)

    def on_message(self, channel: Any, method: Any, _: Any, content: bytes) -> None:
        placed = Order.model_validate_json(content)
        if task.work == "hop":
            reply = b'{"order":"%s"}' % placed.order.encode()
            channel.basic_publish("plain.events", "order.seen", reply, PROPERTIES)
            self.published += 1
            self.waiting.append(method.delivery_tag)
        else:
            channel.basic_ack(method.delivery_tag)
            self.meter.seen()

    def publish(self, count: int) -> None:
        for _ in range(min(count, task.events - self.published)):
            placed = Order.model_validate(fields(self.published))
            self.channel.basic_publish("plain.events", "order.placed", placed.model_dump_json().encode(), PROPERTIES)
            self.published += 1

    def on_confirm(self, frame: Any) -> None:
        assert frame.method.NAME == "Basic.Ack", "the broker has refused a publish"
        count = frame.method.delivery_tag - self.confirmed
        self.confirmed = frame.method.delivery_tag
        for _ in range(count):
            if task.work == "hop":
                self.channel.basic_ack(self.waiting.popleft())
            self.meter.seen()
        if task.work == "publish":
            self.publish(count)


Client().run()
