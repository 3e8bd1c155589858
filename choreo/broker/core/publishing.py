"""What a publisher gives, as a message: its routing keys and its time to live; and what nobody can publish."""

from __future__ import annotations

import re
from typing import Any, Final

from choreo.broker.core.exchanges import field_type
from choreo.broker.core.failure import AmqpError
from choreo.broker.core.message import Message, Properties

LONGEST: Final = 315_360_000_000  # milliseconds of any length of time: ten years
_EXPIRATION: Final = re.compile(r"([+-]?[0-9]+)(.*)", re.DOTALL)


def published(exchange: str, routing_key: str, properties: Properties, body: bytes, user: str) -> Message:
    """Return the message that `user` publishes. Raises AmqpError 406 for properties that mean nothing."""
    expiration, sender, copies = properties.expiration, properties.user_id, properties.copies
    ttl = _milliseconds(expiration) if expiration else None
    keys: tuple[str, ...] = (routing_key,)
    hidden: tuple[str, ...] = ()
    if copies is not None:
        shown, hidden = (_keys(name, value) for name, value in zip(("CC", "BCC"), copies, strict=True))
        keys = (routing_key, *shown, *hidden)
        if hidden:
            properties = properties.with_headers({"BCC": None}, expires=True)
    if sender is not None and sender != user:
        raise AmqpError(406, f"user_id property set to '{sender}' but authenticated user was '{user}'")
    return Message(exchange, keys, properties, body, ttl, hidden)


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
