"""The broker of the demo: the one that is named, in a namespace that nobody else has, or one that it starts."""

import asyncio
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from choreo import Agent, ChoreoError
from choreo.composition import dev_broker, sessions
from choreo.composition.dev_broker import Kind
from choreo.config.settings import Settings, load
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
def opened(kind: Kind | None, agents: Sequence[Agent]) -> Iterator[Broker]:
    """Start a broker of this kind. None: the one that CHOREO_URL or another setting names, else the embedded one.

    At the end the started one is gone, and so is what `agents` declared on a named one. Raises BrokerUnreachable,
    AccessRefused, and ConfigurationError, such as when no RabbitMQ server is installed.
    """
    settings = load()
    named = "url" in settings.model_fields_set and settings.found is None
    with _named(settings, agents) if named and kind is None else _started(kind or Kind.EMBEDDED) as broker:
        yield broker


@contextmanager
def _started(kind: Kind) -> Iterator[Broker]:
    with dev_broker.opened(kind, port=0 if kind is Kind.EMBEDDED else None) as place:
        yield Broker(place.text, {"CHOREO_URL": place.url, "CHOREO_NAMESPACE": "demo"})


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
        except ChoreoError as error:
            print(f"demo: on the broker remains what begins with {namespace}: {error}", file=sys.stderr)


async def _version(settings: Settings) -> str:
    async with sessions.session(settings, "choreo demo") as session:
        return session.server.version


async def _clear(settings: Settings, topology: Topology) -> None:
    """Delete everything in `topology` from a broker that is not ours."""
    async with sessions.session(settings, "choreo demo") as session:
        await session.remove(topology)
