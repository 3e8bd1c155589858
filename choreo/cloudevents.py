"""CloudEvents 1.0 beside our own way of them: structured mode, and times as RFC 3339 writes them. No I/O.

choreo sends binary mode: attributes in headers, the data as the body. A message of content type
`application/cloudevents+json` has all of it in its body, and is read as if it had come in binary mode. Source:
CloudEvents 1.0.2 and its JSON event format; RFC 3339 section 5.6.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final

from choreo.body.strict_json import strict_json
from choreo.errors import EnvelopeError
from choreo.message import CE, TRACEPARENT, TRACESTATE, VERSION, Message, Reason

STRUCTURED: Final = "application/cloudevents+json"
BATCH: Final = "application/cloudevents-batch+json"

_REQUIRED: Final = ("id", "source", "type")
_DATA: Final = ("data", "data_base64")
_TRACE: Final = (TRACEPARENT, TRACESTATE)
_SCHEMA: Final = re.compile(r"urn:choreo:.+:(\d{1,9})", re.ASCII)
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_TIME: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:)(\d\d)(?:\.(\d+))?(?:([Zz])|([+-])(\d\d):(\d\d))?", re.ASCII
)


def media_type(content_type: str) -> str:
    """Return a content type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def is_json(kind: str) -> bool:
    """Say whether a media type is JSON, of whatever kind."""
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def binary(message: Message) -> Message:
    """Return a message in structured mode as the same event in binary mode.

    What stands in the body counts before what stands in the headers, but for the trace, which there is the nearer one.
    Raises EnvelopeError for what is not a CloudEvent in JSON.
    """
    event = strict_json(message.body)
    if not isinstance(event, dict):
        raise _invalid(f"the body is {_kind(event)}, not an object")
    if (version := event.get("specversion")) != "1.0":
        raise _invalid(f"specversion is {version!r:.60}, only '1.0' is read")
    for name in _REQUIRED:
        if not (isinstance(event.get(name), str) and event[name]):
            raise _invalid(f"{name} is {event.get(name)!r:.60}, not a text with at least one character")
    headers = dict(message.headers)
    for name, value in event.items():
        if name in _DATA or value is None:
            continue
        if not isinstance(value, str | int):
            raise _invalid(f"the attribute {name!r:.60} is {_kind(value)}, not a text, a whole number or a boolean")
        if name in _TRACE:
            headers.setdefault(name, value)
        else:
            headers[CE + name] = value
    schema = _SCHEMA.fullmatch(str(event.get("dataschema", "")))
    if schema is not None:
        headers.setdefault(VERSION, int(schema[1]))
    return replace(message, body=_data(event, message.body), headers=headers, checked=False)


def _data(event: dict[str, Any], body: bytes) -> bytes:
    """Return the data as it came: number for number, not as Python would write it again."""
    if "data" in event and "data_base64" in event:
        raise _invalid("it has both data and data_base64")
    kind = event.get("datacontenttype")
    if not (kind is None or (isinstance(kind, str) and is_json(media_type(kind)))):
        raise EnvelopeError(
            Reason.CONTENT_TYPE, f"the structured CloudEvent's datacontenttype is {kind!r:.60}, only JSON is read"
        )
    if "data" in event:
        try:
            return _member(body.decode(), "data").encode()
        except RecursionError:
            raise _invalid("its data are too deep") from None
    coded = event.get("data_base64")
    if coded is None:
        return b""
    try:
        return base64.b64decode(coded, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise _invalid(f"data_base64 is {_kind(coded)} that is not Base64") from None


def _member(text: str, wanted: str) -> str:
    """Return the value of a key of the object that `text` is known to be, as it stands there."""
    decode = json.JSONDecoder().raw_decode

    def skip(at: int) -> int:
        found = _SPACE.match(text, at)
        assert found is not None
        return found.end()

    at = skip(0)
    while True:
        key, at = decode(text, skip(at + 1))  # behind the brace or the comma
        start = skip(skip(at) + 1)
        _, at = decode(text, start)
        if key == wanted:
            return text[start:at]
        at = skip(at)


def time(text: str) -> datetime:
    """Return a time in any spelling of RFC 3339, or of ISO 8601 as far as Python reads it. Raises ValueError.

    Small letters, fractions of any length (beyond microseconds they are cut) and leap seconds, which are the second
    after. Without a zone it is without one.
    """
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        found = _TIME.fullmatch(text)
        if found is None:
            raise
    date, minute, second, fraction, utc, sign, hours, minutes = found.groups()
    leap = second == "60"
    read = datetime.fromisoformat(f"{date}T{minute}{'59' if leap else second}.{(fraction or '')[:6]:0<6}")
    if utc is not None:
        read = read.replace(tzinfo=UTC)
    elif sign is not None:
        away = timedelta(hours=int(hours), minutes=int(minutes))
        read = read.replace(tzinfo=timezone(-away if sign == "-" else away))
    if leap:
        if (read - (read.utcoffset() or timedelta())).strftime("%H:%M") != "23:59":
            raise ValueError(f"{text!r} has a second 60, which only ends a day of UTC")
        read += timedelta(seconds=1)
    return read


def _kind(value: Any) -> str:
    """Return what a value of JSON is, in words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _invalid(why: str) -> EnvelopeError:
    return EnvelopeError(Reason.INVALID, f"the body is not a structured CloudEvent: {why}")
