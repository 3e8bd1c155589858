"""CloudEvents in structured mode, and times in every spelling of RFC 3339."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo import cloudevents
from choreo.body.strict_json import strict_json
from choreo.envelope import Envelope, open_envelope, seal
from choreo.errors import EnvelopeError
from choreo.event import Event, upcast
from choreo.message import MAX_HEADERS, Message, Reason

TOPIC = "test-cloudevents.paid"


class Paid(Event, topic=TOPIC, version=2):
    """Money has come in."""

    order: str
    total: Decimal = Decimal(0)
    currency: str = "USD"

    @upcast(from_version=1)
    @staticmethod
    def euros(body: dict[str, Any]) -> dict[str, Any]:
        return body | {"currency": "EUR"}


EVENT = {"specversion": "1.0", "id": "e-1", "source": "/shop", "type": "paid", "data": {"order": "7"}}


def structured(changes: dict[str, Any] | None = None, without: str = "", **properties: Any) -> Message:
    body = {name: value for name, value in (EVENT | (changes or {})).items() if name != without}
    return Message(json.dumps(body).encode(), content_type="application/cloudevents+json; charset=UTF-8", **properties)


def failure(message: Message) -> EnvelopeError:
    with pytest.raises(EnvelopeError) as caught:
        open_envelope(message, TOPIC).event(Paid)
    return caught.value


def test_attributes_and_data_of_a_structured_event_are_read() -> None:
    """It is the event that it would be in binary mode, with all its attributes among the headers."""
    extensions = {"subject": "order 7", "traceparent": "00-1-2-01", "tracestate": "a=1", "partition": 3, "hot": True}
    message = structured(
        {"time": "2026-01-31T12:00:00z", "comexampleothervalue": None} | extensions, correlation_id="c"
    )
    opened = open_envelope(message, TOPIC)
    assert opened.event(Paid) == Paid(order="7")
    assert (opened.id, opened.source, opened.correlation_id) == ("e-1", "/shop", "c")
    assert opened.time == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert (opened.traceparent, opened.tracestate) == ("00-1-2-01", "a=1")
    assert opened.headers["ce-subject"] == "order 7"
    assert (opened.headers["ce-partition"], opened.headers["ce-hot"]) == (3, True)
    assert "ce-comexampleothervalue" not in opened.headers
    assert opened.json() == {"order": "7"}


def test_what_choreo_writes_on_its_way_counts_beside_the_body() -> None:
    """A retry keeps the body and tells its tries in headers; the id stays the body's."""
    headers = {"choreo-attempt": 2, "choreo-hops": 3, "ce-id": "e-1", "traceparent": "00-near"}
    opened = open_envelope(structured({"traceparent": "00-far"}, headers=headers), TOPIC)
    assert (opened.id, opened.attempt, opened.hops, opened.traceparent) == ("e-1", 3, 3, "00-near")


def test_data_are_read_as_they_stand_there() -> None:
    """No digit of a number is lost, whatever the whitespace and wherever the member stands."""
    body = """ {"specversion" : "1.0",
        "d\\u0061ta" : {"order": "7 \\" }", "total": 1.000000000000000000000000000010} ,
        "id":"e-1","source":"/shop","type":"paid"}  """.replace("\\\\", "\\")
    opened = open_envelope(Message(body.encode(), content_type="application/cloudevents+json"), TOPIC)
    assert b'"total": 1.000000000000000000000000000010}' in opened.body
    assert opened.event(Paid).order == '7 " }'


def test_data_in_base64_are_read() -> None:
    data = base64.b64encode(b'{"order": "8"}').decode()
    message = structured({"data_base64": data, "datacontenttype": "application/vnd.shop+json"}, without="data")
    assert open_envelope(message, TOPIC).event(Paid).order == "8"


