"""A message as it stands on the wire: body, headers, properties; the names of all headers, how much is read of them.

Nothing here knows what an event is; `envelope` makes one of a message.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

MAX_BODY: Final = 1024 * 1024  # bytes
MAX_HEADERS: Final = 128  # entries
# Bytes of all headers. They travel in one frame, of 128 KiB by default, and a dead letter needs room for its notes.
MAX_HEADER_BYTES: Final = 64 * 1024
MAX_HEADER_DEPTH: Final = 32  # tables and lists within each other
MAX_TEXT: Final = 512  # characters of an id or another single header that choreo reads

# Headers that choreo writes and reads, named here and nowhere else.
CE: Final = "ce-"
CORRELATION: Final = "choreo-correlation"
CAUSATION: Final = "choreo-causation"
HOPS: Final = "choreo-hops"
TREE: Final = "choreo-tree"  # the product of how many events were emitted together at each hop; absent is 1
VERSION: Final = "choreo-version"
HIDDEN: Final = "choreo-secret"  # keys of the body, parted by commas, whose values no view shows; "*": all of it
ATTEMPT: Final = "choreo-attempt"  # tries made before this delivery
TOPIC: Final = "choreo-topic"  # the topic of an event that comes back from a delay or a replay
FIRST_FAILURE: Final = "choreo-first-failure"
TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
# What a retry or a dead letter must not have where the broker would act on it again, kept with its bytes: `expiration`,
# `user-id`, CC and BCC, and an account of dead-lettering elsewhere.
ASIDE: Final = "choreo-aside"
EXPIRATION: Final = "expiration"  # in it: milliseconds, as a text
# Two bytes for each of the publisher's headers: its place among them by name. RabbitMQ sorts them on a second delivery.
ORDER: Final = "choreo-order"

NOTE: Final = "choreo-dead-"  # how the names of a dead letter's notes begin

# Headers of RabbitMQ's own.
DELIVERY_COUNT: Final = "x-delivery-count"  # how often a message came back unsettled
ACQUIRED_COUNT: Final = "x-acquired-count"
STREAM_OFFSET: Final = "x-stream-offset"
DEATHS: Final = "x-death"  # each queue that a message died in, and why
FIRST_DEATH: Final = "x-first-death-"  # how the names begin
LAST_DEATH: Final = "x-last-death-"
CC: Final = "CC"  # further routing keys
BCC: Final = "BCC"

# What the broker adds to a message it has dead-lettered or redelivered. Copied on, `x-death` makes brokers before 4.0.1
# drop the message as a cycle, and CC/BCC would send it to further queues.
_BROKERS_OWN: Final = frozenset((DEATHS, DELIVERY_COUNT, ACQUIRED_COUNT, STREAM_OFFSET, CC, BCC))
_BROKERS_PREFIXES: Final = (FIRST_DEATH, LAST_DEATH)
# What choreo writes on a message that it sends once more, to itself; a dead letter's notes begin with NOTE.
_NOTES: Final = frozenset((ATTEMPT, TOPIC, FIRST_FAILURE, ASIDE, ORDER))
# The most bytes that each of them takes, and the id that a message without one gets: name, type, length and value.
_ROOM: Final = {
    ATTEMPT: 24,
    TOPIC: 280,
    FIRST_FAILURE: 64,
    ASIDE: 64,
    ORDER: 24 + 2 * MAX_HEADERS,
    CE + "id": 16 + 4 * MAX_TEXT,
}
_IDS: Final = frozenset((CE + "id", "cloudEvents:id", "cloudEvents_id"))

_LATEST: Final = 253_402_300_799  # seconds: the end of the year 9999, beyond which Python knows no dates


class Reason(StrEnum):
    """Why a message is dead-lettered."""

    TOO_LARGE = "too-large"
    CONTENT_TYPE = "content-type"
    HEADERS = "headers"
    UNDECODABLE = "undecodable"
    INVALID = "invalid"
    UNEXPECTED = "unexpected-topic"
    FAILED = "failed"
    EXHAUSTED = "exhausted"
    UNDECLARED = "undeclared-event"
    UNREADABLE = "unreadable-event"
    UNROUTABLE = "unroutable"
    REFUSED = "refused"
    LOOP = "loop"
    OVERDUE = "overdue"  # the broker took it back again and again while its reaction ran
    STALLED = "stalled"  # its reaction kept the process from its heartbeats, again and again
    CRASHED = "crashed"  # written by the broker: its delivery limit was reached
    EXPIRED = "expired"  # written by the broker: nobody has read it in its queue before its time to live was over
    UNCLAIMED = "unclaimed"  # back from a delay: its queue was gone, or nobody was bound to a scheduled event


class FarTime(int):
    """Seconds since 1970 that no datetime reaches; some clients write milliseconds where AMQP has seconds."""


@lru_cache(maxsize=256)  # messages of one second mostly come together
def moment(seconds: int) -> datetime | FarTime:
    """Return what a timestamp on the wire says, which is not negative."""
    return datetime.fromtimestamp(seconds, UTC) if seconds <= _LATEST else FarTime(seconds)


@dataclass(slots=True)
class Message:
    """A message as it stands on the wire: body, headers and the AMQP properties that survive a republish.

    Texts that came in another encoding than UTF-8 hold their bytes as surrogate escapes. `unread`: the bytes of headers
    that cannot be read. `checked`: the headers are known to have no excess. `raw`: the properties as they came; when it
    is published again, what is not another one by then is written with the bytes that it came with. `expiration`: the
    time to live in milliseconds that one which came from the wire gets anew; None for none, whatever it came with.
    """

    body: bytes
    headers: dict[str, Any] = field(default_factory=dict)
    content_type: str | None = "application/json"
    content_encoding: str | None = None
    message_id: str | None = None
    correlation_id: str | None = None
    type: str | None = None
    app_id: str | None = None
    reply_to: str | None = None
    priority: int | None = None
    timestamp: datetime | FarTime | None = None
    unread: bytes | None = None
    raw: bytes | None = field(default=None, compare=False, repr=False)
    checked: bool = False
    expiration: str | None = None

    def forwarded(self, headers: Mapping[str, Any], without: Collection[str] = ()) -> Message:
        """Return a copy to publish again, without what the broker added to it, and with `headers` set.

        Those named in `without` are taken out.
        """
        kept = {
            key: value
            for key, value in self.headers.items()
            if key not in _BROKERS_OWN and not key.startswith(_BROKERS_PREFIXES)
        }
        for key in without:
            kept.pop(key, None)
        return replace(self, headers=kept | dict(headers), checked=False)


def identity(message: Message, topic: str) -> str:
    """Return an id for a message that came without one: 32 hexadecimal digits that follow from what it is.

    So every agent that gets it, each redelivery, retry and replay, and a dead letter of the broker's own give it the
    same. It follows from topic, body, properties and headers, but for what broker and choreo write on the way. Two
    messages that are equal in all of that are one event.
    """
    said = _said_place(
        topic,
        message.content_type,
        message.content_encoding,
        message.correlation_id,
        message.type,
        message.app_id,
        message.reply_to,
        message.priority,
    )
    headers = _said_headers(message.headers) if message.headers else []
    if headers or message.timestamp is not None or message.unread is not None:
        said += ascii((headers, _said(message.timestamp), message.unread)).encode()
    return blake2b(b"%b\0%b" % (said, message.body), digest_size=16).hexdigest()


@lru_cache(maxsize=1024)  # of most messages without an id nothing but the body differs
def _said_place(*place: str | int | None) -> bytes:
    return ascii(place).encode()


def _said_headers(headers: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return what the publisher has written, in an order of its own and without an id that is none."""
    theirs = {name: _said(value) for name, value in headers.items() if not (_added(name) or name in _IDS)}
    return sorted(theirs.items())


