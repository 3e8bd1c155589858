"""What goes wrong in a rehearsal: what a test orders, and what a seed decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from random import Random
from typing import Final, NoReturn

from choreo import duration
from choreo.errors import UsageError


class Point(StrEnum):
    """The points of a delivery at which a process can end, in their order."""

    ARRIVED = "arrived"
    BEGUN = "reaction begun"  # it is about to be called
    DONE = "reaction done"  # it has had its effect
    PUBLISHED = "published"  # an event, a retry or a dead letter: the broker has it, the process does not know
    CONFIRMED = "confirmed"  # and now it does; a terminal event that nobody listens to counts too
    SETTLED = "settled"

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        raise UsageError(f"no point is {value!r:.60}", f"one of {', '.join(f'Point.{each.name}' for each in cls)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How often what goes wrong, on the schedules that `rehearse` explores. The seed decides; times are virtual.

    `latency`: whatever the broker says takes up to so many seconds, so that what is concurrent comes in any order.
    Chances from 0 to 1: `lost`, that a settled delivery comes again, its acknowledgement being lost; `doubled`, that a
    message is stored twice, as by a publisher that tried again; `late`, that a delivery comes up to `lateness` seconds
    after those behind it; `crashes`, that a process ends at a point that a delivery passes, up to `most_crashes` times
    in one schedule; `outages`, that an agent is killed once, and comes back after up to `outage` seconds.
    """

    latency: float = 0.05
    lost: float = 0.05
    doubled: float = 0.05
    late: float = 0.1
    lateness: float = 30.0
    crashes: float = 0.03
    most_crashes: int = 3
    outages: float = 0.1
    outage: float = 600.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            most = 1 if each.name in _CHANCES else float("inf")
            if not 0 <= value <= most:
                raise UsageError(f"Faults has {each.name}={value!r}", f"from 0 to {most}")


_CHANCES: Final = ("lost", "doubled", "late", "crashes", "outages")

NONE: Final = Faults(latency=0, lost=0, doubled=0, late=0, crashes=0, outages=0)


@dataclass(slots=True)
class _Order:
    """Something that is to go wrong, with the next deliveries of `topic` at `agent`; None stands for any."""

    what: Point | str
    agent: str | None
    topic: str | None
    times: int
    left: int
    seconds: float = 0.0
    maybe: bool = False

    def __str__(self) -> str:
        about, agent = self.topic or "any event", self.agent or "any agent"
        match self.what:
            case Point(name=name):
                said = f"crash(Point.{name}) of {agent}, taking {about}"
            case "lost":
                said = f"repeat({about}) at {agent}"
            case "doubled":
                said = f"double({about})"
            case "late":
                said = f"hold({duration.text(self.seconds)}, {about}) at {agent}"
            case _:
                said = str(self.what)
        return f"{said} ({self.left} of {self.times} times)" if self.times > 1 else said

    def fits(self, what: Point | str, agent: str | None, topic: str) -> bool:
        return self.left > 0 and self.what == what and self.agent in (None, agent) and self.topic in (None, topic)


class Fates:
    """Decides what goes wrong, and notes it. One seed decides alike each time, as long as it is asked alike."""

    def __init__(self, seed: int, faults: Faults, note: Callable[[str], None]) -> None:
        self.random = Random(seed)  # noqa: S311 - to be repeated, not to be secret
        self.faults = faults
        self._note = note
        self._orders: list[_Order] = []
        self._held: dict[tuple[str, str], float] = {}  # by agent and id: seconds that are left
        self._crashes = 0

    def order(
        self,
        what: Point | str,
        agent: str | None,
        topic: str | None,
        times: int,
        seconds: float = 0.0,
        *,
        maybe: bool = False,
    ) -> None:
        """Have `what` happen to the next deliveries that fit. Unless `maybe`, it is `unused` until it has happened."""
        self._orders.append(_Order(what, agent, topic, times, times, seconds, maybe))

    def unused(self) -> list[str]:
        """Return in words what was ordered and has not happened as often as it should."""
        return [str(each) for each in self._orders if each.left > 0 and not each.maybe]

    def latency(self) -> float:
        """Return how long one thing takes from the broker to its client."""
        return self.random.uniform(0, self.faults.latency)

    def crashes(self, point: Point, agent: str, topic: str) -> bool:
        """Say whether the process ends here."""
        lot = self._crashes < self.faults.most_crashes and self._strikes(self.faults.crashes)
        self._crashes += lot
        return self._happens(lot, point, agent, topic, f"{agent} crashes with {topic}: {point}") is not None

    def loses(self, agent: str, topic: str) -> bool:
        """Say whether an acknowledgement is lost, and the delivery comes again."""
        lot = self._strikes(self.faults.lost)
        text = f"{agent} gets {topic} again, its acknowledgement being lost"
        return self._happens(lot, "lost", agent, topic, text) is not None

    def doubles(self, topic: str) -> bool:
        """Say whether what is published is stored twice."""
        lot = self._strikes(self.faults.doubled)
        return self._happens(lot, "doubled", None, topic, f"{topic} is stored twice") is not None

    def lateness(self, agent: str, topic: str, event_id: str) -> float:
        """Return by how many seconds a delivery is late, behind those that follow it."""
        if (rest := self._held.pop((agent, event_id), None)) is not None:
            return rest
        lot = self._strikes(self.faults.late)
        seconds = self.random.uniform(0, self.faults.lateness) if lot else 0.0
        order = self._happens(lot, "late", agent, topic, f"{agent} gets {topic} late")
        return seconds if order is None else max(seconds, order.seconds)

    def hold_on(self, agent: str, event_id: str, seconds: float) -> None:
        """Have a delivery that goes back to its queue before its time come so much later again."""
        self._held[agent, event_id] = seconds

    def outage(self) -> tuple[float, float] | None:
        """Return after how many seconds an agent is killed, and how many later it comes back; None when it is not."""
        if not self._strikes(self.faults.outages):
            return None
        return self.random.uniform(0, 5), self.random.uniform(1, max(1, self.faults.outage))

    def _strikes(self, chance: float) -> bool:
        return chance > 0 and self.random.random() < chance

    def _happens(self, lot: bool, what: Point | str, agent: str | None, topic: str, text: str) -> _Order | None:  # noqa: FBT001
        order = next((each for each in self._orders if each.fits(what, agent, topic)), None)
        if order is not None:
            order.left -= 1
        elif lot:
            order = _Order(what, agent, topic, 0, 0)
        if order is not None:
            self._note(text)
        return order
