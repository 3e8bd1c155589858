"""The order example, rehearsed: its agents as they are, together, in virtual time, and with everything going wrong."""

from __future__ import annotations

from collections.abc import Collection
from types import ModuleType
from typing import Any

import pytest

from agents import _bank, inventory, notification, order, payment, shipping
from agents.events import (
    OrderCancelled,
    OrderCompleted,
    OrderPlaced,
    PaymentDeclined,
    PaymentRefunded,
    PaymentTaken,
    Shipped,
    StockReleased,
)
from choreo import Agent, Retry
from choreo.testing import Point, Rehearsal, rehearse
from choreo.testing.record import Attempt

CAST: tuple[ModuleType, ...] = (order, payment, inventory, shipping, notification)


class Bank(_bank.Client):
    """A bank that knows what it has moved, by key, and that can be out of reach."""

    def __init__(self, *, unreachable: float = 0, declines: Collection[str] = ()) -> None:
        self.moved: dict[str, str] = {}
        self.calls: list[str] = []
        self._unreachable = unreachable
        self._declines = declines

    async def charge(self, order: str, total: Any, currency: str, *, key: str, attempt: int) -> _bank.Answer:
        self._reached(attempt)
        if order in self._declines:
            return _bank.Answer(refusal="the card was declined")
        self._move(f"charge {order}", key)
        return _bank.Answer(receipt=f"R-{order}")

    async def refund(self, order: str, *, key: str, attempt: int) -> _bank.Answer:
        self._reached(attempt)
        self._move(f"refund {order}", key)
        return _bank.Answer(receipt=f"R-{order}")

    def _reached(self, attempt: int) -> None:
        if attempt <= self._unreachable:
            raise _bank.Unreachable("the bank could not be reached")

    def _move(self, what: str, key: str) -> None:
        self.calls.append(what)
        self.moved[key] = what

    @property
    def books(self) -> list[str]:
        """What has really been moved: one key moves money once."""
        return sorted(self.moved.values())


def placed(number: str = "1001", /, **items: int) -> OrderPlaced:
    return OrderPlaced.model_validate(
        {"order": number, "total": "42.00", "currency": "EUR", "items": items or {"book": 3}}
    )


@pytest.fixture(autouse=True)
def no_bad_luck(monkeypatch: pytest.MonkeyPatch):
    """The carrier finds every address."""
    monkeypatch.setattr(shipping, "strikes", lambda *_, **__: False)


async def test_an_order_is_paid_packed_and_sent(rehearsal: Rehearsal):
    bank = Bank()
    await rehearsal.start(*CAST, resources={"payment": bank})
    await rehearsal.publish(placed())
    await rehearsal.settled()
    assert [type(each).__name__ for each in rehearsal.events()] == [
        "PaymentTaken",
        "StockReserved",
        "Shipped",
        "OrderCompleted",
    ]
    assert bank.books == ["charge 1001"]
    assert len(rehearsal.attempts("notification.tell")) == 1
    assert rehearsal.dead_letters == []


@pytest.mark.parametrize(
    ("items", "released"), [({"desk": 3}, []), ({"desk": 2}, [StockReleased(order="1001", items={"desk": 2})])]
)
async def test_an_order_that_fails_is_cancelled_and_refunded(
    rehearsal: Rehearsal, items: dict[str, int], released: list[StockReleased]
):
    """Out of stock, or too heavy for the carrier: then what lay aside goes back to the shelf too."""
    bank = Bank()
    await rehearsal.start(*CAST, resources={"payment": bank})
    await rehearsal.publish(placed(**items))
    await rehearsal.settled()
    assert bank.books == ["charge 1001", "refund 1001"]
    assert rehearsal.events(StockReleased) == released
    assert len(rehearsal.events(PaymentRefunded)) == len(rehearsal.events(OrderCancelled)) == 1
    assert not rehearsal.events(OrderCompleted)
    assert not rehearsal.events(Shipped)


async def test_every_declared_step_is_gone_by_some_order(rehearsal: Rehearsal):
    """What the picture in README shows is what happens: all of it, and nothing besides."""
    await rehearsal.start(*CAST, resources={"payment": Bank(declines={"4"})})
    for number, items in (("1", {"book": 1}), ("2", {"desk": 3}), ("3", {"desk": 2}), ("4", {"book": 1})):
        await rehearsal.publish(placed(number, **items))
    await rehearsal.settled()
    assert rehearsal.walked == rehearsal.declared


async def test_a_declined_card_ends_the_order(rehearsal: Rehearsal):
    bank = Bank(declines={"1001"})
    await rehearsal.start(*CAST, resources={"payment": bank})
    await rehearsal.publish(placed())
    await rehearsal.settled()
    assert rehearsal.events(OrderCancelled) == [OrderCancelled(order="1001", reason="the card was declined")]
    assert bank.books == []


def patient_payment() -> Agent:
    """Payment with the patience of a day: a try at once, then one every two hours."""
    agent = Agent("payment", retry=Retry(on=_bank.Unreachable, attempts=13, first="2h", ceiling="2h"))
    agent.on(otherwise=payment.declined)(payment.charge)
    agent.on(compensates=payment.charge)(payment.refund)
    return agent


