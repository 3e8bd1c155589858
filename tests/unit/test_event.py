"""Events: what a class line may say, and that an event does not change."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ConfigDict, ValidationError

from choreo.errors import DeclarationError, EventMutated
from choreo.event import MAX_TOPIC, Event, declaration, known, upcast


class Counted(Event, topic="test-event.counted", version=3, external=True):
    """An event with a past."""

    total: int
    unit: str
    by: str

    @upcast(from_version=1)
    @staticmethod
    def with_unit(body: dict[str, Any]) -> dict[str, Any]:
        return body | {"unit": "piece"}

    @upcast(from_version=2)
    def with_author(body: dict[str, Any]) -> dict[str, Any]:  # type: ignore[misc]  # noqa: N805
        return body | {"by": "unknown"}


class Ended(Event, topic="test-event.ended", terminal=True):
    """An event that nobody needs to take."""


def test_the_class_line_is_the_declaration() -> None:
    """Topic, version and the two promises are read from the class, and from an instance as well."""
    declared = declaration(Counted)
    assert (declared.topic, declared.version) == ("test-event.counted", 3)
    assert (declared.external, declared.terminal) == (True, False)
    assert declaration(Ended()) is declaration(Ended)
    assert (declaration(Ended).version, declaration(Ended).terminal) == (1, True)


def test_known_events_can_be_looked_up_by_topic() -> None:
    """Every class with a topic is found under it, and the view cannot be written to."""
    assert known()["test-event.ended"] is Ended
    with pytest.raises(TypeError):
        known()["test-event.ended"] = Counted  # type: ignore[index]


def test_an_event_does_not_change() -> None:
    """Assigning a field raises EventMutated, which names the field and shows how to make another event."""
    event = Counted(total=1, unit="piece", by="me")
    with pytest.raises(EventMutated) as caught:
        event.total = 2  # type: ignore[misc]
    assert caught.value.message.startswith("Counted.total was assigned")
    assert caught.value.way_out == "make a new one: event.model_copy(update={'total': ...})"
    assert event.total == 1


def test_an_event_gets_no_further_fields() -> None:
    """A name that is not a field cannot be assigned either."""
    with pytest.raises(EventMutated, match=r"Ended\.more"):
        Ended().more = 1  # type: ignore[attr-defined]


def test_what_is_private_to_the_class_may_change() -> None:
    """A private attribute is not part of the fact, a cached figure for example. Type checkers let one without an
    annotation be assigned."""

    class Caching(Event):
        _count: int = 0
        _sum = 0

    event = Caching()
    event._sum = 3
    event._count = 1  # type: ignore[misc]
    assert (event._sum, event._count) == (3, 1)
    assert event.model_dump() == {}


def test_the_way_out_of_a_mutation_works() -> None:
    """A copy with the change is a new event, the old one stays."""
    event = Counted(total=1, unit="piece", by="me")
    assert event.model_copy(update={"total": 2}) == Counted(total=2, unit="piece", by="me")
    assert event.total == 1


def test_equal_events_are_equal_and_can_be_in_a_set() -> None:
    """Events are values."""
    assert len({Counted(total=1, unit="u", by="b"), Counted(total=1, unit="u", by="b")}) == 1


def test_fields_unknown_to_the_class_are_ignored() -> None:
    """A publisher may add fields before its readers know them."""
    assert Ended.model_validate_json('{"later": 1}') == Ended()


def test_numbers_are_finite() -> None:
    """JSON has no infinity, so no event has."""

    class Measured(Event):
        value: float

    with pytest.raises(ValidationError, match="finite"):
        Measured(value=float("inf"))


def test_a_body_of_an_old_version_is_lifted_step_by_step() -> None:
    """From version 1 both upcasts run in order, from version 2 the last one, from today's none."""
    lift = declaration(Counted).lift
    assert lift({"total": 1}, 1) == {"total": 1, "unit": "piece", "by": "unknown"}
    assert lift({"total": 1, "unit": "kg"}, 2) == {"total": 1, "unit": "kg", "by": "unknown"}
    assert lift({"total": 1}, 3) == {"total": 1}
    assert lift({"total": 1}, 9) == {"total": 1}


def test_a_version_without_an_upcast_reads_as_it_is() -> None:
    """A version that only added an optional field needs no upcast."""

    class Widened(Event, topic="test-event.widened", version=2):
        note: str = ""

    assert declaration(Widened).lift({}, 1) == {}


