"""A message inside the broker: its properties as the publisher gave them, its body, and how it was dead-lettered."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol, Self

from choreo.broker.core.failure import AmqpError, field_type
from choreo.message import BCC, CC, FarTime

LONGEST: Final = 315_360_000_000  # milliseconds of any length of time: ten years
REPLY_TO: Final = "amq.rabbitmq.reply-to"  # https://www.rabbitmq.com/docs/direct-reply-to
_EXPIRATION: Final = re.compile(r"([+-]?[0-9]+)(.*)", re.DOTALL)


class Properties(Protocol):
    """What the core reads of a message's properties, and the one way in which it changes them.

    `BasicProperties` is the plain form. A front may bring its own, such as bytes from the wire that are decoded only
    when asked for: what is published as an object of one class is delivered as that object, or as what its
    `with_headers` returned. Objects are never changed.
    """

    @property
    def headers(self) -> Mapping[str, Any] | None:
        """The header table; None when there is none. Only read for a headers exchange."""
        ...

    @property
    def copies(self) -> tuple[list[Any], list[Any]] | None:
        """The headers CC and BCC, where one of them is there: further routing keys. Read at every publish."""
        ...

    @property
    def delivery_mode(self) -> int | None:
        """2 for persistent. Read at every publish to a durable classic queue."""
        ...

    @property
    def priority(self) -> int | None:
        """The priority, 0 to 255. Read for queues that order by it."""
        ...

    @property
    def expiration(self) -> str | None:
        """Milliseconds as text. Read at every publish."""
        ...

    @property
    def user_id(self) -> str | None:
        """Who says to have published. Read at every publish."""
        ...

    @property
    def wants_direct_reply(self) -> bool:
        """Whether REPLY_TO is where to reply: the publisher is its own consumer of replies. Read at every publish."""
        ...

    def replying_to(self, queue: str) -> Self:
        """Return these properties with the queue of that consumer as where to reply."""
        ...

    def with_headers(self, headers: Mapping[str, Any], *, expires: bool) -> Self:
        """Return these properties with `headers` too, and without expiration unless `expires`.

        Each is in place of theirs of the same name; one that is None is taken away.
        """
        ...


@dataclass(frozen=True, slots=True)
class BasicProperties:
    """The properties of AMQP 0-9-1, as Python values. Values of headers are those of `choreo.amqp.decode`."""

    content_type: str | None = None
    content_encoding: str | None = None
    headers: Mapping[str, Any] | None = None
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: datetime | FarTime | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    cluster_id: str | None = None

    @property
    def copies(self) -> tuple[list[Any], list[Any]] | None:
        """See Properties."""
        headers = self.headers
        if not headers or (CC not in headers and BCC not in headers):
            return None
        return headers.get(CC, []), headers.get(BCC, [])

    @property
    def wants_direct_reply(self) -> bool:
        """See Properties."""
        return self.reply_to == REPLY_TO

    def replying_to(self, queue: str) -> Self:
        """See Properties."""
        return replace(self, reply_to=queue)

    def with_headers(self, headers: Mapping[str, Any], *, expires: bool) -> Self:
        """See Properties."""
        merged = {**(self.headers or {}), **headers}
        kept = {name: value for name, value in merged.items() if value is not None or name not in headers}
        return replace(self, headers=kept, expiration=self.expiration if expires else None)


class Death(NamedTuple):
    """Why, where and how often a message was dead-lettered: one table of `x-death`.

    `time` is that of the first one, in seconds since 1970; `expiration` the message's own TTL then.
    """

    queue: str
    reason: str
    times: int
    time: float
    exchange: str
    routing_keys: tuple[str, ...]
    expiration: str | None


class Message(NamedTuple):
    """A message as it was published, or dead-lettered last.

    `keys`: the routing key, then those of CC and BCC; `hidden` are those of BCC. `ttl`: milliseconds until it expires,
    by its own property. `failures`: failed deliveries where it died, which the next queue goes on counting.
    `deaths`: the latest first. `first_death` and `last_death`: reason, queue and exchange.
    """

    exchange: str
    keys: tuple[str, ...]
    properties: Properties
    body: bytes
    ttl: int | None = None
    hidden: tuple[str, ...] = ()
    failures: int = 0
    deaths: tuple[Death, ...] = ()
    first_death: tuple[str, str, str] | None = None
    last_death: tuple[str, str, str] | None = None

    @classmethod
    def published(cls, exchange: str, routing_key: str, properties: Properties, body: bytes, user: str) -> Self:
        """Return the message that `user` publishes. Raises AmqpError 406 for properties that mean nothing."""
        expiration, sender, copies = properties.expiration, properties.user_id, properties.copies
        ttl = _milliseconds(expiration) if expiration else None
        keys: tuple[str, ...] = (routing_key,)
        hidden: tuple[str, ...] = ()
        if copies is not None:
            shown, hidden = (_keys(name, value) for name, value in zip((CC, BCC), copies, strict=True))
            keys = (routing_key, *shown, *hidden)
            if hidden:
                properties = properties.with_headers({BCC: None}, expires=True)
        if sender is not None and sender != user:
            raise AmqpError(406, f"user_id property set to '{sender}' but authenticated user was '{user}'")
        return cls(exchange, keys, properties, body, ttl, hidden)


def _keys(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise AmqpError(406, f'invalid message: {{unacceptable_type_in_header,"{name}",{field_type(value)}}}')
    return tuple(key for key in value if isinstance(key, str))


def _milliseconds(expiration: str) -> int:
    match = _EXPIRATION.fullmatch(expiration)
    value = int(match[1]) if match else 0
    if match is None:
        why = "no_integer"
    elif match[2]:
        why = f'{{leftover_string,"{match[2]}"}}'
    elif value < 0:
        why = f"{{value_negative,{value}}}"
    elif value > LONGEST:
        why = f"{{value_too_large,{value}}}"
    else:
        return value
    raise AmqpError(406, f"invalid expiration '{expiration}': {why}")
