"""Dramatiq's worker, `dramatiq dramatiq_tasks`; `python dramatiq_tasks.py` sends it tasks."""

from __future__ import annotations

import os
import time

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.middleware import CurrentMessage

QUEUE = f"{os.environ['FOREIGN_NAMESPACE']}.dramatiq"

broker = RabbitmqBroker(url=os.environ["FOREIGN_URL"], confirm_delivery=True)
broker.add_middleware(CurrentMessage())
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name=QUEUE)
def add(one: int, other: int) -> None:
    print("added:", one + other)


@dramatiq.actor(queue_name=QUEUE, max_retries=2, min_backoff=300)
def flaky() -> None:
    message = CurrentMessage.get_current_message()
    assert message is not None
    if not message.options.get("retries"):
        raise RuntimeError("failed once")
    print("retried:", message.options["retries"])


@dramatiq.actor(queue_name=QUEUE, max_retries=1, min_backoff=300)
def hopeless() -> None:
    raise RuntimeError("failed for good")


@dramatiq.actor(queue_name=QUEUE)
def later(sent: float) -> None:
    print("held back:", time.time() - sent > 0.9)


if __name__ == "__main__":
    add.send(2, 3)
    flaky.send()
    hopeless.send()
    later.send_with_options(args=(time.time(),), delay=1000)
