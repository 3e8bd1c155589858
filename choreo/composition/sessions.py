"""Who connects to the broker that the settings name: RabbitMQ's client, or within a rehearsal the rehearsal's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Unpack

from pydantic import SecretStr

from choreo.config import dev_file
from choreo.config.keywords import SettingsKeywords
from choreo.config.settings import Settings, load
from choreo.rabbit import session as rabbit
from choreo.rabbit.management import ManagementApi
from choreo.runtime.publisher import Publisher
from choreo.transport import Connect, Management, Session, diversion


def connector(settings: Settings, name: str) -> Connect:
    """Return what opens sessions with the broker in `settings`, under a `name` that the broker shows.

    Each call raises BrokerUnreachable, AccessRefused and ConfigurationError.
    """
    return rabbit.Connector(settings.brokers, name=name)


@asynccontextmanager
async def session(settings: Settings, name: str) -> AsyncIterator[Session]:
    """Open one session, and close it at the end; raises what `connector` raises."""
    opened = await connector(settings, name)()
    try:
        yield opened
    finally:
        await opened.close()


def management(settings: Settings) -> Management | None:
    """Return the management API of the broker in `settings`, None where there is none. Raises InvalidUrl.

    The broker of `choreo dev` has none: one that is named would tell of another broker's queues.
    """
    if settings.management_url is None:
        return None
    running = dev_file.find(settings.root)
    if running is not None and running.url == settings.url.get_secret_value():
        return None
    return ManagementApi(settings.management_url.get_secret_value(), settings.brokers()[0].vhost)


def connect(
    url: str | SecretStr | None = None, *, source: str = "choreo", **settings: Unpack[SettingsKeywords]
) -> Publisher:
    """Return a Publisher for the broker at `url`: ``async with choreo.connect() as publisher: ...``.

    Without a URL, and for all other settings, choreo's own rules hold: CHOREO_* variables, `.env`, pyproject.toml.
    `source` is what events say they come from. Within a rehearsal it publishes there, whatever is named. Raises
    ConfigurationError for settings that cannot be used.
    """
    if (elsewhere := diversion()) is not None:
        return Publisher(Settings(namespace=elsewhere.namespace), elsewhere.connect, source=source)
    found = load(url=url, **settings)
    found.brokers()  # raises what is wrong with them now, and not at the first publish
    return Publisher(found, connector(found, source), source=source)
