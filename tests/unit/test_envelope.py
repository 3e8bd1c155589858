"""Envelopes: what is read from a message that anyone may have sent, and what is written on our own."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from choreo.amqp import decode, encode
from choreo.body.strict_json import strict_json
from choreo.envelope import derived_id, new_id, open_envelope, seal
from choreo.errors import EnvelopeError
from choreo.event import Event, upcast
from choreo.message import MAX_BODY, MAX_HEADERS, MAX_TEXT, Message, Reason


class Paid(Event, topic="test-envelope.paid", version=2):
    """An event with an older version."""

    order: str
    total: Decimal
    currency: str
    paid_at: datetime | None = None

    @upcast(from_version=1)
    @staticmethod
    def with_currency(body: dict[str, Any]) -> dict[str, Any]:
        return body | {"currency": "EUR"}


class Loose(Event, topic="test-envelope.loose"):
    """An event with a field of every JSON kind."""

    anything: Any = None
    text: str = ""
    number: int = 0
    ratio: float = 0.0
    many: list[str] = []  # noqa: RUF012  # pydantic copies defaults


PAID = Paid(order="7", total=Decimal("9.90"), currency="EUR")
BODY = b'{"order": "7", "total": "9.90", "currency": "EUR"}'


def failure(message: Message, *, topic: str = "test-envelope.paid") -> EnvelopeError:
    """Return the error with which `message` cannot be opened, or cannot be read as Paid."""
    with pytest.raises(EnvelopeError) as caught:
        open_envelope(message, topic).event(Paid)
    return caught.value


def test_a_body_and_a_routing_key_are_a_whole_event() -> None:
    """A message from any AMQP client gets an id, and its own transaction."""
    opened = open_envelope(Message(BODY, content_type=None), "test-envelope.paid")
    assert opened.event(Paid) == PAID
    assert opened.topic == "test-envelope.paid"
    assert len(opened.id) == 32
    assert opened.correlation_id == opened.id
    assert (opened.causation_id, opened.source, opened.version, opened.time) == (None, None, None, None)
    assert (opened.hops, opened.attempt) == (0, 1)


FOREIGN = Message(
    BODY,
    {"rate": 7, "list": [1, {"at": datetime(2026, 1, 1, tzinfo=UTC)}], "raw": bytearray(b"x")},
    content_type=None,
    timestamp=datetime(2026, 1, 31, tzinfo=UTC),
)


def test_an_id_that_is_missing_follows_from_the_message() -> None:
    """Each agent, each delivery and each try give it the same: what broker and choreo write on the way is left out."""
    opened = open_envelope(FOREIGN, "test-envelope.paid")
    assert len(opened.id) == 32
    assert opened.correlation_id == opened.id
    on_the_way = {
        "x-death": [{"count": 1, "queue": "q"}],
        "x-first-death-queue": "q",
        "x-last-death-reason": "expired",
        "x-delivery-count": 3,
        "x-acquired-count": 4,
        "x-stream-offset": 5,
        "CC": ["a"],
        "choreo-attempt": 2,
        "choreo-topic": "test-envelope.paid",
        "choreo-first-failure": "2026-01-31T12:00:00Z",
        "choreo-dead-reason": "failed",
        "ce-id": "",
    }
    again = replace(FOREIGN, headers=on_the_way | FOREIGN.headers)
    assert open_envelope(again, "test-envelope.paid").id == opened.id
    wire = encode.properties(FOREIGN, None)
    assert open_envelope(decode.message(wire, BODY), "test-envelope.paid").id == opened.id


def test_an_id_from_another_release_is_the_same() -> None:
    """Agents of two releases and of two Pythons give one message one id: it is part of the wire."""
    assert open_envelope(FOREIGN, "test-envelope.paid").id == "1a67d2832d4271e402d7fc6a077e5a6b"
    assert open_envelope(Message(b"{}", content_type=None), "té").id == "3bff1264c6009d5d4fcf200113708c3a"


@pytest.mark.parametrize(
    "other",
    [
        {"body": BODY + b" "},
        {"content_type": "application/json"},
        {"correlation_id": "c"},
        {"type": "t"},
        {"app_id": "a"},
        {"reply_to": "r"},
        {"priority": 0},
        {"timestamp": datetime(2026, 1, 31, 0, 0, 1, tzinfo=UTC)},
        {"headers": FOREIGN.headers | {"rate": 8}},
        {"headers": FOREIGN.headers | {"rate": "7"}},
        {"headers": FOREIGN.headers | {"more": None}},
        {"headers": FOREIGN.headers | {"choreo-causation": "c"}},
        {},
    ],
)
def test_messages_that_differ_in_anything_have_two_ids(other: dict[str, Any]) -> None:
    """Also those that came under two topics. Equal ones are one event."""
    topic = "test-envelope.paid" if other else "test-envelope.loose"
    one = open_envelope(FOREIGN, "test-envelope.paid")
    assert open_envelope(replace(FOREIGN, **other), topic).id != one.id
    assert open_envelope(replace(FOREIGN), "test-envelope.paid").id == one.id


def test_amqp_properties_stand_in_for_missing_headers() -> None:
    """Message id, correlation id, app id and timestamp are read where no header says more."""
    sent = datetime(2026, 1, 31, tzinfo=UTC)
    message = Message(BODY, message_id="m", correlation_id="c", app_id="shop", timestamp=sent)
    opened = open_envelope(message, "test-envelope.paid")
    assert (opened.id, opened.correlation_id, opened.source, opened.time) == ("m", "c", "shop", sent)


@pytest.mark.parametrize("prefix", ["ce-", "cloudEvents:", "cloudEvents_"])
def test_cloudevents_headers_are_read_with_every_prefix_in_use(prefix: str) -> None:
    """The AMQP binding of CloudEvents names two prefixes; ours is the one of HTTP."""
    message = Message(BODY, {prefix + "id": "e", prefix + "source": "shop"}, message_id="m", app_id="a")
    opened = open_envelope(message, "test-envelope.paid")
    assert (opened.id, opened.source) == ("e", "shop")


def test_our_own_headers_are_read() -> None:
    """Correlation, causation, hops, version, attempts and trace context come from their headers."""
    headers = {
        "choreo-correlation": "c",
        "choreo-causation": "b",
        "choreo-hops": 3,
        "choreo-version": 2,
        "choreo-attempt": 4,
        "choreo-first-failure": "2026-01-31T12:00:00Z",
        "ce-time": "2026-01-31T11:00:00",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "a=1",
    }
    opened = open_envelope(Message(BODY, headers, correlation_id="other"), "test-envelope.paid")
    assert (opened.correlation_id, opened.causation_id) == ("c", "b")
    assert (opened.hops, opened.version, opened.attempt) == (3, 2, 5)
    assert opened.first_failure == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert opened.time == datetime(2026, 1, 31, 11, tzinfo=UTC)
    assert opened.traceparent == headers["traceparent"]
    assert opened.tracestate == "a=1"


NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
ZONELESS = NOON.replace(tzinfo=None)


@pytest.mark.parametrize("time", [NOON, ZONELESS, "2026-01-31T12:00:00", "2026-01-31T12:00:00Z"])
def test_times_can_be_reckoned_with(time: datetime | str) -> None:
    """A time without a zone is UTC, whether it comes as text or as an AMQP timestamp."""
    message = Message(BODY, {"choreo-first-failure": time}, timestamp=ZONELESS)
    opened = open_envelope(message, "test-envelope.paid")
    assert opened.first_failure == opened.time == NOON


@pytest.mark.parametrize(
    "content_type",
    [None, "", "application/json", "Application/JSON; charset=utf-8", "application/vnd.shop+json"],
)
def test_json_is_read(content_type: str | None) -> None:
    """JSON by any of its names, or no name at all."""
    message = Message(BODY, content_type=content_type)
    assert open_envelope(message, "test-envelope.paid").event(Paid) == PAID


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-python-serialize", "json", "image/svg+json"])
def test_other_content_types_are_not_read(content_type: str) -> None:
    """The error names the type; nothing looks into the body."""
    error = failure(Message(b"cos\nsystem\n", content_type=content_type))
    assert error.reason == Reason.CONTENT_TYPE
    assert content_type in error.message


def test_a_compressed_body_is_not_read() -> None:
    """A content encoding would hide the body's size, so only plain UTF-8 is read."""
    error = failure(Message(BODY, content_encoding="gzip"))
    assert error.reason == Reason.CONTENT_TYPE
    assert "'gzip'" in error.message
    assert open_envelope(Message(BODY, content_encoding="UTF-8"), "t").body == BODY


