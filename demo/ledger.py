"""The ledger: what is known of each order, and how it ended. Pure; it is told what was seen and heard."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from choreo import ChoreoError, Envelope


class End(StrEnum):
    """How an order can end."""

    COMPLETED = "completed"
    DECLINED = "cancelled, never charged"
    REFUNDED = "cancelled and refunded"
    DEAD = "dead-lettered"


@dataclass(slots=True)
class Story:
    """One order. `reason` is why it was cancelled; `news` what was last heard of it that is not an event."""

    order: str
    reason: str = ""
    news: str = ""
    dead: bool = False
    _events: dict[str, tuple[int, str]] = field(default_factory=dict)  # id → hops and topic

    @property
    def path(self) -> list[str]:
        """The topics of its events in the order of cause and effect."""
        return [topic for _, topic in sorted(self._events.values(), key=lambda event: event[0])]

    @property
    def end(self) -> End | None:
        """How it ended; None while something is still to come, such as items that are not back on the shelf."""
        path = self.path
        if "order.completed" in path:
            return End.COMPLETED
        if "order.cancelled" in path and ("shipping.failed" not in path or "stock.released" in path):
            return End.REFUNDED if "payment.refunded" in path else End.DECLINED
        return End.DEAD if self.dead else None

    def saw(self, envelope: Envelope, body: Mapping[str, Any]) -> None:
        """Note an event; one that is delivered twice has the same id and counts once."""
        self._events[envelope.id] = (envelope.hops, envelope.topic)
        self.reason = str(body.get("reason", self.reason))
        self.news = ""


class Ledger:
    """The stories of all orders, by correlation id. Those of the demo have the number of the order as theirs."""

    def __init__(self, orders: Iterable[str]) -> None:
        self._stories = {order: Story(order) for order in orders}
        self.retries = 0

    def __iter__(self) -> Iterator[Story]:
        return iter(self._stories.values())

    @property
    def open(self) -> list[Story]:
        """The orders that have not ended."""
        return [story for story in self if story.end is None]

    def count(self) -> Counter[End]:
        """Return how many orders ended in which way."""
        return Counter(story.end for story in self if story.end is not None)

    def saw(self, envelope: Envelope) -> Story:
        """Note an event that was seen on the broker, also of an order that somebody placed from outside."""
        body = _body(envelope)
        story = self._stories.get(envelope.correlation_id)
        if story is None:
            story = Story(str(body.get("order", envelope.correlation_id[:8])))
            self._stories[envelope.correlation_id] = story
        story.saw(envelope, body)
        return story

    def heard(self, line: Mapping[str, Any]) -> Story | None:
        """Note a line of an agent's log. None when it tells of nothing but what becomes an event anyway."""
        story = self._stories.get(str(line.get("correlation_id")))
        if story is None:
            return None
        if line.get("event") == "dead letter":
            story.dead = True
            story.news = f"dead letter of {line['agent']}: {line['error']}"
        elif line.get("event") == "failed" and line["next"].startswith("retry"):
            self.retries += 1
            story.news = f"{line['agent']} will {line['next']}: {line['error']}"
        else:
            return None
        return story


def _body(envelope: Envelope) -> Mapping[str, Any]:
    try:
        body = envelope.json()
    except ChoreoError:  # somebody tries what happens to rubbish
        return {}
    return body if isinstance(body, dict) else {}
