"""Celery's worker, `celery -A celery_tasks worker`; `python celery_tasks.py SENDING` sends it tasks.

Remote control, gossip, mingle and results over AMQP are on, as they are by default.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from celery import Celery

KIND = os.environ["FOREIGN_QUEUE_TYPE"]
QUEUE = f"{os.environ['FOREIGN_NAMESPACE']}.celery"

app = Celery("celery_tasks", broker=os.environ["FOREIGN_URL"], backend="rpc://")
app.conf.update(
    task_default_queue=QUEUE,
    task_default_queue_type=KIND,
    task_default_exchange=QUEUE,
    task_default_exchange_type="topic",  # with a quorum queue, Celery holds ETAs by exchanges and queues of its own
    task_acks_late=True,
    worker_prefetch_multiplier=2,
    worker_redirect_stdouts=False,
    broker_transport_options={"confirm_publish": True},
    broker_connection_retry_on_startup=True,
)


@app.task
def add(one: int, other: int) -> int:
    print("added:", one + other)
    return one + other


@app.task(bind=True, max_retries=2)
def flaky(self: Any) -> str:
    if self.request.retries == 0:
        print("failed once")
        raise self.retry(countdown=1)
    print("retried:", self.request.retries)
    return "well in the end"


@app.task
def later(sent: float) -> None:
    print("held back:", time.time() - sent > 0.9)


@app.task(bind=True)
def fatal(self: Any) -> str:
    if not self.request.delivery_info["redelivered"]:
        print("waiting for its end")
        time.sleep(60)
    print("taken over")
    return "done by another"


def send(what: str) -> None:
    if what == "tasks":
        results = [add.delay(2, 3), flaky.delay()]
        later.apply_async((time.time(),), countdown=1)
        print("results:", *(each.get(timeout=20) for each in results))
    else:
        print("result:", fatal.delay().get(timeout=30))


if __name__ == "__main__":
    send(sys.argv[1])
