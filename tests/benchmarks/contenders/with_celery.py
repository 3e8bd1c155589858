"""Celery with late acknowledgement and confirms: a worker with the solo pool, the fastest for work that never waits."""

from __future__ import annotations

from celery import Celery
from kombu import Queue

from tests.benchmarks.contenders.order import Meter, Order, Task, fields

task = Task.given()
app = Celery("bench", broker=task.url)
app.conf.update(
    task_queues=[Queue(f"celery.{name}", queue_arguments={"x-queue-type": "quorum"}) for name in ("work", "sink")],
    task_default_queue="celery.work",
    task_default_queue_type="quorum",  # Celery then sets its prefetch per consumer, as a quorum queue wants it
    worker_detect_quorum_queues=True,
    worker_prefetch_multiplier=task.prefetch,
    worker_enable_remote_control=False,
    worker_redirect_stdouts=False,
    task_acks_late=True,
    task_ignore_result=True,
    broker_transport_options={"confirm_publish": True},
    broker_connection_retry_on_startup=True,
)
meter = Meter(task)


@app.task(pydantic=True, name="order.placed")  # type: ignore[untyped-decorator]
def handle(placed: Order) -> None:
    if task.work == "hop":
        app.send_task("order.seen", kwargs={"order": placed.order}, queue="celery.sink")
    meter.seen()


def publish(number: int) -> None:
    handle.apply_async(kwargs={"placed": Order.model_validate(fields(number)).model_dump(mode="json")})


if task.work == "sample":
    app.send_task("order.seen", queue="celery.sink")  # declares it
    publish(0)
elif task.work == "publish":
    for number in range(task.events):
        publish(number)
        meter.seen()
else:
    only = ["--pool=solo", "--without-gossip", "--without-mingle", "--without-heartbeat", "-Q", "celery.work"]
    app.worker_main(["worker", "--loglevel=WARNING", *only])
