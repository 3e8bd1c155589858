"""Who takes part: how each is started, where its events go, and what has to be said of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

NAMESPACE: Final = "bench"  # of choreo
PLAIN: Final = ("plain.work", "plain.sink")  # quorum queues that know nothing of who uses them
_NODE: Final = Path(".bench/node")
_C: Final = Path(".bench/c/with_rabbitmq_c")


@dataclass(frozen=True, slots=True)
class Contender:
    """A program that consumes, hops and publishes.

    `pace`: how many times as many events as the slowest it gets, so that every run takes a second or more. `serial`: it
    has one publish outstanding, because its publish blocks. `publishes`: it takes part where events are published.
    """

    name: str
    title: str
    command: tuple[str, ...]
    queues: tuple[str, str]
    pace: int
    settings: str
    versions: Callable[[], str]
    serial: bool = False
    needs: Path | None = None
    publishes: bool = True

    @property
    def missing(self) -> bool:
        """Whether scripts/bench.sh could not bring it here."""
        return self.needs is not None and not self.needs.exists()


def _packages(names: str) -> Callable[[], str]:
    return lambda: ", ".join(f"{each} {version(each)}" for each in names.split())


def _module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"tests.benchmarks.contenders.{name}")


def _amqplib() -> str:
    listed = json.loads((_NODE / "node_modules/amqplib/package.json").read_text())
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    return f"amqplib {listed['version']}, Node {node.stdout.strip()}"


def _rabbitmq_c() -> str:
    if shutil.which("dpkg-query") is None:
        return "rabbitmq-c"
    asked = ["dpkg-query", "--show", "--showformat=${Version}", "librabbitmq-dev"]
    return f"rabbitmq-c {subprocess.run(asked, capture_output=True, text=True, check=False).stdout}"


CONTENDERS: Final = (
    Contender(
        name="choreo",
        title="choreo",
        command=_module("with_choreo"),
        queues=(f"{NAMESPACE}.work", f"{NAMESPACE}.sink"),
        pace=8,
        settings="`choreo run` and `choreo.connect()` with every default but the prefetch: envelope, validation, "
        "settlement, deadlines, logs; its own topology",
        versions=_packages("choreo aio-pika uvloop pydantic"),
    ),
    Contender(
        name="choreo_plain",
        title="choreo, plain JSON",
        command=(*_module("with_choreo"), "plain"),
        queues=(f"{NAMESPACE}.work", f"{NAMESPACE}.sink"),
        pace=8,
        settings="the same worker, given what the plain clients give each other: bodies without an envelope's headers",
        versions=_packages("choreo"),
        publishes=False,
    ),
    Contender(
        name="rabbitmq_c",
        title="C, rabbitmq-c",
        command=(str(_C),),
        queues=PLAIN,
        pace=8,
        settings="one thread, one channel; confirms and acknowledgements by `multiple`; it looks for the order's "
        "number in the JSON and does not parse the rest",
        versions=_rabbitmq_c,
        needs=_C,
    ),
    Contender(
        name="amqplib",
        title="amqplib (Node)",
        command=("node", "tests/benchmarks/contenders/with_amqplib.js"),
        queues=PLAIN,
        pace=4,
        settings="the callback API, one confirm channel, `noDelay`; `JSON.parse` is all the validation",
        versions=_amqplib,
        needs=_NODE / "node_modules/amqplib",
    ),
    Contender(
        name="pika",
        title="pika",
        command=_module("with_pika"),
        queues=PLAIN,
        pace=4,
        settings="`SelectConnection` with callbacks, one channel, an acknowledgement per event",
        versions=_packages("pika"),
    ),
    Contender(
        name="aio_pika",
        title="aio-pika",
        command=_module("with_aio_pika"),
        queues=PLAIN,
        pace=1,
        settings="by hand, on uvloop, one channel",
        versions=_packages("aio-pika aiormq uvloop"),
    ),
    Contender(
        name="faststream",
        title="FastStream",
        command=_module("with_faststream"),
        queues=PLAIN,
        pace=1,
        settings="on uvloop, without a logger, the model as the handler's parameter",
        versions=_packages("faststream aio-pika uvloop"),
    ),
    Contender(
        name="taskiq",
        title="Taskiq",
        command=_module("with_taskiq"),
        queues=("taskiq.work", "taskiq.sink"),
        pace=1,
        settings="the aio-pika broker, on uvloop, acknowledged when the task has run, as many at once as prefetched",
        versions=_packages("taskiq taskiq-aio-pika uvloop"),
    ),
    Contender(
        name="dramatiq",
        title="Dramatiq",
        command=_module("with_dramatiq"),
        queues=("work", "sink"),
        pace=1,
        settings="eight threads in one process, its own middleware, confirms on; a subclass makes its queues quorum "
        "queues, for which it has no option",
        versions=_packages("dramatiq pika"),
        serial=True,
    ),
    Contender(
        name="celery",
        title="Celery",
        command=_module("with_celery"),
        queues=("celery.work", "celery.sink"),
        pace=1,
        settings="one process with the solo pool, late acknowledgement, confirms on, prefetch per consumer as its "
        "quorum queue detection has it; without gossip, mingle and heartbeat",
        versions=_packages("celery kombu amqp"),
        serial=True,
    ),
)