def test_older_data_are_lifted() -> None:
    """A bridge that makes structured events of choreo's has the version in `dataschema` alone."""
    opened = open_envelope(structured({"dataschema": f"urn:choreo:{TOPIC}:1"}), TOPIC)
    assert (opened.version, opened.event(Paid).currency) == (1, "EUR")
    assert open_envelope(structured({"dataschema": "https://shop/1"}), TOPIC).version is None


JSON_MODE = "application/cloudevents+json"


@pytest.mark.parametrize(
    ("message", "reason", "text"),
    [
        (structured(without="specversion"), Reason.INVALID, "specversion is None, only '1.0' is read"),
        (structured({"specversion": "0.3"}), Reason.INVALID, "specversion is '0.3'"),
        (structured(without="id"), Reason.INVALID, "id is None, not a text with at least one character"),
        (structured({"source": ""}), Reason.INVALID, "source is ''"),
        (structured({"type": 5}), Reason.INVALID, "type is 5"),
        (structured({"id": "x" * 513}), Reason.HEADERS, "ce-id is 'xxx"),
        (structured({"shop": {"a": 1}}), Reason.INVALID, "the attribute 'shop' is an object"),
        (structured({"ratio": 0.5}), Reason.INVALID, "the attribute 'ratio' is a number"),
        (structured({"time": "yesterday"}), Reason.HEADERS, "ce-time is 'yesterday'"),
        (structured({f"x{n}": 1 for n in range(MAX_HEADERS)}), Reason.HEADERS, "at most 128 are read"),
        (structured({"data_base64": "e30="}), Reason.INVALID, "both data and data_base64"),
        (structured({"data_base64": "e3 0"}, "data"), Reason.INVALID, "data_base64 is a text that is not Base64"),
        (structured({"data_base64": 7}, "data"), Reason.INVALID, "data_base64 is a number"),
        (structured({"datacontenttype": "text/xml"}), Reason.CONTENT_TYPE, "datacontenttype is 'text/xml'"),
        (structured({"datacontenttype": 1}), Reason.CONTENT_TYPE, "datacontenttype is 1"),
        (structured({"data": {"order": 7}}), Reason.INVALID, "is not a valid Paid: order"),
        (structured(without="data"), Reason.UNDECODABLE, "the body is not JSON"),
        (Message(b"[]", content_type=JSON_MODE), Reason.INVALID, "the body is a list, not an object"),
        (Message(b"{", content_type=JSON_MODE), Reason.UNDECODABLE, "the body is not JSON"),
        (Message(b'{"id": 1, "id": 1}', content_type=JSON_MODE), Reason.UNDECODABLE, "'id' twice"),
        (Message(b"[]", content_type=cloudevents.BATCH), Reason.CONTENT_TYPE, "a message of its own"),
    ],
)
def test_what_is_no_structured_event_says_why(message: Message, reason: Reason, text: str) -> None:
    error = failure(message)
    assert error.reason == reason
    assert text in error.message


def test_deep_data_cost_nothing_but_the_event() -> None:
    for depth in (900, 990, 995, 1_000, 100_000):
        body = json.dumps(EVENT | {"data": 0}).replace('"data": 0', f'"data": {"[" * depth}{"]" * depth}')
        assert failure(Message(body.encode(), content_type="application/cloudevents+json")).reason in (
            Reason.INVALID,
            Reason.UNDECODABLE,
        )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(JSON, st.dictionaries(st.text(), JSON, max_size=3), st.sampled_from([None, 2]), st.booleans())
def test_member_of_any_object_is_found(wanted: Any, others: dict[str, Any], indent: int | None, escaped: bool) -> None:
    """What is cut out is what a reader of the whole finds under that name."""
    text = json.dumps({"data ": 1} | others | {"data": wanted} | {"data_": 2}, indent=indent, ensure_ascii=escaped)
    assert strict_json(cloudevents._member(text, "data").encode("utf-8", "surrogatepass")) == wanted