def test_a_large_body_is_refused_before_it_is_read() -> None:
    """One byte more than allowed is too large, by default and as set."""
    assert open_envelope(Message(b" " * MAX_BODY), "t").body
    assert failure(Message(b" " * (MAX_BODY + 1))).reason == Reason.TOO_LARGE
    with pytest.raises(EnvelopeError, match="the body has 11 bytes, at most 10 are read"):
        open_envelope(Message(b"x" * 11), "t", max_body=10)


def test_too_many_headers_are_refused() -> None:
    """Headers are bounded in number."""
    assert open_envelope(Message(BODY, {str(n): n for n in range(MAX_HEADERS)}), "t").id
    assert failure(Message(BODY, {str(n): n for n in range(MAX_HEADERS + 1)})).reason == Reason.HEADERS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ce-id", 7),
        ("ce-id", b"\xff\xfe"),
        ("ce-id", "x" * (MAX_TEXT + 1)),
        ("ce-id", "a\nb"),
        ("ce-source", ["shop"]),
        ("choreo-correlation", {"a": 1}),
        ("choreo-causation", "\x1b[31m"),
        ("choreo-tree", "3"),
        ("choreo-hops", -1),
        ("choreo-hops", 2**31),
        ("choreo-hops", "3"),
        ("choreo-hops", True),
        ("choreo-version", 1.0),
        ("choreo-attempt", "many"),
        ("choreo-first-failure", "yesterday"),
        ("choreo-first-failure", 7),
        ("ce-time", []),
    ],
)
def test_a_header_that_is_not_what_it_claims_is_named(name: str, value: object) -> None:
    """The dead letter's reason is `headers`, and the error names the header."""
    error = failure(Message(BODY, {name: value}))
    assert error.reason == Reason.HEADERS
    assert error.message.startswith(f"{name} is ")


