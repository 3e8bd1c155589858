"""The arguments of a queue: what each may be, which belong to which type of queue, what two declarations must share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple

from choreo.broker.core.failure import AmqpError, field_type
from choreo.broker.core.message import LONGEST

QueueType = Literal["classic", "quorum", "stream"]

_AGE: Final = re.compile(r"([1-9][0-9]*)([YMDhms])")
_UNITS: Final = {"Y": 365 * 86400, "M": 30 * 86400, "D": 86400, "h": 3600, "m": 60, "s": 1}
_COMMON: Final = (
    "x-expires",
    "x-message-ttl",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-max-length",
    "x-max-length-bytes",
    "x-overflow",
    "x-single-active-consumer",
)
# In the order in which RabbitMQ compares them.
OF_TYPE: Final[dict[QueueType, tuple[str, ...]]] = {
    "classic": (
        *_COMMON[:6],
        "x-max-priority",
        "x-overflow",
        "x-queue-mode",
        "x-queue-version",
        "x-single-active-consumer",
        "x-queue-type",
        "x-queue-master-locator",
        "x-queue-leader-locator",
    ),
    "quorum": (
        *("x-dead-letter-exchange", "x-dead-letter-routing-key", "x-dead-letter-strategy", "x-expires"),
        *("x-max-length", "x-max-length-bytes", "x-max-in-memory-length", "x-max-in-memory-bytes", "x-overflow"),
        *("x-single-active-consumer", "x-queue-type", "x-quorum-initial-group-size", "x-delivery-limit"),
        *("x-message-ttl", "x-queue-leader-locator", "x-consumer-disconnected-timeout", "x-consumer-timeout"),
        *("x-delayed-retry-type", "x-delayed-retry-min", "x-delayed-retry-max"),
    ),
    "stream": (
        *("x-max-length-bytes", "x-queue-type", "x-max-age", "x-stream-max-segment-size-bytes"),
        *("x-stream-filter-size-bytes", "x-initial-cluster-size", "x-queue-leader-locator"),
    ),
}
_ALL: Final = frozenset(name for names in OF_TYPE.values() for name in names)


class Terms(NamedTuple):
    """What the arguments of a queue say; times are in seconds, sizes in bytes, None is no limit."""

    type: QueueType
    expires: float | None
    ttl: float | None
    dead_letter_exchange: str | None
    dead_letter_key: str | None
    at_least_once: bool
    max_length: int | None
    max_bytes: int | None
    overflow: str
    single_active: bool
    max_priority: int | None
    delivery_limit: int | None
    max_age: float | None
    segment: int

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Terms:
        """Return what valid arguments say."""
        get = arguments.get
        quorum = get("x-queue-type") == "quorum"
        overflow = get("x-overflow", "drop-head")
        if quorum and overflow == "reject-publish-dlx":
            overflow = "drop-head"
        limit = get("x-delivery-limit", 20) if quorum else None
        return cls(
            type=get("x-queue-type", "classic"),
            expires=_seconds(get("x-expires")),
            ttl=_seconds(get("x-message-ttl")),
            dead_letter_exchange=get("x-dead-letter-exchange"),
            dead_letter_key=get("x-dead-letter-routing-key"),
            at_least_once=get("x-dead-letter-strategy") == "at-least-once" and overflow == "reject-publish",
            max_length=get("x-max-length"),
            max_bytes=get("x-max-length-bytes"),
            overflow=overflow,
            single_active=get("x-single-active-consumer", False),
            max_priority=get("x-max-priority"),
            delivery_limit=limit if isinstance(limit, int) and limit >= 0 else None,
            max_age=age(get("x-max-age", "")),
            segment=get("x-stream-max-segment-size-bytes", 500_000_000),
        )


def age(text: str) -> float | None:
    """Return the seconds of a length of time as streams have it, such as 7D; None for anything else."""
    match = _AGE.fullmatch(text)
    return float(match[1]) * _UNITS[match[2]] if match else None


def check(queue: str, arguments: Mapping[str, Any], *, durable: bool, exclusive: bool, auto_delete: bool) -> None:
    """Raise AmqpError 406 or 540 for a declaration that no new queue can have; `queue` is as errors name it."""
    for name in ("x-dead-letter-exchange", "x-dead-letter-routing-key"):
        if name in arguments and not isinstance(arguments[name], str):
            raise AmqpError(406, f"invalid type '{field_type(arguments[name])}' for arg '{name}' in {queue}")
    _check_value(queue, "x-queue-type", arguments)
    kind: QueueType = arguments["x-queue-type"]
    _check_values(queue, kind, arguments)
    if kind == "classic":
        return
    for wrong, name in ((not durable, "non-durable"), (auto_delete, "auto-delete"), (exclusive, "exclusive-owner")):
        if wrong:
            raise AmqpError(406, f"invalid property '{name}' for {queue}")
    if arguments.get("x-stream-max-segment-size-bytes", 0) > 3_000_000_000:
        raise AmqpError(406, "Exceeded max value for x-stream-max-segment-size-bytes")


def _check_values(queue: str, kind: QueueType, arguments: Mapping[str, Any]) -> None:
    for name in _CHECKS:
        if name in OF_TYPE[kind]:
            _check_value(queue, name, arguments)
    for name in arguments:
        if name in _ALL and name not in OF_TYPE[kind]:
            raise AmqpError(406, f"invalid arg '{name}' for {queue} of queue type rabbit_{kind}_queue")
        if name.startswith("x-delayed-retry-"):
            raise AmqpError(540, f"the embedded broker does not support '{name}' ({queue})")


def check_consumer(queue: str, kind: QueueType, arguments: Mapping[str, Any]) -> None:
    """Raise AmqpError 406 for arguments that no consumer of a queue of this type can have."""
    if "x-priority" in arguments and (why := _integer(arguments["x-priority"], arguments)):
        raise AmqpError(406, f"invalid arg 'x-priority' for {queue}: {why}")
    allowed = (
        ("x-stream-offset", "x-stream-filter", "x-stream-match-unfiltered") if kind == "stream" else ("x-priority",)
    )
    for name in ("x-priority", "x-stream-offset", "x-stream-filter", "x-stream-match-unfiltered"):
        if name in arguments and name not in allowed:
            raise AmqpError(406, f"invalid arg '{name}' for {queue} of queue type rabbit_{kind}_queue")


def compare(thing: str, current: Mapping[str, Any], received: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Raise AmqpError 406 for the first of `names` in which two declarations of `thing` differ."""
    for name in names:
        one, other = received.get(name), current.get(name)
        if one == other and isinstance(one, bool) == isinstance(other, bool):
            continue
        both = one is not None and other is not None
        words = f"received {_said(one, both=both)} but current is {_said(other, both=both)}"
        raise AmqpError(406, f"inequivalent arg '{name}' for {thing}: {words}")


