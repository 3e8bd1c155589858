"""Taskiq's worker, `taskiq worker taskiq_tasks:broker`; `python taskiq_tasks.py` sends it tasks."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Annotated

from taskiq import Context, SimpleRetryMiddleware, TaskiqDepends
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue

# Tasks have names here, because a program that is started as a script calls its own module otherwise.
NAME = f"{os.environ['FOREIGN_NAMESPACE']}.taskiq"

broker = AioPikaBroker(
    os.environ["FOREIGN_URL"],
    exchange=Exchange(name=NAME),
    task_queues=[Queue(name=NAME)],
    dead_letter_queue=Queue(name=f"{NAME}.dead"),
    delay_queue=Queue(name=f"{NAME}.delay"),
).with_middlewares(SimpleRetryMiddleware())


@broker.task(task_name="add")
async def add(one: int, other: int) -> None:
    print("added:", one + other)


@broker.task(task_name="flaky", retry_on_error=True, max_retries=3)
async def flaky(context: Annotated[Context, TaskiqDepends()]) -> None:
    if not context.message.labels.get("_retries"):
        raise RuntimeError("failed once")
    print("retried:", context.message.labels["_retries"])


@broker.task(task_name="later")
async def later(sent: float) -> None:
    print("held back:", time.time() - sent > 0.9)


async def send() -> None:
    await broker.startup()
    await add.kiq(2, 3)
    await flaky.kiq()
    await later.kicker().with_labels(delay=1).kiq(time.time())
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(send())
