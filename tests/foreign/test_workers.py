"""Workers of the frameworks that people have, each by its own command: tasks, retries, delays, and a good end."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable

import pytest

from tests.conftest import Running
from tests.foreign.clients import command, needs_python, python

pytestmark = needs_python

ALONE = ("--pool=solo", "--loglevel=INFO")

Start = Callable[..., Running]
Run = Callable[..., list[str]]
Left = Callable[[dict[str, int]], Awaitable[None]]


def end(worker: Running, *, code: int = 0) -> None:
    """Ends a worker as its users would; it has to drain, and to say that all is well."""
    worker.send(signal.SIGTERM)
    assert worker.wait(20) == code, worker.output


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_celery(kind: str, start: Start, run: Run, left: Left, namespace: str):
    """A retry, an ETA, results, remote control; and what a killed worker had not acknowledged is another's."""
    told = {"FOREIGN_QUEUE_TYPE": kind}
    celery = command("celery", "-A", "celery_tasks")
    worker = start(*celery, "worker", *ALONE, "-n", f"{namespace}@one", **told)
    worker.wait_for("ready.")
    assert run(*python("celery_tasks.py", "tasks"), **told) == ["results: 5 well in the end"]
    for line in ("added: 5", "failed once", "retried: 1", "held back: True"):
        worker.wait_for(line)
    assert "pong" in "".join(run(*celery, "inspect", "ping", "-d", f"{namespace}@one", **told))

    sender = start(*python("celery_tasks.py", "fatal"), **told)
    worker.wait_for("waiting for its end")
    worker.send(signal.SIGKILL)
    worker = start(*celery, "worker", *ALONE, "-n", f"{namespace}@two", **told)
    worker.wait_for("taken over")
    assert sender.wait(20) == 0, sender.output
    assert sender.stdout == ["result: done by another"]
    end(worker)
    await left({f"{namespace}.celery": 0})


async def test_dramatiq(start: Start, run: Run, left: Left, namespace: str):
    """Retries and delays go through its delay queue; what fails for good is in its dead-letter queue."""
    worker = start(*command("dramatiq", "dramatiq_tasks", "--processes", "1", "--threads", "2"))
    run(*python("dramatiq_tasks.py"))
    for line in ("added: 5", "retried: 1", "held back: True", "Retries exceeded"):
        worker.wait_for(line)
    end(worker)
    queue = f"{namespace}.dramatiq"
    await left({queue: 0, f"{queue}.DQ": 0, f"{queue}.XQ": 1})


async def test_taskiq(start: Start, run: Run, left: Left, namespace: str):
    """A retry is sent anew, a delayed task waits in a queue whose messages expire into the other."""
    worker = start(*command("taskiq", "worker", "taskiq_tasks:broker", "--workers", "1"))
    worker.wait_for("Listening")
    run(*python("taskiq_tasks.py"))
    for line in ("added: 5", "retried: 1", "held back: True"):
        worker.wait_for(line)
    end(worker)
    queue = f"{namespace}.taskiq"
    await left({queue: 0, f"{queue}.delay": 0, f"{queue}.dead": 0})


async def test_faststream(start: Start, run: Run, left: Left, namespace: str):
    """An event leads to an event, a request is answered; what fails comes again, or is a dead letter."""
    worker = start(*command("faststream", "run", "faststream_app:app"))
    worker.wait_for("ready")
    assert run(*python("faststream_app.py")) == ["reply: asked, and answered"]
    for line in ("added: 5", "seen: 5", "retried: failed once"):
        worker.wait_for(line)
    names = {f"{namespace}.faststream.{each}": 0 for each in ("sum", "seen", "flaky", "hopeless", "asked")}
    await left(names | {f"{namespace}.faststream.dead": 1})
    end(worker)