def hours(attempts: list[Attempt]) -> list[int]:
    return [int(each.began // 3_600) for each in attempts]


async def test_a_bank_that_is_away_for_a_day_costs_no_order(rehearsal: Rehearsal):
    """Tried again for twelve times, hours apart; the thirteenth gets through."""
    bank = Bank(unreachable=12)
    await rehearsal.start(patient_payment(), order, inventory, shipping, notification, resources={"payment": bank})
    await rehearsal.publish(placed())
    await rehearsal.advance("23h")
    assert rehearsal.events() == []
    await rehearsal.settled()
    tries = rehearsal.attempts("payment.charge")
    assert [each.number for each in tries] == list(range(1, 14))
    assert round(rehearsal.elapsed) == 24 * 3_600
    assert hours(tries) == sorted(hours(tries))
    assert len(rehearsal.events(OrderCompleted)) == 1


async def test_a_bank_that_stays_away_ends_the_order(rehearsal: Rehearsal):
    """After the last try the order is given up, with the reason, and nothing was taken."""
    bank = Bank(unreachable=99)
    await rehearsal.start(patient_payment(), order, inventory, shipping, notification, resources={"payment": bank})
    await rehearsal.publish(placed())
    await rehearsal.settled()
    reason = "the bank could not be reached"
    assert rehearsal.events() == [
        PaymentDeclined(order="1001", reason=reason),
        OrderCancelled(order="1001", reason=reason),
    ]
    assert bank.books == []


async def test_globes_wait_for_a_person(rehearsal: Rehearsal):
    """The bug of the example: its KeyError is on the dead letter, and the other orders get through."""
    await rehearsal.start(*CAST, resources={"payment": Bank()})
    for number, items in (("1", {"globe": 1}), ("2", {"book": 1})):
        await rehearsal.publish(placed(number, **items))
    await rehearsal.settled()
    [letter] = rehearsal.dead_letters
    assert (letter.agent, letter.reaction, letter.error_type) == ("shipping", "ship", "KeyError")
    assert [each.order for each in rehearsal.events(OrderCompleted)] == ["2"]


@pytest.mark.parametrize("agent", ["payment", "inventory", "shipping", "order", "notification"])
async def test_what_comes_twice_happens_once(rehearsal: Rehearsal, agent: str):
    """Each agent gets what it takes twice: the money moves once, and the order ends once."""
    bank = Bank()
    await rehearsal.start(*CAST, resources={"payment": bank})
    rehearsal.repeat(agent=agent, times=3)
    await rehearsal.publish(placed(desk=2))
    await rehearsal.settled()
    assert rehearsal.faults
    assert bank.books == ["charge 1001", "refund 1001"]
    assert len(rehearsal.events(OrderCancelled)) == 1


@pytest.mark.parametrize("agent", ["payment", "inventory", "shipping", "order", "notification"])
@pytest.mark.parametrize("point", Point)
async def test_a_crash_anywhere_loses_nothing(rehearsal: Rehearsal, point: Point, agent: str):
    """Notification emits nothing, so two of the points are none of its."""
    bank = Bank()
    await rehearsal.start(*CAST, resources={"payment": bank})
    publishes = agent != "notification" or point not in (Point.PUBLISHED, Point.CONFIRMED)
    rehearsal.crash(point, agent, maybe=not publishes)
    await rehearsal.publish(placed())
    await rehearsal.settled()
    assert len(rehearsal.faults) == publishes
    assert bank.books == ["charge 1001"]
    assert len(rehearsal.events(OrderCompleted)) == 1
    assert rehearsal.dead_letters == []


async def test_an_agent_that_is_down_for_a_day_is_waited_for(rehearsal: Rehearsal):
    await rehearsal.start(*CAST, resources={"payment": Bank()})
    async with rehearsal.down(shipping):
        for number in range(5):
            await rehearsal.publish(placed(str(number)))
        await rehearsal.advance("1d")
        assert len(rehearsal.events(PaymentTaken)) == 5
        assert rehearsal.events(Shipped) == []
    await rehearsal.settled()
    assert len(rehearsal.events(OrderCompleted)) == 5


def test_every_order_ends_once_on_every_schedule():
    """Completed and paid, or cancelled and paid back: on all schedules, however often what comes again or late."""

    async def scenario(rehearsal: Rehearsal) -> None:
        bank = Bank(unreachable=1)
        await rehearsal.start(*CAST, resources={"payment": bank})
        for number, items in (("1", {"book": 1}), ("2", {"desk": 3}), ("3", {"desk": 2})):
            await rehearsal.publish(placed(number, **items))
        await rehearsal.settled()
        assert rehearsal.dead_letters == []
        assert {each.order for each in rehearsal.events(OrderCompleted)} == {"1"}
        assert {each.order for each in rehearsal.events(OrderCancelled)} == {"2", "3"}
        assert bank.books == ["charge 1", "charge 2", "charge 3", "refund 2", "refund 3"]

    assert rehearse(scenario, schedules=25).schedules == 25
