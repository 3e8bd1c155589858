"""The broker of the demo: the one that is named, in a namespace that nobody else has, or a private one."""

import asyncio
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aio_pika
from aio_pika.exceptions import AMQPError

from choreo import Agent
from choreo.errors import BrokerUnreachable
from choreo.rabbit.node import Node
from choreo.rabbit.release import INSTALL, find_server
from choreo.rabbit.session import connect
from choreo.settings import Settings, load
from choreo.topology import Topology


@dataclass(frozen=True, slots=True)
class Broker:
    """Where the demo takes place. `variables` is all that another process needs to take part."""

    text: str
    variables: dict[str, str]

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process that takes part, and whose log lines this one reads."""
        logs = {"CHOREO_LOG_FORMAT": "json", "CHOREO_LOG_LEVEL": "info", "CHOREO_HEALTH_PORT": ""}
        return {**os.environ, **logs, **self.variables}


@contextmanager
def opened(folder: Path, agents: Sequence[Agent]) -> Iterator[Broker]:
    """Give the broker that CHOREO_URL or another setting names, else a private one with its files in `folder`.

    At the end the private one is gone, and so is what `agents` declared on a named one. Raises BrokerUnreachable,
    also when none is named and no RabbitMQ server is installed, and AccessRefused.
    """
    settings = load()
    with _named(settings, agents) if "url" in settings.model_fields_set else _private(folder) as broker:
        yield broker


@contextmanager
def _private(folder: Path) -> Iterator[Broker]:
    if find_server() is None:
        raise BrokerUnreachable("no broker is named in CHOREO_URL and no RabbitMQ server is installed", INSTALL)
    with Node.start(folder) as node:
        variables = {"CHOREO_URL": f"amqp://127.0.0.1:{node.port}", "CHOREO_NAMESPACE": "demo"}
        yield Broker(f"RabbitMQ {node.version}, a private node on port {node.port}", variables)


@contextmanager
def _named(settings: Settings, agents: Sequence[Agent]) -> Iterator[Broker]:
    version = asyncio.run(_version(settings))
    # A namespace of its own: queues and events of agents that really run there are not touched.
    namespace = f"demo-{secrets.token_hex(3)}"
    text = f"RabbitMQ {version}, {settings.brokers()[0].censored}; namespace {namespace}, removed at the end"
    try:
        yield Broker(text, {"CHOREO_NAMESPACE": namespace})
    finally:
        try:
            asyncio.run(_clear(settings, Topology.of(agents, namespace)))
        except (OSError, AMQPError) as error:
            print(f"demo: on the broker remains what begins with {namespace}: {error}", file=sys.stderr)


async def _version(settings: Settings) -> str:
    session = await connect(settings.brokers(), name="choreo demo")
    await session.close()
    return session.server.version


async def _clear(settings: Settings, topology: Topology) -> None:
    """Delete everything in `topology` from a broker that is not ours."""
    broker = settings.brokers()[0]
    connection = await aio_pika.connect(
        host=broker.host,
        port=broker.port,
        login=broker.user,
        password=broker.password,
        virtualhost=broker.vhost,
        ssl=broker.tls,
        ssl_options={"cafile": broker.cafile} if broker.cafile else None,
    )
    async with connection, connection.channel() as channel:
        for queue in topology.queues:
            await channel.queue_delete(queue.name)
        for exchange in topology.exchanges:
            await channel.exchange_delete(exchange.name)
