"""What a dead letter tells of its deaths, in the form of RabbitMQ 4."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from choreo.broker.core.message import Death, Message, Properties
from choreo.broker.core.ready_messages import Entry
from choreo.message import DEATHS, FIRST_DEATH, LAST_DEATH


def buried(entry: Entry, reason: str, queue: str, exchange: str, key: str | None, now: float) -> Message:
    """Return what is published to `exchange`, with `key` or its own keys, when a message died in `queue`."""
    message = entry.message
    deaths = list(message.deaths)
    at = next((at for at, death in enumerate(deaths) if (death.queue, death.reason) == (queue, reason)), None)
    if at is not None:
        known = deaths.pop(at)
        death = known._replace(times=known.times + 1)
    else:
        shown = list(message.keys)
        for hidden in message.hidden:
            shown.remove(hidden)
        expiration = None if message.ttl is None else str(message.ttl)
        death = Death(queue, reason, 1, now, message.exchange, tuple(shown), expiration)
    last = reason, queue, message.exchange
    return message._replace(
        exchange=exchange,
        keys=message.keys if key is None else (key,),
        ttl=None,
        failures=entry.failures,
        deaths=(death, *deaths),
        first_death=message.first_death or last,
        last_death=last,
    )


def is_cycle(message: Message, queue: str) -> bool:
    """Say whether `message` would come to `queue` again without anybody having rejected it since it was there."""
    for death in message.deaths:
        if death.reason == "rejected":
            return False
        if death.queue == queue:
            return True
    return False


def shown(message: Message, more: Mapping[str, Any] | None = None) -> Properties:
    """Return the properties as a consumer sees them: with `more` headers, and those that tell of its deaths."""
    headers = dict(more or {})
    if message.first_death and message.last_death:
        headers[DEATHS] = [_table(death) for death in message.deaths]
        for name, value in zip(("reason", "queue", "exchange"), message.first_death, strict=True):
            headers[FIRST_DEATH + name] = value
        for name, value in zip(("reason", "queue", "exchange"), message.last_death, strict=True):
            headers[LAST_DEATH + name] = value
    return message.properties.with_headers(headers, expires=not message.deaths)


def _table(death: Death) -> dict[str, Any]:
    table = {
        "count": death.times,
        "reason": death.reason,
        "queue": death.queue,
        "time": datetime.fromtimestamp(int(death.time), UTC),
        "exchange": death.exchange,
        "routing-keys": list(death.routing_keys),
    }
    return table if death.expiration is None else {"original-expiration": death.expiration} | table