def test_a_long_tracestate_costs_no_event() -> None:
    """W3C allows more than 512 characters of tracestate and lets a receiver drop them; the event is still read."""
    opened = open_envelope(Message(BODY, {"tracestate": "vendor=value," * 60}), "test-envelope.paid")
    assert opened.event(Paid) == PAID


@pytest.mark.parametrize(
    ("body", "reason", "text"),
    [
        (b"", Reason.UNDECODABLE, "not JSON"),
        (b"hello", Reason.UNDECODABLE, "not JSON"),
        (b'{"order": 1', Reason.UNDECODABLE, "not JSON"),
        (b"[" * 100_000, Reason.UNDECODABLE, "not JSON"),
        (b"1" * 5000, Reason.UNDECODABLE, "not JSON"),
        (b'{"order": "\xff"}', Reason.UNDECODABLE, "not UTF-8 at byte 11"),
        (b'{"total": NaN}', Reason.UNDECODABLE, "NaN, which JSON does not know"),
        (b'{"total": -Infinity}', Reason.UNDECODABLE, "-Infinity"),
        (b'{"a": 1, "order": "7", "order": "8"}', Reason.UNDECODABLE, "the key 'order' twice"),
        (b'{"deep": {"a": 1, "a": 2}}', Reason.UNDECODABLE, "the key 'a' twice"),
        (b"[]", Reason.INVALID, "body: "),
        (b"null", Reason.INVALID, "body: "),
        (b'{"order": 7, "currency": "EUR"}', Reason.INVALID, "order: Input should be a valid string; total: "),
    ],
)
def test_a_body_that_is_no_such_event_says_why(body: bytes, reason: Reason, text: str) -> None:
    """What is not strict JSON is undecodable; JSON that is not the event is invalid, by field."""
    error = failure(Message(body))
    assert error.reason == reason
    assert text in error.message


