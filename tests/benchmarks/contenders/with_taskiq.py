"""Taskiq with its aio-pika broker on uvloop, acknowledging when the task has run."""

from __future__ import annotations

import uvloop
from taskiq.acks import AcknowledgeType
from taskiq.api import run_receiver_task
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue

from tests.benchmarks.contenders.order import Meter, Order, Task, fields, pipelined

task = Task.given()
broker, other = (
    AioPikaBroker(task.url, qos=task.prefetch, exchange=Exchange(name="taskiq"), task_queues=[Queue(name=name)])
    for name in ("taskiq.work", "taskiq.sink")  # a receiver takes from all queues of its broker
)
meter = Meter(task)


@other.task  # type: ignore[untyped-decorator]
async def seen(order: str) -> None: ...


@broker.task  # type: ignore[untyped-decorator]
async def handle(placed: Order) -> None:
    if task.work == "hop":
        await seen.kiq(placed.order)
    meter.seen()


async def publish(number: int) -> None:
    await handle.kiq(Order.model_validate(fields(number)))


async def main() -> None:
    broker.is_worker_process = task.work in {"consume", "hop"}
    await broker.startup()
    await other.startup()
    if task.work == "sample":
        await publish(0)
    elif task.work == "publish":
        await pipelined(task, publish)
    else:
        await run_receiver_task(broker, max_async_tasks=task.prefetch, ack_time=AcknowledgeType.WHEN_EXECUTED)
    await other.shutdown()
    await broker.shutdown()


uvloop.run(main())