def _said(value: object, *, both: bool) -> str:
    if value is None:
        return "none"
    text = str(value).lower() if isinstance(value, bool) else value
    return f"'{text}'" if both else f"the value '{text}' of type '{field_type(value)}'"


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _check_value(queue: str, name: str, arguments: Mapping[str, Any]) -> None:
    if name in arguments and (why := _CHECKS[name](arguments[name], arguments)):
        raise AmqpError(406, f"invalid arg '{name}' for {queue}: {why}")


def _integer(value: object, _: Mapping[str, Any]) -> str:
    kind = field_type(value)
    return "" if kind in ("signedint", "long") else f'"expected integer, got {kind}"'


def _natural(value: Any, arguments: Mapping[str, Any]) -> str:
    return _integer(value, arguments) or (f"{{value_negative,{value}}}" if value < 0 else "")


def _duration(value: Any, arguments: Mapping[str, Any]) -> str:
    return _natural(value, arguments) or (f"{{value_too_large,{value}}}" if value > LONGEST else "")


def _expires(value: Any, arguments: Mapping[str, Any]) -> str:
    return _duration(value, arguments) or ("{value_zero,0}" if value == 0 else "")


def _priority(value: Any, arguments: Mapping[str, Any]) -> str:
    return _natural(value, arguments) or (f"{{max_value_exceeded,{value}}}" if value > 255 else "")


def _flag(value: object, _: Mapping[str, Any]) -> str:
    return "" if isinstance(value, bool) else f"{{unacceptable_type,{field_type(value)}}}"


def _text(value: object, _: Mapping[str, Any]) -> str:
    return "" if isinstance(value, str) else f"{{unacceptable_type,{field_type(value)}}}"


def _key(_: object, arguments: Mapping[str, Any]) -> str:
    return "" if "x-dead-letter-exchange" in arguments else "routing_key_but_no_dlx_defined"


def _one_of(wrong: str, *allowed: str) -> Callable[[Any, Mapping[str, Any]], str]:
    def check_one(value: Any, arguments: Mapping[str, Any]) -> str:
        return _text(value, arguments) or ("" if value in allowed else wrong.format(value))

    return check_one


def _age(value: Any, arguments: Mapping[str, Any]) -> str:
    return _text(value, arguments) or ("" if age(value) else "invalid_max_age")


# In the order in which RabbitMQ checks them.
_CHECKS: Final[dict[str, Callable[[Any, Mapping[str, Any]], str]]] = {
    "x-expires": _expires,
    "x-message-ttl": _duration,
    "x-dead-letter-exchange": _text,
    "x-dead-letter-routing-key": _key,
    "x-dead-letter-strategy": _one_of("invalid_dlx_strategy", "at-most-once", "at-least-once"),
    "x-max-length": _natural,
    "x-max-length-bytes": _natural,
    "x-max-priority": _priority,
    "x-overflow": _one_of("invalid_overflow", "drop-head", "reject-publish", "reject-publish-dlx"),
    "x-single-active-consumer": _flag,
    "x-queue-type": _one_of("\"unsupported queue type '{}'\"", "classic", "quorum", "stream"),
    "x-max-age": _age,
    "x-stream-max-segment-size-bytes": _natural,
}