def test_an_invalid_event_does_not_show_its_values() -> None:
    """What is wrong is told by field; the values may be secret, and can be long."""
    error = failure(Message(b'{"order": ["s3cret"], "total": "s3cret", "currency": "EUR"}'))
    assert "test-envelope.paid" in error.message
    assert "Paid" in error.message
    assert "order: " in error.message
    assert "total: " in error.message
    assert "s3cret" not in error.message


def test_what_is_wrong_is_told_of_ten_fields_at_most() -> None:
    """A body with everything wrong does not make an endless text."""

    class Wide(Event, topic="test-envelope.wide"):
        numbers: list[int]

    def told(count: int) -> list[str]:
        body = json.dumps({"numbers": ["x"] * count}).encode()
        with pytest.raises(EnvelopeError) as caught:
            open_envelope(Message(body), "test-envelope.wide").event(Wide)
        return caught.value.message.split("; ")

    assert told(10)[9].startswith("numbers.9: ")
    assert len(told(10)) == 10
    assert told(12)[10:] == ["and 2 more"]


def test_the_body_can_be_read_without_a_class() -> None:
    """A reaction that takes an Envelope reads the body as plain values, as strictly as an event."""
    assert open_envelope(Message(BODY), "t").json() == {"order": "7", "total": "9.90", "currency": "EUR"}
    with pytest.raises(EnvelopeError, match="not JSON"):
        open_envelope(Message(b"hello"), "t").json()


def test_bounds_are_part_of_what_is_allowed() -> None:
    """The longest text and the smallest and greatest numbers are still read."""
    headers = {"ce-id": "x" * MAX_TEXT, "choreo-hops": 2**31 - 1, "choreo-version": 0}
    opened = open_envelope(Message(BODY, headers), "t")
    assert (opened.id, opened.hops, opened.version) == ("x" * MAX_TEXT, 2**31 - 1, 0)


def test_fields_with_an_alias_travel_under_it() -> None:
    """What is written is what is read: a field's alias is its name on the wire."""

    class Aliased(Event, topic="test-envelope.aliased"):
        from_: str = Field(alias="from")

    message = seal(Aliased.model_validate({"from": "here"}), source="s")
    assert json.loads(message.body) == {"from": "here"}
    assert open_envelope(message, "test-envelope.aliased").event(Aliased).from_ == "here"


def test_a_body_of_an_older_version_is_lifted() -> None:
    """A body of version 1 goes through the upcast; without a version header it is read as today's."""
    old = b'{"order": "7", "total": "9.90"}'
    opened = open_envelope(Message(old, {"choreo-version": 1}), "test-envelope.paid")
    assert opened.event(Paid) == PAID
    assert failure(Message(old)).reason == Reason.INVALID
    assert failure(Message(b"[]", {"choreo-version": 1})).reason == Reason.INVALID


def test_a_body_of_a_newer_version_is_read_as_far_as_it_is_known() -> None:
    """Unknown fields are ignored, so that publishers can move ahead of readers."""
    newer = Message(BODY[:-1] + b', "tip": 1}', {"choreo-version": 9})
    assert open_envelope(newer, "test-envelope.paid").event(Paid) == PAID


def test_a_body_that_an_upcast_cannot_lift_is_invalid() -> None:
    """An upcast that stumbles over a body makes it a bad body, not a failed reaction."""

    class Renamed(Event, topic="test-envelope.renamed", version=2):
        order: str

        @upcast(from_version=1)
        @staticmethod
        def from_number(body: dict[str, Any]) -> dict[str, Any]:
            return {"order": body["number"]}

    opened = open_envelope(Message(b"{}", {"choreo-version": 1}), "test-envelope.renamed")
    with pytest.raises(EnvelopeError) as caught:
        opened.event(Renamed)
    assert caught.value.reason == Reason.INVALID
    assert "from_number" in caught.value.message or "upcast" in caught.value.message


