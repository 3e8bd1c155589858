"""Dramatiq with its eight threads and its own middleware; confirms on; its queues made quorum queues by an override."""

from __future__ import annotations

import os

from tests.benchmarks.contenders.order import Meter, Order, Task, fields

task = Task.given()
os.environ["dramatiq_queue_prefetch"] = str(task.prefetch)  # noqa: SIM112 - it is read when dramatiq is imported

import signal  # noqa: E402
from typing import Any  # noqa: E402

import dramatiq  # noqa: E402
from dramatiq.brokers.rabbitmq import RabbitmqBroker  # noqa: E402


class QuorumBroker(RabbitmqBroker):  # type: ignore[misc]
    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        return {**super()._build_queue_arguments(queue_name), "x-queue-type": "quorum"}


broker = QuorumBroker(url=task.url, confirm_delivery=True)
dramatiq.set_broker(broker)
meter = Meter(task)


@dramatiq.actor(queue_name="sink")  # type: ignore[untyped-decorator]
def seen(order: str) -> None: ...


@dramatiq.actor(queue_name="work")  # type: ignore[untyped-decorator]
def handle(fields: dict[str, Any]) -> None:
    placed = Order.model_validate(fields)
    if task.work == "hop":
        seen.send(placed.order)
    meter.seen()


def publish(number: int) -> None:
    handle.send(Order.model_validate(fields(number)).model_dump(mode="json"))


if task.work == "sample":
    seen.send("")  # declares its queue
    publish(0)
elif task.work == "publish":
    for number in range(task.events):
        publish(number)
        meter.seen()
else:
    worker = dramatiq.Worker(broker, queues={"work"}, worker_threads=8)
    worker.start()
    signal.pause()
broker.close()
