"""A broker for as long as somebody develops: the embedded one or a private RabbitMQ node, and agents beside it."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from choreo import __version__
from choreo.agent import Agent
from choreo.broker.server.background import EmbeddedBroker
from choreo.broker.server.listener import PORT
from choreo.errors import ChoreoError
from choreo.graph.choreography import Choreography
from choreo.operate import example
from choreo.runtime.service import Stop, signals
from choreo.testing.rabbitmq.node import Node


class Kind(StrEnum):
    """Which broker."""

    EMBEDDED = "embedded"
    RABBITMQ = "rabbitmq"


@dataclass(frozen=True, slots=True)
class Place:
    """A broker that is there: its URL, lines that say what it is, and what is done when it had to end by itself."""

    url: str
    kind: str
    text: str
    failed: Future[ChoreoError]


@contextmanager
def opened(kind: Kind, *, port: int | None = None, persist: Path | None = None) -> Iterator[Place]:
    """Start a broker on `port` of this machine, and end it in order; None is 5672, or any free one for RabbitMQ.

    `persist` is the file in which the embedded one keeps what is durable. Raises ConfigurationError, such as for a port
    that is in use, and BrokerUnreachable when a node does not come up.
    """
    if kind is Kind.RABBITMQ:
        with tempfile.TemporaryDirectory(prefix="choreo-dev-") as folder, Node.start(Path(folder), port=port) as node:
            url = f"amqp://127.0.0.1:{node.port}"
            text = f"RabbitMQ {node.version}, a private node, {url} (guest/guest)\nit keeps nothing after the end"
            yield Place(url, "private RabbitMQ", text, Future())
        return
    with EmbeddedBroker(__version__, port=PORT if port is None else port, persist=persist) as broker:
        keeps = f"what is durable is kept in {persist}" if persist else "it keeps nothing after the end"
        text = f"embedded, {broker.url} (guest/guest)\nfor development only: this machine alone reaches it, and {keeps}"
        yield Place(broker.url, "embedded", text, broker.failed)


async def beside(place: Place, serving: Coroutine[Any, Any, int]) -> int:
    """Return what `serving` returns, which ends by SIGTERM. Raises ChoreoError when the broker had to end before."""
    work = asyncio.ensure_future(serving)
    failed = asyncio.wrap_future(place.failed)
    await asyncio.wait((work, failed), return_when=asyncio.FIRST_COMPLETED)
    if failed.done():
        os.kill(os.getpid(), signal.SIGTERM)
        await work
        raise failed.result()
    return await work


async def nobody(ready: Callable[[], None]) -> int:
    """Call `ready`, and wait for a signal that asks for an end; return the exit code."""
    ended = asyncio.Event()
    async with signals(Stop(ended.set, ended.set)):
        ready()
        await ended.wait()
    return 0


def ways_in(agents: Sequence[Agent]) -> list[tuple[str, str | None]]:
    """Return the topics that come from outside, else those that are taken at all, each with an example as JSON."""
    events = Choreography.of(agents).events
    taken = [event for event in events if event.consumers and event.kind is not None]
    outside = [event for event in taken if event.external] or [event for event in taken if not event.emitters] or taken
    return [(event.topic, example.of(event.kind)) for event in outside if event.kind is not None]