@given(
    st.builds(Paid, order=st.text(min_size=1), total=st.decimals(allow_nan=False, allow_infinity=False)),
    st.booleans(),
)
def test_both_modes_are_one_event(event: Paid, in_base64: bool) -> None:
    """What choreo publishes in binary mode, written in structured mode by somebody else, opens as the same."""
    plain = seal(event, source="shop")
    attributes = {name.removeprefix("ce-"): value for name, value in plain.headers.items() if name.startswith("ce-")}
    attributes["datacontenttype"] = "application/json"
    own = {name: value for name, value in plain.headers.items() if not name.startswith("ce-")}
    if in_base64:
        body = json.dumps(attributes | {"data_base64": base64.b64encode(plain.body).decode()}).encode()
    else:
        body = json.dumps(attributes).encode()[:-1] + b', "data": ' + plain.body + b"}"
    message = Message(body, headers=own, content_type="application/cloudevents+json")
    one, other = open_envelope(plain, TOPIC), open_envelope(message, TOPIC)
    assert one._replace(headers={}) == other._replace(headers={})
    assert dict(one.headers).items() <= dict(other.headers).items()
    assert other.event(Paid) == event


NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-01-31T12:00:00Z", NOON),
        ("2026-01-31t12:00:00z", NOON),
        ("2026-01-31 12:00:00z", NOON),
        ("2026-01-31T12:00:00.5z", NOON + timedelta(seconds=0.5)),
        ("2026-01-31T12:00:00.1234567890123Z", NOON + timedelta(microseconds=123_456)),
        ("2026-01-31t12:00:00.123456789+00:00", NOON + timedelta(microseconds=123_456)),
        ("2026-01-31T12:00:00.0000009z", NOON),
        ("2026-01-31T14:00:00+02:00", NOON),
        ("2026-01-31t06:30:00.00-05:30", NOON),
        ("2026-01-31T12:00:00-00:00", NOON),
        ("1990-12-31T23:59:60Z", datetime(1991, 1, 1, tzinfo=UTC)),
        ("1990-12-31T15:59:60.25-08:00", datetime(1991, 1, 1, 0, 0, 0, 250_000, tzinfo=UTC)),
        ("2026-01-31T12:00:00", NOON),
        ("20260131T120000Z", NOON),
    ],
)
def test_times_in_every_spelling(text: str, time: datetime) -> None:
    assert opened_at(text).time == time
    assert open_envelope(structured({"time": text}), TOPIC).time == time


@pytest.mark.parametrize(
    "text",
    ["", "z", "2026-01-31T12:00:60Z", "2026-13-31t12:00:00z", "2026-01-31t12:00:00.z", "2026-01-31t12:00:00+24:00",
     "2026-01-31t12:00:61z", "9999-12-31T23:59:60Z", "0001-01-01T00:00:60+23:59", "٢٠٢٦-01-31t12:00:00z"],
)  # fmt: skip
def test_what_is_no_time_is_named(text: str) -> None:
    with pytest.raises(EnvelopeError, match="ce-time is"):
        opened_at(text)


def opened_at(text: str) -> Envelope:
    return open_envelope(Message(b"{}", {"ce-time": text}), TOPIC)


@given(
    st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)),  # noqa: DTZ001 - a zone follows
    st.integers(-23 * 60, 23 * 60),
    st.text("0123456789", max_size=20),
    st.sampled_from("Tt "),
)
def test_any_time_is_read_as_it_was_written(when: datetime, minutes: int, digits: str, separator: str) -> None:
    zone = timezone(timedelta(minutes=minutes))
    sign = "-" if minutes < 0 else "+"
    offset = f"{sign}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}" if minutes else "z"
    fraction = f".{digits}" if digits else ""
    text = f"{when.year:04d}-{when:%m-%d}{separator}{when:%H:%M:%S}{fraction}{offset}"
    expected = when.replace(microsecond=int(f"{digits[:6]:0<6}"), tzinfo=zone)
    assert cloudevents.time(text) == expected
