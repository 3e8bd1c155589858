"""The envelope of an event: ids and headers, and the way between bytes and events. No I/O.

CloudEvents 1.0 attributes travel as AMQP headers with the prefix `ce-` (`cloudEvents:` and `cloudEvents_` are read
too), trace context as plain `traceparent`/`tracestate`, the rest as `choreo-*`. The body is the event as JSON and
nothing else, so that a participant in any language needs nothing but an AMQP client: a message with a JSON body and a
routing key is a whole event. Source: CloudEvents 1.0.2, AMQP protocol binding; W3C Trace Context.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from secrets import token_hex
from typing import Any, Final, NamedTuple, TypeVar

from pydantic_core import to_json

from choreo import clock, cloudevents
from choreo.body.strict_json import strict_json
from choreo.cloudevents import STRUCTURED
from choreo.errors import EnvelopeError
from choreo.event import Declaration, Event, codec, declaration
from choreo.message import (
    ATTEMPT,
    CAUSATION,
    CE,
    CORRELATION,
    FIRST_FAILURE,
    HIDDEN,
    HOPS,
    MAX_BODY,
    MAX_TEXT,
    TOPIC,
    TRACEPARENT,
    TRACESTATE,
    TREE,
    VERSION,
    FarTime,
    Message,
    Reason,
    excess,
    growth,
    identity,
    measure,
)

_ID, _SOURCE, _TIME = (CE + attribute for attribute in ("id", "source", "time"))
_OTHER_IDS, _OTHER_SOURCES = (
    tuple(prefix + attribute for prefix in ("cloudEvents:", "cloudEvents_")) for attribute in ("id", "source")
)

SMALL: Final = 1024  # bytes of properties that any frame has room for, whatever a retry adds
_FRAMING: Final = 32  # bytes of a frame that holds properties, besides them

E = TypeVar("E", bound=Event)


class Envelope(NamedTuple):
    """One opened message. A reaction to a wildcard subscription gets it in place of an event.

    `attempt` counts tries from 1. `causation_id` is None for an event that no event caused, `version` is None when the
    publisher named no schema version. `body` is the JSON as it came, checked only for size and content type; of a
    structured CloudEvent it is the `data`.
    `tree` is the product of how many events were emitted together at each hop on the way here. However they branch, the
    events of one transaction at one distance, each counted as 1/tree, add up to 1 at most (Kraft's inequality): below a
    limit on `tree` there are no more of them than that limit, where one agent reacts to each.
    """

    id: str
    topic: str
    source: str | None
    time: datetime | None
    correlation_id: str
    causation_id: str | None
    hops: int
    version: int | None
    attempt: int
    first_failure: datetime | None
    traceparent: str | None
    tracestate: str | None
    body: bytes
    headers: Mapping[str, Any]
    tree: int = 1

    def json(self) -> Any:
        """Return the body as Python values. Raises EnvelopeError for what is not strict JSON."""
        return strict_json(self.body)

    def event(self, kind: type[E]) -> E:
        """Return the body as an event of class `kind`, lifted from an older schema version where that is needed.

        Raises EnvelopeError with reason `undecodable` for what is not JSON, `invalid` for JSON that is not such an
        event.
        """
        body = self.body
        if self.version is not None and self.version < (declared := declaration(kind)).version:
            fields = strict_json(body)
            if isinstance(fields, dict):
                body = _lifted(declared, fields, self.version)
        return codec(kind).read(body, self.topic, self.id)


def open_envelope(message: Message, topic: str, *, max_body: int = MAX_BODY) -> Envelope:
    """Read the envelope of `message`, which arrived with `topic`.

    A message without an id gets one that follows from what it is, the same for every agent and at every delivery; one
    without a correlation starts a transaction of its own. Raises EnvelopeError: body above `max_body` bytes, a content
    type other than JSON, headers that are not what they claim, a structured CloudEvent that is none.
    """
    body, headers = message.body, message.headers
    if len(body) > max_body:
        raise EnvelopeError(Reason.TOO_LARGE, f"the body has {len(body)} bytes, at most {max_body} are read")
    structured = message.content_type != "application/json" and _media_type(message.content_type) == STRUCTURED
    if message.content_encoding and message.content_encoding.lower() not in ("utf-8", "identity"):
        raise EnvelopeError(
            Reason.CONTENT_TYPE,
            f"the content encoding is {message.content_encoding!r:.60}, only plain UTF-8 is read",
        )
    if message.unread is not None:
        raise EnvelopeError(
            Reason.HEADERS, f"the headers, {len(message.unread)} bytes, cannot be read as AMQP has them"
        )
    if structured:
        message = cloudevents.binary(message)
        body, headers = message.body, message.headers
    if not headers:  # of a client that knows nothing of choreo
        event_id = _text("message-id", message.message_id) or identity(message, topic)
        source, sent = _text("app-id", message.app_id), _aware(message.timestamp)
        correlation_id = _text("correlation-id", message.correlation_id) or event_id
        return Envelope(
            event_id, topic, source, sent, correlation_id, None, 0, None, 1, None, None, None, body, headers
        )
    if not message.checked and (much := excess(headers)):
        raise EnvelopeError(Reason.HEADERS, much)
    # Most messages have few of these: what is absent costs no call.
    get = headers.get
    event_id = (
        _text(_ID, get(_ID))
        or _first(headers, _OTHER_IDS)
        or _text("message-id", message.message_id)
        or identity(message, topic)
    )
    # In the order of the fields, and by _make: by keyword this takes three times as long.
    return Envelope._make(
        (
            event_id,
            topic,
            _text(_SOURCE, get(_SOURCE)) or _first(headers, _OTHER_SOURCES) or _text("app-id", message.app_id),
            _aware(message.timestamp) if (value := get(_TIME)) is None else _time(_TIME, value),
            _text(CORRELATION, get(CORRELATION)) or _text("correlation-id", message.correlation_id) or event_id,
            None if (value := get(CAUSATION)) is None else _text(CAUSATION, value),
            0 if (value := get(HOPS)) is None else _count(HOPS, value),
            None if (value := get(VERSION)) is None else _count(VERSION, value),
            1 if (value := get(ATTEMPT)) is None else _count(ATTEMPT, value) + 1,
            None if (value := get(FIRST_FAILURE)) is None else _time(FIRST_FAILURE, value),
            None if (value := get(TRACEPARENT)) is None else _trace(value),
            None if (value := get(TRACESTATE)) is None else _trace(value),
            body,
            headers,
            1 if (value := get(TREE)) is None else _count(TREE, value) or 1,
        )
    )


def returned_topic(message: Message) -> str:
    """Return the topic of an event that came back from a delay or a replay, in the form of a routing key."""
    topic = message.headers.get(TOPIC, "")
    return topic.decode("utf-8", "surrogateescape") if isinstance(topic, bytes) else str(topic)


def require_room(message: Message, frame_max: int) -> None:
    """Raise EnvelopeError for headers that a retry could not be sent with: better never run than once and not again."""
    size = len(message.raw) if message.raw is not None else measure(message.headers)[0]
    room = frame_max - _FRAMING - growth(message)
    if size > max(room, SMALL):
        raise EnvelopeError(
            Reason.HEADERS,
            f"the properties have {size} bytes; of a frame of {frame_max} a retry leaves {room} for them",
        )


def seal(
    event: Event,
    *,
    source: str,
    event_id: str | None = None,
    correlation_id: str | None = None,
    cause: Envelope | None = None,
    siblings: int = 1,
) -> Message:
    """Return `event` as a message to publish. With `cause`, it belongs to the cause's transaction, one hop further.

    `siblings`: how many events are emitted together for that cause, this one included. Raises UnreadableEvent when its
    readers would read another event.
    """
    declared = declaration(event)
    found = event.__choreo_codec__ or codec(type(event))
    message = enclose(
        found.write(event),
        declared.topic,
        declared.version,
        source=source,
        event_id=event_id,
        correlation_id=correlation_id,
        cause=cause,
        siblings=siblings,
    )
    if found.secrets:
        message.headers[HIDDEN] = found.secret_keys
    return message


def enclose(
    body: bytes,
    topic: str,
    version: int | None = None,
    *,
    source: str,
    event_id: str | None = None,
    correlation_id: str | None = None,
    cause: Envelope | None = None,
    siblings: int = 1,
) -> Message:
    """Return a body that is JSON already as a message to publish; `version` None says nothing of its schema.

    Raises EnvelopeError for an id that no receiver would read.
    """
    event_id = _text("the event id", event_id) or new_id()
    now = clock.now()
    headers: dict[str, Any] = {
        "ce-specversion": "1.0",
        "ce-id": event_id,
        "ce-source": source,
        "ce-type": topic,
        "ce-time": now.isoformat(),
    }
    if version is not None:
        headers["ce-dataschema"] = f"urn:choreo:{topic}:{version}"
        headers[VERSION] = version
    if cause is None:
        correlation_id = _text("the correlation id", correlation_id) or event_id
    else:
        correlation_id = cause.correlation_id
        headers[CAUSATION] = cause.id
        headers[HOPS] = cause.hops + 1
        if cause.tree * siblings > 1:
            headers[TREE] = cause.tree * siblings
        if cause.traceparent:
            headers[TRACEPARENT] = cause.traceparent
            if cause.tracestate:
                headers[TRACESTATE] = cause.tracestate
    headers[CORRELATION] = correlation_id
    return Message(
        body=body,
        headers=headers,
        message_id=_short(event_id),
        correlation_id=_short(correlation_id),
        type=topic,
        app_id=source,
        timestamp=now,
    )


def new_id() -> str:
    """Return an id for an event that nothing caused: 32 random hexadecimal digits."""
    return token_hex(16)


def derived_id(cause: str, agent: str, reaction: str, index: int) -> str:
    """Return the id of the event number `index` that `reaction` emits for `cause`: a redelivery emits the same ids."""
    return blake2b(f"{cause}\0{agent}\0{reaction}\0{index}".encode(), digest_size=16).hexdigest()


def _lifted(declared: Declaration, body: dict[str, Any], version: int) -> bytes:
    try:
        return to_json(declared.lift(body, version))
    except Exception as error:
        raise EnvelopeError(
            Reason.INVALID, f"the upcast of {declared.topic} from version {version} failed: {error!r:.200}"
        ) from error


def _media_type(content_type: str | None) -> str:
    """Return a content type without its parameters. Raises EnvelopeError for what choreo does not read."""
    if not content_type:
        return ""
    kind = cloudevents.media_type(content_type)
    if kind == cloudevents.BATCH:
        raise EnvelopeError(
            Reason.CONTENT_TYPE,
            f"the content type is {kind}: a batch of CloudEvents is not read; send each event as a message of its own",
        )
    if not cloudevents.is_json(kind):
        raise EnvelopeError(
            Reason.CONTENT_TYPE, f"the content type is {content_type!r:.60}, only application/json is read"
        )
    return kind


def _first(headers: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    for name in names:
        value = headers.get(name)
        if value is not None:
            return _text(name, value)
    return None


def _text(name: str, value: Any) -> str | None:
    if value is None or value == "":
        return None
    if type(value) is not str or len(value) > MAX_TEXT or not value.isprintable():
        raise EnvelopeError(
            Reason.HEADERS, f"{name} is {value!r:.60}, not a text of at most {MAX_TEXT} printable characters"
        )
    return value


def _short(text: str) -> str:
    """Return as much of `text` as an AMQP short string holds; the whole stands in a header."""
    return text if len(text) < 64 else text.encode()[:255].decode(errors="ignore")


def _trace(value: Any) -> str | None:
    """Return a header of W3C Trace Context, None when it cannot be used: a bad trace must not cost an event."""
    return value if type(value) is str and 0 < len(value) <= MAX_TEXT and value.isprintable() else None


def _count(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise EnvelopeError(Reason.HEADERS, f"{name} is {value!r:.60}, not a whole number from 0")
    return value


def _time(name: str, value: Any) -> datetime | None:
    try:
        return _aware(cloudevents.time(value) if type(value) is str else value)
    except (TypeError, ValueError, AttributeError, OverflowError):
        raise EnvelopeError(
            Reason.HEADERS, f"{name} is {value!r:.60}, not a time such as 2026-01-31T12:00:00Z"
        ) from None


def _aware(time: datetime | FarTime | None) -> datetime | None:
    if isinstance(time, FarTime):
        try:
            return datetime.fromtimestamp(time / 1000, UTC)
        except (ValueError, OverflowError, OSError):
            raise EnvelopeError(Reason.HEADERS, f"the time {time:d} is in no calendar") from None
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time