def is_note(name: str) -> bool:
    """Say whether a header is one that choreo writes on a message that it sends once more, or on a dead letter."""
    return name in _NOTES or name.startswith(NOTE)


def _added(name: str) -> bool:
    """Say whether a header is one that broker or choreo write on the way."""
    return name in _BROKERS_OWN or is_note(name) or name.startswith(_BROKERS_PREFIXES)


def _said(value: Any) -> Any:
    """Return a value in a form that `ascii` writes alike wherever it runs."""
    match value:
        case FarTime():
            return "time", value
        case datetime():
            return "time", int((value if value.tzinfo is not None else value.replace(tzinfo=UTC)).timestamp())
        case dict():
            return "table", sorted((name, _said(each)) for name, each in value.items())
        case list():
            return [_said(each) for each in value]
        case bytearray() | memoryview():
            return "bytes", bytes(value)
    return value


def growth(message: Message) -> int:
    """Return how many bytes of headers a retry of `message` may have more than it, at most."""
    return sum(room for name, room in _ROOM.items() if name not in message.headers)


def excess(headers: Mapping[str, Any]) -> str:
    """Return what `headers` have more of than is read, in words; nothing when they keep the limits.

    What broker and choreo write on the way does not count: what was read once is read on every attempt.
    """
    if not _excess(headers):
        return ""
    return _excess({name: value for name, value in headers.items() if not (_added(name) or name in _IDS)})


def _excess(headers: Mapping[str, Any]) -> str:
    if len(headers) > MAX_HEADERS:
        return f"the message has {len(headers)} headers, at most {MAX_HEADERS} are read"
    size, depth = measure(headers)
    if size > MAX_HEADER_BYTES or depth > MAX_HEADER_DEPTH:
        most = f"at most {MAX_HEADER_BYTES} in {MAX_HEADER_DEPTH} are read"
        return f"the headers have about {size} bytes in {depth} levels, {most}"
    return ""


def measure(headers: Mapping[str, Any]) -> tuple[int, int]:
    """Return about how many bytes `headers` take on the wire, and how many levels deep they are."""
    size, deepest, rest = sum(map(len, headers)) + 6 * len(headers), min(1, len(headers)), []
    for value in headers.values():
        if type(value) is str:  # most headers, and all of most messages
            size += len(value)
        elif type(value) is int:
            size += 8
        else:
            rest.append(("", value, 1))
            size -= 6
    while rest:
        name, value, depth = rest.pop()
        size += len(name) + 6
        deepest = max(deepest, depth)
        if isinstance(value, str | bytes | bytearray):
            size += len(value)
        elif isinstance(value, Mapping):
            rest.extend((inner, each, depth + 1) for inner, each in value.items())
        elif isinstance(value, list):
            rest.extend(("", each, depth + 1) for each in value)
        else:
            size += 8
    return size, deepest
