"""One event to publish: what is typed, what is checked, what is sent."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, RootModel

from choreo import Event
from choreo.envelope import open_envelope
from choreo.errors import PayloadError, UnknownTopic, UsageError
from choreo.operate.payload import Change, Form, identifier


class Address(BaseModel):
    city: str
    street: str = ""


class Tags(RootModel[list[Address]]):
    pass


class Booked(Event, topic="test-payload.booked", version=3):
    number: str
    total: Decimal = Decimal(1)
    kind: Literal["1", "2"] = "1"
    address: Address | None = None
    stops: tuple[Address, ...] = ()
    places: dict[str, Address] = Field(default_factory=dict)
    tags: Tags | None = None
    free: dict[str, Any] = Field(default_factory=dict)


class Aliased(Event, topic="test-payload.aliased"):
    size: int = Field(0, alias="Size")
    colour: str = Field("", validation_alias=AliasChoices("colour", "color"))  # type: ignore[pydantic-alias]  # wanted


class Open(Event, topic="test-payload.open"):
    model_config = ConfigDict(extra="allow")
    number: str = ""


FORM = Form("test-payload.booked", Booked)


def form(*changes: str, **options: Any) -> Form:
    return Form("test-payload.booked", Booked, tuple(map(Change.parse, changes)), **options)


def body(form: Form, data: Any) -> Any:
    return json.loads(form.body(json.dumps(data).encode()))


@pytest.mark.parametrize(
    ("written", "path", "value"),
    [
        ("total=42.50", ("total",), 42.5),
        ("a.b.c=text", ("a", "b", "c"), "text"),
        ("a=true", ("a",), True),
        ("a=null", ("a",), None),
        ("a=", ("a",), ""),
        ("a=b=c", ("a",), "b=c"),
        ('a="5"', ("a",), "5"),
        ('a={"b": [1]}', ("a",), {"b": [1]}),
        ("a=NaN", ("a",), "NaN"),
        ("a={", ("a",), "{"),
    ],
)
def test_change_is_json_where_it_reads_as_json(written: str, path: tuple[str, ...], value: Any):
    change = Change.parse(written)
    assert (change.path, change.value) == (path, value)


@pytest.mark.parametrize("written", ["", "a", "=", "=1", ".a=1", "a.=1", "a..b=1"])
def test_change_without_a_field(written: str):
    with pytest.raises(UsageError, match="is not field=value"):
        Change.parse(written)


@given(st.text(min_size=1).filter(lambda text: "=" not in text and "." not in text), st.text())
def test_any_text_can_be_a_value(field: str, text: str):
    """Whatever is typed is either JSON or itself."""
    change = Change.parse(f"{field}={text}")
    assert change.text == text
    assert change.value == text or change.value == json.loads(text)


def test_changes_reach_inwards_and_make_way():
    made = body(form("number=7a", "address.city=Bonn", "address.street=Am Hof"), {"address": {"city": "Köln"}})
    assert made["address"] == {"city": "Bonn", "street": "Am Hof"}
    assert body(form("address.city=Bonn"), {"number": "7"})["address"]["city"] == "Bonn"


@pytest.mark.parametrize(("data", "where"), [([], "the body"), ({"address": "Bonn"}, "address")])
def test_change_through_something_else_than_an_object(data: Any, where: str):
    with pytest.raises(PayloadError, match=f"{where} is not a JSON object"):
        body(form("address.city=Bonn"), data)


def test_number_becomes_a_text_where_the_event_wants_one():
    """As it was written: an order number keeps its zeros. What is not a number stays what it is."""
    made = body(form("number=1.50", "kind=2", "address.city=50667", "total=2.5"), {})
    assert (made["number"], made["kind"], made["address"]["city"]) == ("1.50", "2", "50667")
    assert made["total"] == "2.5"
    with pytest.raises(PayloadError, match="number: Input should be a valid string"):
        body(form("number=null"), {})
    with pytest.raises(PayloadError, match="number: Input should be a valid string"):
        body(form("total=5"), {"number": 7})


def test_body_is_the_event_with_its_defaults():
    assert body(Form("test-payload.aliased", Aliased), {"Size": "4"}) == {"Size": 4, "colour": ""}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({}, "number: Field required"),
        ({"numbr": "1"}, r"number: Field required; 'numbr' is not a field of Booked, did you mean number\?"),
        ({"number": "1", "x": 1}, "'x' is not a field of Booked"),
        ({"number": "1", "address": {"city": "B", "stret": ""}}, r"'address.stret' .* did you mean address.street\?"),
        ({"number": "1", "stops": [{"city": "B"}, {"city": "B", "zip": 1}]}, "'stops.1.zip' is not a field of Address"),
        ({"number": "1", "places": {"home": {"city": "B", "zip": 1}}}, "'places.home.zip' is not a field of Address"),
        ({"number": "1", "tags": [{"city": "B", "zip": 1}]}, "'tags.0.zip' is not a field of Address"),
        ("text", "body: Input should be an object"),
    ],
)
def test_what_is_wrong_is_named(data: Any, text: str):
    with pytest.raises(PayloadError, match=text) as caught:
        body(FORM, data)
    assert "(test-payload.booked)" in caught.value.message
    assert "fields of Booked: number, total" in caught.value.way_out


def test_what_an_event_lets_in_is_no_slip():
    body(FORM, {"number": "1", "free": {"any": {"thing": 1}}})
    body(Form("test-payload.aliased", Aliased), {"color": "red"})
    body(Form("test-payload.open", Open), {"number": "1", "more": 2})
    with pytest.raises(PayloadError, match="'size' is not a field of Aliased, did you mean Size"):
        body(Form("test-payload.aliased", Aliased), {"size": 4})


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"{", "not JSON"),
        (b'{"number": NaN}', "NaN"),
        (b'{"number": "1", "number": "2"}', "twice"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "JSON"),
    ],
)
def test_json_is_read_strictly(data: bytes, text: str):
    for each in (FORM, Form("any.thing", None)):
        with pytest.raises(PayloadError, match=text):
            each.body(data)


def test_too_large_before_and_after():
    with pytest.raises(PayloadError, match="more than 100 bytes"):
        form(max_body=100).body(b" " * 101)
    with pytest.raises(PayloadError, match="the body has more than 100 bytes"):
        form(max_body=100).body(b'{"number":"%s"}' % (b"x" * 50))  # its defaults make it longer
    with pytest.raises(PayloadError, match="number that is too large"):
        Form("any.thing", None, (Change.parse("a=1e999"),)).body(b"{}")


def test_raw_bytes_go_out_as_they_came():
    assert Form("any.thing", None).body(b' [1.50, "\xc3\xa4"]\n') == b'[1.50, "\xc3\xa4"]'
    assert Form.raw("any.thing", [Change.parse("a=1")], 100).body(b"{}") == b'{"a":1}'
    for topic in ("", "a b", "a..b", "a.#", "a" * 181):
        with pytest.raises(UsageError, match="is not a topic"):
            Form.raw(topic, (), 100)


def test_form_is_found_by_topic_and_by_name():
    assert Form.known("test-payload.booked", (), 9).kind is Booked
    assert Form.known("Booked", (), 9) == Form("test-payload.booked", Booked, (), 9)
    with pytest.raises(UnknownTopic) as caught:
        Form.known("test-payload.bookd", (), 9)
    assert "did you mean test-payload.booked?" in caught.value.way_out
    assert "--raw" in caught.value.way_out


def test_name_that_two_events_have():
    for number in (1, 2):
        exec(
            f'class Twin(Event, topic="test-payload.twin{number}"): ...', {"Event": Event, "__name__": f"twin{number}"}
        )
    with pytest.raises(UnknownTopic) as caught:
        Form.known("Twin", (), 9)
    assert "test-payload.twin1, test-payload.twin2" in caught.value.way_out


def test_message_is_one_that_agents_can_open():
    message = FORM.message(b'{"number":"1"}', event_id="e", correlation_id="c")
    envelope = open_envelope(message, "test-payload.booked")
    assert (envelope.id, envelope.correlation_id, envelope.version, envelope.hops) == ("e", "c", 3, 0)
    assert (envelope.source, envelope.event(Booked).number) == ("choreo-publish", "1")
    alone = FORM.message(b"{}")
    assert alone.correlation_id == alone.message_id != FORM.message(b"{}").message_id
    assert open_envelope(Form("a.b", None).message(b"{}"), "a.b").version is None


@pytest.mark.parametrize("value", ["", "a\nb", "x" * 256, "ä" * 128])
def test_what_cannot_be_an_id(value: str):
    with pytest.raises(UsageError, match=r"--id .* is not an id"):
        identifier("--id", value)


def test_what_can_be_an_id():
    assert identifier("--id", None) is None
    assert identifier("--id", "order 1001") == "order 1001"