def test_an_upcast_may_use_what_json_does_not_know() -> None:
    """An upcast returns what pydantic takes for the field, a Decimal or a datetime for example."""

    class Priced(Event, topic="test-envelope.priced", version=2):
        total: Decimal

        @upcast(from_version=1)
        @staticmethod
        def from_cents(body: dict[str, Any]) -> dict[str, Any]:
            return {"total": Decimal(body["cents"]) / 100}

    opened = open_envelope(Message(b'{"cents": 990}', {"choreo-version": 1}), "test-envelope.priced")
    assert opened.event(Priced).total == Decimal("9.90")


def test_an_event_that_nothing_caused_begins_a_transaction() -> None:
    """It has a random id, which is its correlation id too, and CloudEvents headers beside a plain JSON body."""
    message = seal(PAID, source="shop")
    assert json.loads(message.body) == {"order": "7", "total": "9.90", "currency": "EUR", "paid_at": None}
    assert (message.content_type, message.type, message.app_id) == ("application/json", "test-envelope.paid", "shop")
    assert message.message_id == message.correlation_id == message.headers["ce-id"]
    assert message.headers["ce-specversion"] == "1.0"
    assert message.headers["ce-type"] == "test-envelope.paid"
    assert message.headers["ce-dataschema"] == "urn:choreo:test-envelope.paid:2"
    assert message.headers["choreo-version"] == 2
    assert not message.headers.keys() & {"choreo-causation", "choreo-hops", "traceparent", "tracestate"}


def test_a_caused_event_stays_in_its_transaction_one_hop_further() -> None:
    """Correlation and trace are the cause's, the cause's id is the causation, hops grow by one."""
    headers = {"choreo-correlation": "c", "choreo-hops": 3, "traceparent": "00-trace", "tracestate": "a=1"}
    cause = open_envelope(Message(BODY, headers, message_id="m"), "test-envelope.paid")
    opened = open_envelope(seal(PAID, source="bank", event_id="n", cause=cause), "test-envelope.paid")
    assert (opened.id, opened.correlation_id, opened.causation_id, opened.hops) == ("n", "c", "m", 4)
    assert (opened.traceparent, opened.tracestate) == ("00-trace", "a=1")


def test_events_that_are_emitted_together_multiply() -> None:
    """The tree is the product along the way; it is not spoken of as long as there is one event each."""
    cause = open_envelope(Message(BODY), "test-envelope.paid")
    assert cause.tree == 1
    for siblings, tree in [(1, None), (50, 50), (1, 50), (3, 150)]:
        message = seal(PAID, source="bank", cause=cause, siblings=siblings)
        assert message.headers.get("choreo-tree") == tree
        cause = open_envelope(message, "test-envelope.paid")
        assert cause.tree == (tree or 1)


def test_a_cause_without_a_trace_gives_none() -> None:
    """Only a traced event makes traced events, and a state of no trace is dropped."""
    for headers in ({}, {"tracestate": "a=1"}, {"traceparent": "00-trace"}):
        cause = open_envelope(Message(BODY, headers), "test-envelope.paid")
        sealed = seal(PAID, source="bank", cause=cause).headers
        assert {name: sealed[name] for name in ("traceparent", "tracestate") if name in sealed} == {
            name: value for name, value in headers.items() if name == "traceparent"
        }


def test_a_long_correlation_id_fits_its_amqp_property() -> None:
    """An AMQP short string holds 255 bytes; the header keeps the whole id."""
    cause = open_envelope(Message(BODY, {"choreo-correlation": "é" * MAX_TEXT}), "test-envelope.paid")
    message = seal(PAID, source="bank", cause=cause)
    assert message.correlation_id is not None
    assert len(message.correlation_id.encode()) <= 255
    assert message.headers["choreo-correlation"] == "é" * MAX_TEXT


