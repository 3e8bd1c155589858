"""The example: its reactions called as a user's unit test would, and the whole process without a broker."""

from __future__ import annotations

import inspect
import json
from collections import Counter, deque
from contextlib import AsyncExitStack
from typing import Any

import pytest
from structlog.testing import capture_logs

from agents import _bank, inventory, notification, order, payment, shipping
from agents._luck import DEFAULT_SEED, draw, strikes
from agents.events import (
    OrderCancelled,
    OrderCompleted,
    OrderPlaced,
    OutOfStock,
    PaymentDeclined,
    PaymentRefunded,
    PaymentTaken,
    Shipped,
    ShippingFailed,
    StockReleased,
    StockReserved,
)
from choreo import Agent, Context, Envelope, Event
from choreo.envelope import open_envelope, seal
from choreo.event import declaration
from choreo.graph.choreography import Choreography
from choreo.outcome import DeadLetter, Otherwise, decide
from choreo.reaction import Reaction
from demo.ledger import End, Ledger
from demo.orders import draw as draw_orders

AGENTS = [order.agent, payment.agent, inventory.agent, shipping.agent, notification.agent]


@pytest.fixture(autouse=True)
def quick_and_default(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CHOREO_SEED", raising=False)
    monkeypatch.setattr(_bank, "LATENCY", 0)


def placed(number: str = "1001", **changes: Any) -> OrderPlaced:
    body = {"order": number, "total": "42.00", "currency": "EUR", "items": {"book": 3}}
    return OrderPlaced.model_validate(body | changes)


def context(*, attempt: int = 1, resources: Any = None, event_id: str = "e1") -> Context:
    return Context(
        event_id=event_id,
        topic="order.placed",
        correlation_id="c1",
        causation_id=None,
        attempt=attempt,
        hops=0,
        agent="payment",
        reaction="charge",
        resources=resources,
    )


def number_where(condition: Any) -> str:
    return next(number for number in map(str, range(1001, 9999)) if condition(number))


async def test_charge_takes_the_money():
    """A card that is good: the receipt and the items go on."""
    taken = await payment.charge(placed(), context(resources=_bank.Client()))

    assert isinstance(taken, PaymentTaken)
    assert (taken.order, taken.items) == ("1001", {"book": 3})
    assert taken.receipt


async def test_one_key_moves_money_once():
    """A redelivery asks the bank with the same key, and gets the same receipt."""
    client = _bank.Client()

    first, again, other = [
        await payment.charge(placed(), context(resources=client, event_id=event_id)) for event_id in ("e1", "e1", "e2")
    ]

    assert first == again != other


async def test_a_declined_card_is_an_answer():
    """No exception, so no further try."""
    number = number_where(lambda n: strikes("card", n, odds=1 / 12) and not _bank.failing_tries(n))

    declined = await payment.charge(placed(number), context(resources=_bank.Client()))

    assert declined == PaymentDeclined(order=number, reason="the card was declined for 42.00 EUR")


async def test_a_flaky_bank_answers_in_the_end():
    """The first two tries fail, whichever process makes them; the third succeeds."""
    number = number_where(lambda n: _bank.failing_tries(n) == 2)

    for attempt in (1, 2):
        with pytest.raises(_bank.Unreachable):
            await payment.charge(placed(number), context(attempt=attempt, resources=_bank.Client()))

    await payment.charge(placed(number), context(attempt=3, resources=_bank.Client()))


@pytest.mark.parametrize(
    "failed",
    [
        OutOfStock(order="1001", reason="out of stock: lamp"),
        ShippingFailed(order="1001", items={"lamp": 1}, reason="no such address"),
    ],
)
async def test_refund_gives_the_money_back(failed: OutOfStock | ShippingFailed):
    """Whatever came between, the reason travels on to the customer."""
    refunded = await payment.refund(failed, context(resources=_bank.Client()))

    assert refunded == PaymentRefunded(order="1001", reason=failed.reason)


@pytest.mark.parametrize(
    ("items", "answer"),
    [
        ({"book": 20}, StockReserved(order="1", items={"book": 20})),
        ({"book": 21}, OutOfStock(order="1", reason="out of stock: book")),
        ({"book": 1, "desk": 3, "unicorn": 1}, OutOfStock(order="1", reason="out of stock: desk, unicorn")),
    ],
)
async def test_reserve_takes_all_or_nothing(items: dict[str, int], answer: Event):
    assert await inventory.reserve(PaymentTaken(order="1", receipt="R", items=items)) == answer


async def test_release_puts_back_what_was_reserved():
    failed = ShippingFailed(order="1", items={"lamp": 2}, reason="no such address")

    assert await inventory.release(failed) == StockReleased(order="1", items={"lamp": 2})


async def test_ship_hands_over_what_the_carrier_takes():
    """Heavy parcels and unknown addresses are answers; both tell what has to go back."""
    lost = number_where(lambda n: strikes("address", n, odds=0.08))

    assert await shipping.ship(StockReserved(order="1001", items={"desk": 1})) == Shipped(
        order="1001", tracking="CH-1001"
    )
    assert await shipping.ship(StockReserved(order="1001", items={"desk": 2})) == ShippingFailed(
        order="1001", items={"desk": 2}, reason="the parcel weighs 38.0 kg, the carrier takes 31.5"
    )
    assert await shipping.ship(StockReserved(order=lost, items={"book": 1})) == ShippingFailed(
        order=lost, items={"book": 1}, reason="the carrier cannot find the address"
    )


async def test_ship_has_its_bug():
    """The demo's dead letter: an item without a weight is a KeyError, not an answer."""
    with pytest.raises(KeyError, match="globe"):
        await shipping.ship(StockReserved(order="1001", items={"globe": 1}))


async def test_order_closes_every_order():
    assert await order.complete(Shipped(order="1", tracking="T")) == OrderCompleted(order="1", tracking="T")
    for failed in (PaymentDeclined(order="1", reason="no"), PaymentRefunded(order="1", reason="no")):
        assert await order.cancel(failed) == OrderCancelled(order="1", reason="no")


@pytest.mark.parametrize(
    ("ended", "text"),
    [
        (OrderCompleted(order="1", tracking="T"), "Your order 1 is on its way: T."),
        (
            OrderCancelled(order="1", reason="no lamps"),
            "Your order 1 was cancelled: no lamps. You have not been charged.",
        ),
    ],
)
def test_notification_tells_the_customer(ended: OrderCompleted | OrderCancelled, text: str):
    with capture_logs() as logs:
        notification.tell(ended, context())

    assert [(line["event"], line["text"], line["key"]) for line in logs] == [
        ("customer told", text, "e1:payment.charge")
    ]


def test_an_order_of_version_1_was_in_euros():
    """A shop that has not been updated yet may go on as it is."""
    old = json.loads(placed().model_dump_json(exclude={"currency"}))

    lifted = declaration(OrderPlaced).lift(old, 1)

    assert OrderPlaced.model_validate(lifted) == placed()


@pytest.mark.parametrize("changes", [{"total": "0"}, {"total": "4.999"}, {"currency": "Euro"}, {"items": {"book": 0}}])
def test_what_is_no_order_is_refused(changes: dict[str, Any]):
    with pytest.raises(ValueError, match="validation error"):
        placed(**changes)


def test_luck_depends_on_seed_and_order_only(monkeypatch: pytest.MonkeyPatch):
    """These very numbers come out in every process, on every machine."""
    default = draw("bank", "1001")
    monkeypatch.setenv("CHOREO_SEED", "7")

    assert draw("bank", "1001") != default
    monkeypatch.setenv("CHOREO_SEED", DEFAULT_SEED)
    assert draw("bank", "1001") == default
    assert [number for number in map(str, range(1001, 1021)) if _bank.failing_tries(number)] == [
        "1003",
        "1007",
        "1008",
        "1011",
        "1013",
        "1016",
    ]


def test_nothing_is_wrong_with_the_choreography():
    """No loop, nothing unheard, nothing unfed, and what is taken can be given back."""
    choreography = Choreography.of(AGENTS)

    assert choreography.findings() == ()
    assert {each.name: each.compensates for each in choreography.reactions if each.compensates} == {
        "refund": "charge",
        "release": "reserve",
    }


async def test_the_twenty_orders_of_the_demo_end_in_every_way():
    """Every order is accounted for, and the summary of the demo is known beforehand."""
    orders = draw_orders()
    ledger = Ledger(each.order for each in orders)

    for each in orders:
        await play(each, ledger)

    assert ledger.open == []
    assert ledger.count() == Counter({End.COMPLETED: 13, End.DECLINED: 3, End.REFUNDED: 3, End.DEAD: 1})
    paths = {tuple(story.path) for story in ledger if story.end is End.REFUNDED}
    assert paths == {
        ("order.placed", "payment.taken", "stock.out", "payment.refunded", "order.cancelled"),
        (
            "order.placed",
            "payment.taken",
            "stock.reserved",
            "shipping.failed",
            "payment.refunded",
            "stock.released",
            "order.cancelled",
        ),
    }


@pytest.mark.parametrize("seed", ["1", "2", "3"])
async def test_every_order_ends_under_any_seed(seed: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CHOREO_SEED", seed)
    orders = draw_orders()
    ledger = Ledger(each.order for each in orders)

    for each in orders:
        await play(each, ledger)

    assert ledger.open == []


def test_a_story_is_over_when_everything_is_undone():
    """A cancelled order whose items are not back yet is still open; one event seen twice counts once."""
    ledger = Ledger(["1"])
    [story] = ledger
    cancelled = OrderCancelled(order="1", reason="no address")

    for event in (
        ShippingFailed(order="1", items={"book": 1}, reason="no address"),
        PaymentRefunded(order="1", reason="no address"),
        cancelled,
        cancelled,
    ):
        ledger.saw(travelling(event, name=type(event).__name__))
    assert ledger.open == [story]
    assert len(story.path) == 3

    ledger.saw(travelling(StockReleased(order="1", items={"book": 1})))
    assert (story.end, story.reason) == (End.REFUNDED, "no address")


def test_the_log_of_an_agent_tells_what_is_no_event():
    """A failed try is news until the next event; a dead letter ends the story, unless the order had ended before."""
    ledger = Ledger(["1"])
    [story] = ledger
    line = {"correlation_id": "1", "agent": "payment", "error": "Unreachable('no answer')"}

    ledger.heard(line | {"event": "failed", "next": "retry in 1 s"})
    assert (story.news, story.end) == ("payment will retry in 1 s: Unreachable('no answer')", None)

    ledger.saw(travelling(PaymentDeclined(order="1", reason="no")))
    assert (story.news, ledger.retries) == ("", 1)

    ledger.heard(line | {"event": "dead letter"})
    assert story.end is End.DEAD
    assert ledger.heard(line | {"event": "worker"}) is None
    assert ledger.heard({"event": "failed"}) is None


def travelling(event: Event, name: str | None = None) -> Envelope:
    """Return the envelope of an event of the transaction "1", as it arrives somewhere."""
    return open_envelope(seal(event, source="test", event_id=name, correlation_id="1"), declaration(event).topic)


async def play(first: OrderPlaced, ledger: Ledger) -> None:
    """Let an order travel through all agents, with the real decisions and without the waiting."""
    waiting = deque([open_envelope(seal(first, source="shop", correlation_id=first.order), "order.placed")])
    async with AsyncExitStack() as stack:
        resources = {
            agent.name: await stack.enter_async_context(agent.lifespan()) if agent.lifespan else None
            for agent in AGENTS
        }
        while waiting:
            envelope = waiting.popleft()
            story = ledger.saw(envelope)
            for agent in AGENTS:
                reaction = agent.reaction_to(envelope.topic)
                if reaction is None:
                    continue
                emitted = await react(agent, reaction, envelope, resources[agent.name])
                if emitted is None:
                    story.dead = True
                    continue
                waiting.extend(
                    open_envelope(seal(each, source=agent.name, cause=envelope), declaration(each).topic)
                    for each in emitted
                )


async def react(agent: Agent, reaction: Reaction, envelope: Envelope, resources: Any) -> list[Event] | None:
    """Return what a reaction emits in the end, None for a dead letter."""
    event = envelope.event(reaction.consumes[envelope.topic])
    attempt = 0
    while True:
        attempt += 1
        arguments = [event]
        if reaction.takes_context:
            arguments.append(context(attempt=attempt, resources=resources))  # type: ignore[arg-type]
        try:
            result = reaction.function(*arguments)
            result = await result if inspect.isawaitable(result) else result
        except Exception as error:  # noqa: BLE001 - decide() sorts them
            decision = decide(reaction, error, attempt=attempt, elapsed=0)
            if isinstance(decision, DeadLetter):
                return None
            if not isinstance(decision, Otherwise):
                continue
            assert reaction.otherwise is not None
            result = reaction.otherwise(event, error)
        assert result is None or type(result) in (*reaction.emits, *reaction.otherwise_emits)
        return [] if result is None else [result]
