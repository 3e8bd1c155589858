"""Messages read by their layout: always what reading them field by field gives."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from choreo.amqp import decode, encode, header_templates
from choreo.amqp.header_templates import Layouts
from choreo.message import MAX_HEADERS, Message, excess

HEADERS = {"ce-id": "0123", "ce-type": "order.placed", "empty": "", "choreo-hops": 3}
TIME = datetime(2026, 1, 1, tzinfo=UTC)
FIRST = Message(
    b"", HEADERS, message_id="0123", correlation_id="4567", type="order.placed", app_id="shop", timestamp=TIME
)
OTHER = replace(
    FIRST,
    headers=HEADERS | {"ce-id": "\n.*\0", "choreo-hops": 127},
    message_id="....",
    correlation_id="45[7",
    timestamp=TIME + timedelta(days=9999),
)


def properties(message: Message) -> bytes:
    return encode.properties(message, message.message_id)


def plainly(data: bytes, body: bytes = b"") -> Message:
    return decode._message(data, body)


def learned(*pairs: tuple[Message, Message], into: Layouts | None = None) -> Layouts:
    """Layouts for which the two messages of each pair came often."""
    found = into or Layouts()
    for pair in pairs:
        for number in range(header_templates._OFTEN):
            data = properties(pair[2 * number // header_templates._OFTEN])
            found.learn(data, plainly(data))
    return found


def read(found: Layouts, message: Message) -> Message | None:
    return found.read(properties(message), message.body)


def test_layout_is_learned_when_it_has_come_often() -> None:
    found = Layouts()
    for number in range(header_templates._OFTEN):
        assert read(found, FIRST) is None
        data = properties((FIRST, OTHER)[2 * number // header_templates._OFTEN])
        found.learn(data, plainly(data))
    for message in (FIRST, OTHER, replace(OTHER, message_id="\x7f{1}", body=b"{}")):
        assert read(found, message) == replace(message, checked=True)


def test_layout_is_widened_by_what_differs_later() -> None:
    found = learned((FIRST, OTHER))
    later = replace(OTHER, app_id="post")
    assert read(found, later) is None
    learned((later, later), into=found)
    for message in (FIRST, OTHER, later, replace(FIRST, app_id="food")):
        assert read(found, message) == replace(message, checked=True)
    assert len(found._known[len(properties(FIRST))]) == 1


def test_what_cannot_be_taken_out_makes_a_layout_of_its_own() -> None:
    messages = [replace(FIRST, headers=HEADERS | {"odd": odd}) for odd in (True, False)]
    found = learned(*((message, message) for message in messages))
    for message in messages:
        assert read(found, message) == replace(message, checked=True)


def test_what_is_laid_out_otherwise_is_left_to_the_ordinary_way() -> None:
    found = learned((FIRST, OTHER))
    for headers in ({"ce-id": "01234"}, {"ce-id": "é23"}, {"choreo-hops": 128}, {"choreo-hops": "3" * 8}, {"more": ""}):
        assert read(found, replace(FIRST, headers=HEADERS | headers)) is None, headers
    renamed = {("ce-ix" if name == "ce-id" else name): value for name, value in HEADERS.items()}
    assert read(found, replace(FIRST, headers=renamed)) is None
    for change in ({"app_id": "post"}, {"content_type": "application/JSON"}, {"reply_to": ""}, {"priority": 0}):
        assert read(found, replace(FIRST, **change)) is None, change
    assert found.read(properties(FIRST)[:-1] + b"\xff", b"") is None


def test_layouts_of_one_length_are_told_apart() -> None:
    one, other = Message(b"", {"a": "12", "b": "3"}), Message(b"", {"a": "1", "b": "23"})
    found = learned((one, one), (other, other))
    assert read(found, one) == replace(one, checked=True)
    assert read(found, other) == replace(other, checked=True)


def test_what_only_some_fields_may_differ_in() -> None:
    """Texts in ASCII, small numbers and the timestamp; everything else that cannot change is the same in all."""
    for odd in (True, 1.5, None, b"bytes", 128, -1, "é", Decimal("1.5"), TIME):
        one, other = (replace(each, headers=each.headers | {"odd": odd}) for each in (FIRST, OTHER))
        found = learned((one, other))
        assert read(found, other) == replace(plainly(properties(other)), checked=True)
        changed = replace(other, headers=other.headers | {"odd": odd * 2 if isinstance(odd, str | bytes) else None})
        assert read(found, changed) == (None if odd is not None else replace(changed, checked=True))
    for nested in ({"inner": "1"}, [1], bytearray(b"1")):
        changed = replace(FIRST, headers=HEADERS | {"odd": nested})
        assert read(learned((changed, changed)), changed) is None


def test_content_type_and_priority_are_the_same_in_all() -> None:
    one, other = (replace(FIRST, content_type=kind, priority=priority) for kind, priority in (("a/b", 1), ("c/d", 2)))
    assert read(learned((one, other)), one) is None
    assert read(learned((one, one)), one) == replace(one, checked=True)


def test_a_message_that_was_read_is_its_owners() -> None:
    found = learned((FIRST, OTHER))
    mine = read(found, FIRST)
    assert mine is not None
    mine.headers["ce-type"] = "mine"
    assert read(found, FIRST) == replace(FIRST, checked=True)


def test_properties_that_are_made_up_do_not_fill_the_memory() -> None:
    found = Layouts()
    for number in range(header_templates._MOST + 50):
        made_up = Message(b"", {"x" * (1 + number % 200): "y" * (number // 200)})
        learned((made_up, made_up), into=found)
    assert found._count == header_templates._MOST
    found = Layouts()
    for size in range(2 * header_templates._MOST):
        made_up = Message(b"", {"": "z" * size})
        found.learn(properties(made_up), made_up)
    assert len(found._unknown) <= header_templates._MOST
    assert len(found._firsts) <= header_templates._MOST


def test_headers_that_no_event_has_are_not_learned() -> None:
    """To compile thousands of fields would stop the event loop, and what was learned needs no further check."""
    for count, is_learned in ((MAX_HEADERS, True), (MAX_HEADERS + 1, False)):
        message = Message(b"", {f"h{number}": "" for number in range(count)})
        assert (read(learned((message, message)), message) is not None) == is_learned
    message = Message(b"", {"long": "x" * header_templates._LONGEST})
    assert read(learned((message, message)), message) is None


TEXTS = st.text(st.characters(max_codepoint=300, exclude_categories=["Cs"]), max_size=3)
VALUES = TEXTS | st.integers(-2, 300) | st.booleans() | st.none() | st.binary(max_size=3) | st.floats(allow_nan=False)
MESSAGES = st.builds(
    Message,
    body=st.just(b"{}"),
    headers=st.dictionaries(TEXTS, VALUES, max_size=4),
    content_type=st.none() | st.just("application/json"),
    message_id=st.none() | TEXTS,
    correlation_id=st.none() | TEXTS,
    type=st.none() | TEXTS,
    reply_to=st.none() | TEXTS,
    priority=st.none() | st.integers(0, 255),
    timestamp=st.none()
    | st.datetimes(timezones=st.just(UTC), min_value=datetime(1970, 1, 1)).map(  # noqa: DTZ001
        lambda time: time.replace(microsecond=0)
    ),
)


@st.composite
def kin(draw: st.DrawFn) -> list[Message]:
    """Messages that are laid out alike, as far as chance has it."""
    one = draw(MESSAGES)

    def another(value: Any) -> Any:
        if isinstance(value, str):
            return draw(st.text(st.characters(max_codepoint=200), min_size=len(value), max_size=len(value)))
        return draw(st.integers(0, 127)) if isinstance(value, int) else value

    others = [
        replace(
            one,
            headers={name: another(value) if draw(st.booleans()) else value for name, value in one.headers.items()},
            message_id=another(one.message_id),
            type=another(one.type),
            timestamp=draw(st.just(one.timestamp) | st.just(TIME)) if one.timestamp else None,
        )
        for _ in range(3)
    ]
    return [one, *others]


@given(kin(), MESSAGES, st.data())
def test_never_something_else_than_field_by_field(alike: list[Message], stranger: Message, data: st.DataObject) -> None:
    """Whatever was learned before, and whatever comes then: also what has the learned one's bytes but for a few."""
    found = learned((alike[0], alike[1]), (alike[0], alike[2]))
    spoiled = bytearray(properties(alike[3]))
    for _ in range(data.draw(st.integers(0, 2))):
        spoiled[data.draw(st.integers(2, len(spoiled) - 1))] = data.draw(st.integers(0, 255))
    for each in (*map(properties, alike), properties(stranger), bytes(spoiled)):
        message = found.read(each, b"{}")
        if message is not None:
            plain = plainly(each, b"{}")
            assert message == replace(plain, checked=True)
            assert list(map(repr, message.headers.items())) == list(map(repr, plain.headers.items()))
            assert not excess(plain.headers)