printable = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=40)
texts = st.text(st.characters(codec="utf-8"), max_size=40)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(
    event=st.builds(
        Loose,
        anything=json_values,
        text=texts,
        number=st.integers(-(2**63), 2**63 - 1),
        ratio=st.floats(allow_nan=False, allow_infinity=False),
        many=st.lists(texts, max_size=3),
    ),
    source=printable,
    event_id=printable,
    correlation_id=printable,
)
def test_what_is_sealed_opens_as_it_was(event: Loose, source: str, event_id: str, correlation_id: str) -> None:
    """Any event, under any ids, comes out of the envelope as it went in."""
    message = seal(event, source=source, event_id=event_id, correlation_id=correlation_id)
    opened = open_envelope(message, "test-envelope.loose")
    assert opened.event(Loose) == event
    assert (opened.id, opened.source, opened.correlation_id) == (event_id, source, correlation_id)
    assert opened.version == 1
    assert opened.time is not None
    assert abs(datetime.now(UTC) - opened.time) < timedelta(minutes=1)


header_names = st.sampled_from(
    [
        "ce-id",
        "ce-source",
        "ce-time",
        "ce-type",
        "cloudEvents:id",
        "cloudEvents_source",
        "choreo-correlation",
        "choreo-causation",
        "choreo-hops",
        "choreo-tree",
        "choreo-version",
        "choreo-attempt",
        "choreo-topic",
        "choreo-first-failure",
        "traceparent",
        "tracestate",
        "x-death",
    ]
) | st.text(max_size=20)
# What a field table can hold: AMQP 0-9-1, section 4.2.5.5.
header_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats()
    | st.decimals()
    | st.text(max_size=600)
    | st.binary(max_size=20)
    | st.datetimes()
    | st.datetimes(timezones=st.just(timezone(timedelta(hours=14)))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
properties = st.none() | st.text(max_size=300)
bodies = (
    st.binary(max_size=100)
    | st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace"))
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries(
        {"specversion": st.just("1.0"), "id": st.just("e"), "source": st.just("s"), "type": st.just("t")},
        optional=dict.fromkeys(("data", "data_base64", "datacontenttype", "time", "traceparent", "x"), json_values),
    ).map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries({}, optional=dict.fromkeys(("text", "number", "ratio", "many"), json_values)).map(
        lambda value: json.dumps(value).encode()
    )
)


@given(
    message=st.builds(
        Message,
        body=bodies,
        headers=st.dictionaries(header_names, header_values, max_size=6),
        content_type=st.just("application/json") | st.just("application/cloudevents+json") | properties,
        content_encoding=st.none() | properties,
        message_id=properties,
        correlation_id=properties,
        app_id=properties,
        timestamp=st.none() | st.datetimes(),
    )
)
def test_nothing_but_an_envelope_error_comes_out_of_a_message(message: Message) -> None:
    """Whatever a message holds, it is an event, or an EnvelopeError with a reason for its dead letter."""
    reason = None
    try:
        opened = open_envelope(message, "test-envelope.loose")
        opened.event(Loose)
    except EnvelopeError as error:
        reason = error.reason
    assert reason is None or reason in set(Reason)


@given(headers=st.dictionaries(header_names, header_values, max_size=6), text=properties)
def test_an_id_survives_the_wire(headers: dict[str, Any], text: str | None) -> None:
    """Whatever headers a foreign message has: written again by choreo, it still has the id that it got."""
    message = Message(BODY, headers, correlation_id=text, content_type=None)
    with suppress(EnvelopeError, ValueError, OverflowError, struct.error):
        read = decode.message(encode.properties(message, None), BODY)
        again = decode.message(encode.properties(read.forwarded({"choreo-attempt": 1}), None), BODY)
        assert open_envelope(again, "test-envelope.paid").id == open_envelope(read, "test-envelope.paid").id


@given(times=st.dictionaries(st.sampled_from(["ce-time", "choreo-first-failure"]), header_values))
def test_a_time_that_was_read_can_be_reckoned_with(times: dict[str, Any]) -> None:
    """Whoever subtracts a message's times from now gets a length of time, never an error."""
    with suppress(EnvelopeError):
        opened = open_envelope(Message(BODY, times), "test-envelope.paid")
        for time in filter(None, (opened.time, opened.first_failure)):
            assert isinstance(datetime.now(UTC) - time, timedelta)


def test_new_ids_differ() -> None:
    """Two events that nothing caused have two ids."""
    assert new_id() != new_id()


def test_a_redelivery_derives_the_same_ids() -> None:
    """The id of an emitted event depends on its cause, agent, reaction and place, and on nothing else."""
    assert derived_id("cause", "payment", "charge", 0) == derived_id("cause", "payment", "charge", 0)
    others = [
        derived_id("other", "payment", "charge", 0),
        derived_id("cause", "stock", "charge", 0),
        derived_id("cause", "payment", "refund", 0),
        derived_id("cause", "payment", "charge", 1),
        derived_id("cause", "pay", "mentcharge", 0),
    ]
    assert derived_id("cause", "payment", "charge", 0) not in others
    assert {len(each) for each in others} == {len(new_id())} == {32}
    assert len(set(others)) == len(others)


def test_forwarding_leaves_out_what_the_broker_added() -> None:
    """Only the broker's own headers go; the user's stay, also those that merely begin alike."""
    brokers = {
        "x-death": [{}],
        "x-first-death-queue": "q",
        "x-last-death-reason": "rejected",
        "x-delivery-count": 3,
        "x-acquired-count": 3,
        "CC": ["a"],
        "BCC": ["b"],
    }
    users = {"choreo-hops": 1, "x-tenant": "t", "CC-region": "eu", "BCCode": 1}
    message = Message(BODY, brokers | users, message_id="m", priority=5, content_type="application/json")
    forwarded = message.forwarded({"choreo-attempt": 1}, without=("choreo-hops",))
    assert forwarded.headers == {"x-tenant": "t", "CC-region": "eu", "BCCode": 1, "choreo-attempt": 1}
    assert (forwarded.body, forwarded.message_id, forwarded.priority) == (BODY, "m", 5)
    assert message.headers == brokers | users


@pytest.mark.parametrize("value", ["x" * 70_000, [{"a": "x" * 35_000}, {"b": "x" * 35_000}]])
def test_headers_are_bounded_in_bytes(value: object) -> None:
    """Headers travel in one frame; more than 64 KiB of them are a dead letter, also when they are nested."""
    error = failure(Message(BODY, {"large": value}))
    assert error.reason == Reason.HEADERS
    assert "65536" in error.message


class Anything(Event, topic="test-envelope.anything"):
    pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
SPOILED = ['{"a":1,"a":2}', '{"a":1,"\\u0061":2}', "NaN", "-Infinity", "1e999", "[-1E+400]", "01", '"\ud800"', "[1,]"]


@given(JSON, st.sampled_from(["", *SPOILED]), st.binary(max_size=2))
def test_the_fast_check_of_a_body_never_lets_through_what_the_strict_reading_refuses(
    value: object, spoiled: str, tail: bytes
) -> None:
    """An event without fields accepts every object, so only the check stands in the way."""
    inner = json.dumps(value).encode()
    body = b'{"x":' + (spoiled.encode("utf-8", "surrogatepass") or inner) + b',"y":' + inner + b"}" + tail
    refused = _refusal(lambda: strict_json(body))
    found = _refusal(lambda: open_envelope(Message(body), "t").event(Anything))
    assert found == refused or (refused is None and found == Reason.INVALID)  # lone surrogates: pydantic has none


def _refusal(read: Callable[[], object]) -> str | None:
    try:
        read()
    except EnvelopeError as error:
        return error.reason
    return None
