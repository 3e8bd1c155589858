"""Header tables read by their layout: always what reading them field by field gives."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from choreo.message import MAX_HEADERS
from choreo.rabbit import decode, encode, layouts
from choreo.rabbit.layouts import Layouts

HEADERS = {"ce-id": "0123", "ce-type": "order.placed", "empty": "", "choreo-hops": 3}


def table(fields: dict[str, Any]) -> bytes:
    return encode.table(fields)[4:]


def learned(*often: dict[str, Any]) -> Layouts:
    found = Layouts()
    for fields in often:
        for _ in range(layouts._OFTEN):
            found.learn(table(fields), fields)
    return found


def test_layout_is_learned_when_it_has_come_often() -> None:
    found = Layouts()
    for _ in range(layouts._OFTEN - 1):
        found.learn(table(HEADERS), HEADERS)
    assert found.read(table(HEADERS)) is None
    found.learn(table(HEADERS), HEADERS)
    other = HEADERS | {"ce-id": "\n.*\0", "choreo-hops": 127}
    assert found.read(table(other)) == other


def test_what_is_laid_out_otherwise_is_left_to_the_ordinary_way() -> None:
    found = learned(HEADERS)
    for change in ({"ce-id": "01234"}, {"ce-id": "é23"}, {"choreo-hops": 128}, {"choreo-hops": "3" * 8}, {"more": ""}):
        assert found.read(table(HEADERS | change)) is None, change
    renamed = {("ce-ix" if name == "ce-id" else name): value for name, value in HEADERS.items()}
    assert found.read(table(renamed)) is None
    assert found.read(table(HEADERS)[:-1] + b"\xff") is None


def test_layouts_of_one_length_are_told_apart() -> None:
    one, other = {"a": "12", "b": "3"}, {"a": "1", "b": "23"}
    found = learned(one, other)
    assert found.read(table(one)) == one
    assert found.read(table(other)) == other


def test_tables_that_are_made_up_do_not_fill_the_memory() -> None:
    found = learned(*({"x" * (1 + number % 200): "y" * (number // 200)} for number in range(layouts._MOST + 50)))
    assert found._count <= layouts._MOST


def test_only_texts_and_small_numbers_are_learned() -> None:
    for odd in (True, 1.5, None, b"bytes", 128, -1, "é", {"inner": "1"}):
        fields = HEADERS | {"odd": odd}
        assert learned(fields).read(table(fields)) is None


def test_tables_larger_than_any_event_has_are_not_learned() -> None:
    """To compile thousands of fields would stop the event loop."""
    for count, is_learned in ((MAX_HEADERS, True), (MAX_HEADERS + 1, False)):
        fields = {f"h{number}": "" for number in range(count)}
        assert (learned(fields).read(table(fields)) is not None) == is_learned


FIELDS = st.dictionaries(
    st.text(st.characters(max_codepoint=300, exclude_categories=["Cs"]), max_size=6),
    st.text(max_size=6) | st.integers(-2, 300) | st.booleans() | st.none() | st.binary(max_size=3),
    max_size=5,
)


@given(FIELDS, FIELDS, st.data())
def test_never_something_else_than_field_by_field(fields: dict[str, Any], others: dict[str, Any], data: Any) -> None:
    """Whatever was learned before, and whatever comes then: also what has the learned one's bytes but for a few."""
    found = learned(fields)
    spoiled = bytearray(table(fields))
    if spoiled:
        spoiled[data.draw(st.integers(0, len(spoiled) - 1))] = data.draw(st.integers(0, 255))
    for each in (table(fields), table(others), bytes(spoiled)):
        read = found.read(each)
        if read is not None:
            assert read == decode._table(each, 0, len(each), 1)
            assert list(map(type, read.values())) == [str if type(value) is str else int for value in read.values()]