def test_an_upcast_can_be_called_as_what_it_is() -> None:
    """A user's unit test calls an upcast as a plain function of the class."""
    assert Counted.with_unit({}) == {"unit": "piece"}
    assert Counted.with_author({}) == {"by": "unknown"}


def test_a_class_without_a_topic_is_a_base_for_others() -> None:
    """An abstract event has no declaration; asking for one shows the class line that it lacks."""

    class OfAnOrder(Event):
        order: str

    class OrderSeen(OfAnOrder, topic="test-event.order-seen"):
        pass

    assert declaration(OrderSeen).topic == "test-event.order-seen"
    with pytest.raises(DeclarationError, match=r'class OfAnOrder\(Event, topic="\.\.\."\)'):
        declaration(OfAnOrder)


def test_a_topic_is_not_inherited() -> None:
    """A subclass of an event is another event, and says its own topic."""

    class Later(Ended):
        pass

    with pytest.raises(DeclarationError, match="Later"):
        declaration(Later)


@pytest.mark.parametrize(
    "topic",
    ["", ".", "order.", ".placed", "order..placed", "order placed", "order.*", "order.#", "größe", 7, "a\n"],
)
def test_a_bad_topic_is_refused(topic: Any) -> None:
    """The error names the class, shows the topic and the grammar with an example."""
    with pytest.raises(DeclarationError) as caught:

        class BadTopic(Event, topic=topic):
            pass

    assert "BadTopic" in caught.value.message
    assert repr(topic) in caught.value.message
    assert "order.placed" in caught.value.way_out


def test_a_topic_has_a_longest_length() -> None:
    """A routing key with a delay before it must fit into an AMQP short string."""

    class Long(Event, topic="test-event." + "x" * (MAX_TOPIC - 11)):
        pass

    with pytest.raises(DeclarationError, match=f"at most {MAX_TOPIC} bytes"):

        class TooLong(Event, topic="x" * (MAX_TOPIC + 1)):
            pass


def test_a_topic_belongs_to_one_event() -> None:
    """A second class with the topic is refused; the error names both classes and what to do."""
    with pytest.raises(DeclarationError) as caught:

        class Other(Event, topic="test-event.ended"):
            pass

    assert "Other" in caught.value.message
    assert "which Ended in" in caught.value.message
    assert "another topic" in caught.value.way_out
    assert known()["test-event.ended"] is Ended


def test_a_class_imported_anew_takes_its_own_place() -> None:
    """A reload makes the same class again, which is not a duplicate."""

    def module() -> type[Event]:
        class Reloaded(Event, topic="test-event.reloaded"):
            pass

        return Reloaded

    module()
    assert known()["test-event.reloaded"] is not module()
    assert known()["test-event.reloaded"] is not Ended


@pytest.mark.parametrize("version", [0, -1, 1.0, "2", True])
def test_a_bad_version_is_refused(version: Any) -> None:
    """A version is a whole number from 1."""
    with pytest.raises(DeclarationError) as caught:

        class BadVersion(Event, topic="test-event.bad-version", version=version):
            pass

    assert f"version={version!r}" in caught.value.message
    assert caught.value.way_out == "a version is a whole number from 1"
    assert "test-event.bad-version" not in known()


def test_an_unknown_class_keyword_is_refused() -> None:
    """A misspelt keyword is named, with those that there are."""
    with pytest.raises(DeclarationError, match="unknown class keyword 'topc'; allowed: topic, version"):

        class Misspelt(Event, topc="test-event.misspelt"):
            pass


def test_an_event_cannot_be_made_mutable() -> None:
    """A class that thaws the model is refused."""
    with pytest.raises(DeclarationError, match=r"Thawed.* is not frozen.*remove frozen=False"):

        class Thawed(Event, topic="test-event.thawed"):
            model_config = ConfigDict(frozen=False)


@pytest.mark.parametrize(("version", "mend"), [(1, "raise the event's version to 2"), (2, "between 1 and 1")])
def test_an_upcast_from_a_version_that_is_not_older_is_refused(version: int, mend: str) -> None:
    """The error names the upcast and the versions that it can be from."""
    with pytest.raises(DeclarationError) as caught:

        class BadUpcast(Event, topic="test-event.bad-upcast", version=version):
            @upcast(from_version=2)
            @staticmethod
            def same(body: dict[str, Any]) -> dict[str, Any]:
                return body

    assert "upcast same is from version 2" in caught.value.message
    assert mend in caught.value.way_out
