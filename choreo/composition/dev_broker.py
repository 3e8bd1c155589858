"""A broker for as long as somebody develops: the embedded one, or a private RabbitMQ node."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from choreo import __version__
from choreo.broker.server.background import EmbeddedBroker
from choreo.broker.server.listener import PORT
from choreo.errors import ChoreoError
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
