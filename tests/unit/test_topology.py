"""The topology as data: routing is simulated from the declared bindings alone, with no broker."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain, product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from choreo import pattern
from choreo.agent import Agent
from choreo.envelope import Envelope
from choreo.errors import DeclarationError
from choreo.event import MAX_TOPIC, Event
from choreo.retry import LONGEST_DELAY
from choreo.topology import (
    DELIVERY_LIMIT,
    LEVELS,
    NO_LIMIT,
    Binding,
    Names,
    Topology,
    return_key,
    schedule_key,
    topic_of,
)


class Placed(Event, topic="test-topology.placed"):
    pass


class Paid(Event, topic="test-topology.paid"):
    pass


class Home(Event, topic="agent.payment"):
    """A topic that looks like the end of the key which brings a message home to the agent payment."""


def audit(envelope: Envelope) -> None:
    raise NotImplementedError


def agents() -> list[Agent]:
    """Agents whose names and topics are as alike as the grammar allows, and one that takes everything."""
    payment, shop, agent, auditor = (Agent(name) for name in ("payment", "shop_payment", "agent", "audit"))

    @payment.on
    def charge(placed: Placed) -> Paid:
        raise NotImplementedError

    @shop.on
    def sell(placed: Placed) -> None:
        raise NotImplementedError

    @agent.on
    def welcome(home: Home) -> None:
        raise NotImplementedError

    @agent.on
    def count(paid: Paid) -> None:
        raise NotImplementedError

    auditor.on("#")(audit)
    return [payment, shop, agent, auditor]


NAMES = Names("choreo")
TOPOLOGY = Topology.of(agents(), "choreo")


class Broker:
    """Routes as RabbitMQ does, as far as this topology needs: topic and direct exchanges, expiry into an exchange."""

    def __init__(self, topology: Topology) -> None:
        self.exchanges = {each.name: each for each in topology.exchanges}
        self.queues = {each.name: each for each in topology.queues}
        self.bindings: dict[str, list[Binding]] = defaultdict(list)
        for binding in topology.bindings:
            self.bindings[binding.source].append(binding)

    def route(self, exchange: str, key: str) -> set[str]:
        """Return the queues that a message published to `exchange` with `key` is stored in."""
        found: set[str] = set()
        declared = self.exchanges[exchange]
        matching = [each for each in self.bindings[exchange] if self._matches(exchange, each.pattern, key)]
        if not matching and declared.alternate is not None:
            return self.route(declared.alternate, key)
        for binding in matching:
            # By whichever ways a message comes to a queue, it is stored there once.
            found |= {binding.destination} if binding.to == "queue" else self.route(binding.destination, key)
        return found

    def delete(self, queue: str) -> None:
        """Delete a queue, and with it its bindings."""
        del self.queues[queue]
        for source, bindings in self.bindings.items():
            self.bindings[source] = [each for each in bindings if each.destination != queue]

    def travel(self, key: str) -> tuple[list[str], set[str]]:
        """Return the levels that a message on the ladder with `key` waits in, in order, and where it arrives."""
        waited: list[str] = []
        at = self.route(NAMES.delay, key)
        while at and all(self.queues[each].kind == "delay" for each in at):
            assert len(at) == 1
            waited += at
            arguments = self.queues[waited[-1]].arguments
            assert "x-dead-letter-routing-key" not in arguments
            at = self.route(arguments["x-dead-letter-exchange"], key)
        return waited, at

    def _matches(self, exchange: str, bound: str, key: str) -> bool:
        return pattern.matches(bound, key) if self.exchanges[exchange].type == "topic" else bound == key


BROKER = Broker(TOPOLOGY)
seconds_of_the_ladder = st.integers(0, 2**LEVELS - 1)


def levels(seconds: int) -> list[str]:
    """Return the levels whose bit is set in `seconds`, highest first."""
    return [NAMES.level(level) for level in reversed(range(LEVELS)) if seconds & 2**level]


@example(seconds=0)
@example(seconds=1)
@example(seconds=2**LEVELS - 1)
@given(seconds=seconds_of_the_ladder)
def test_a_retry_waits_in_the_levels_of_its_bits_and_comes_back_to_one_queue(seconds: int) -> None:
    """The levels' times add up to exactly the delay, and no sibling, however like its name, sees the retry."""
    for agent in ("payment", "shop_payment", "agent", "audit"):
        waited, arrived = BROKER.travel(return_key(agent, seconds))
        assert waited == levels(seconds)
        assert sum(BROKER.queues[each].arguments["x-message-ttl"] for each in waited) == 1000 * seconds
        assert arrived == {NAMES.queue(agent)}


@example(seconds=0)
@example(seconds=2**LEVELS - 1)
@given(seconds=seconds_of_the_ladder)
def test_a_scheduled_event_reaches_everyone_who_listens(seconds: int) -> None:
    """The same ladder ends, for an event, at the queues that it would have reached without a delay."""
    for topic in ("test-topology.placed", "test-topology.paid", "agent.payment", "unheard.of"):
        waited, arrived = BROKER.travel(schedule_key(topic, seconds))
        assert waited == levels(seconds)
        assert arrived == BROKER.route(NAMES.events, topic)
        assert NAMES.queue("audit") in arrived


@given(seconds=seconds_of_the_ladder)
def test_a_delay_whose_destination_was_deleted_meanwhile_ends_in_a_dead_letter_queue(seconds: int) -> None:
    """An agent's queue is deleted, or its binding, while messages wait: they do not stand at the end of the ladder,
    where a few of them would hold up those of all other agents."""
    broker = Broker(TOPOLOGY)
    broker.delete(NAMES.queue("payment"))
    broker.delete(NAMES.queue("audit"))
    assert broker.travel(return_key("payment", seconds)) == (levels(seconds), {NAMES.dlq("payment")})
    assert broker.travel(return_key("shop_payment", seconds)) == (levels(seconds), {NAMES.queue("shop_payment")})
    assert broker.travel(schedule_key("unheard.of", seconds)) == (levels(seconds), {NAMES.dlq("unclaimed")})
    placed = broker.travel(schedule_key("test-topology.placed", seconds))
    assert placed == (levels(seconds), {NAMES.queue("shop_payment")})


@pytest.mark.parametrize("seconds", [0, 1, 5, 2**LEVELS - 1])
@pytest.mark.parametrize(
    "key",
    [
        lambda seconds: return_key("nobody", seconds),
        lambda seconds: return_key("shop.payment", seconds),
        lambda seconds: return_key("payment.shop", seconds),
        lambda seconds: "0." + return_key("payment", seconds),
        lambda seconds: return_key("payment", seconds).partition(".")[2],
    ],
)
def test_a_delay_towards_nobody_is_refused_at_the_entry(key: object, seconds: int) -> None:
    """What could not arrive in the end goes nowhere at once, so that the publisher gets it back; `shop.payment` is not
    `payment`, because the patterns of the return way have a fixed number of words."""
    assert callable(key)
    assert BROKER.route(NAMES.delay, key(seconds)) == set()


def test_a_scheduled_event_that_nobody_listens_to_is_refused_at_the_entry() -> None:
    quiet = Broker(Topology.of([agent for agent in agents() if agent.name != "audit"]))
    assert quiet.route(NAMES.delay, schedule_key("unheard.of", 5)) == set()


def test_longest_delay_fits_the_ladder() -> None:
    """A retry policy never asks for more than twenty bits."""
    assert LONGEST_DELAY == 2**LEVELS - 1
    assert len(return_key("payment", LONGEST_DELAY).split(".")) == LEVELS + 2


def test_keys_fit_an_amqp_short_string() -> None:
    """The longest agent name and the longest topic leave room for the bits: a routing key has at most 255 bytes."""
    assert len(return_key("a" * 63, LONGEST_DELAY).encode()) <= 255
    assert len(schedule_key("t" * MAX_TOPIC, LONGEST_DELAY).encode()) <= 255


def test_names() -> None:
    """Every name begins with the namespace, and no two things of one kind share one."""
    names = Names("shop")
    assert (names.events, names.retry, names.dead, names.delay) == (
        "shop.events",
        "shop.retry",
        "shop.dead",
        "shop.delay",
    )
    assert (names.queue("payment"), names.dlq("payment"), names.level(3)) == (
        "shop.payment",
        "shop.payment.dlq",
        "shop.delay.3",
    )
    topology = Topology.of(agents(), "shop")
    for things in (topology.exchanges, topology.queues):
        found = [each.name for each in things]
        assert len(found) == len(set(found))
        assert all(name.startswith("shop.") for name in found)


@pytest.mark.parametrize("name", ["events", "retry", "dead", "delay", "dlq", "agent", "event"])
def test_no_agent_name_collides_with_the_topologys_own(name: str) -> None:
    """An agent may be called as an exchange, a level's family or a word of the keys is."""
    agent = Agent(name)
    agent.on("#")(audit)
    other = Agent("payment")
    other.on("test-topology.*")(audit)
    topology = Topology.of([agent, other])
    queues = [each.name for each in topology.queues]
    assert len(set(queues)) == len(queues)
    assert Broker(topology).travel(return_key(name, 5)) == (levels(5), {NAMES.queue(name)})
    assert Broker(topology).travel(return_key("payment", 5)) == (levels(5), {NAMES.queue("payment")})


def test_agents_cannot_be_called_as_a_queue_that_all_share() -> None:
    """Such a name is refused when the agent is declared, not by the broker when it starts."""
    shared = [each.name.removeprefix("choreo.") for each in TOPOLOGY.queues if each.agent is None]
    for name in shared:
        with pytest.raises(DeclarationError):
            Agent(name)


def test_the_same_agents_make_the_same_topology() -> None:
    """It is data: equal when made again, whatever the agents' other options; nothing is in it twice."""
    again = Topology.of(agents(), "choreo")
    assert again == TOPOLOGY
    assert len(set(again.bindings)) == len(again.bindings)
    assert Topology.of(agents(), "other") != TOPOLOGY


def test_agents_together_are_the_union_of_agents_alone() -> None:
    """Who starts one worker per agent and who starts all in one declare the same things, in any order."""
    alone = [Topology.of([agent]) for agent in agents()]
    assert set(chain(*(each.bindings for each in alone))) == set(TOPOLOGY.bindings)
    assert {each.name for each in chain(*(each.queues for each in alone))} == {each.name for each in TOPOLOGY.queues}
    by_name = {each.name: each for each in TOPOLOGY.queues}
    assert all(by_name[each.name] == each for one in alone for each in one.queues)


def test_everything_named_is_declared() -> None:
    """Bindings and dead-letter ways lead from and to things that are in the topology."""
    exchanges = {each.name for each in TOPOLOGY.exchanges}
    queues = {each.name for each in TOPOLOGY.queues}
    for binding in TOPOLOGY.bindings:
        assert binding.source in exchanges
        assert binding.destination in (queues if binding.to == "queue" else exchanges)
    for queue in TOPOLOGY.queues:
        assert queue.arguments.get("x-dead-letter-exchange", NAMES.events) in exchanges


def test_queues_are_safe() -> None:
    """Quorum queues, limits said explicitly, no dead letter lost on its way; a dead-letter queue has neither a time to
    live nor a limit that anyone reaches."""
    for queue in TOPOLOGY.queues:
        arguments = dict(queue.arguments)
        assert arguments.pop("x-queue-type") == "quorum"
        limit = arguments.pop("x-delivery-limit")
        assert limit == (DELIVERY_LIMIT if queue.kind == "work" else NO_LIMIT)
        if queue.kind == "dlq":
            assert arguments == {"x-overflow": "reject-publish"}
            assert queue.before == {"x-queue-type": "quorum", "x-delivery-limit": NO_LIMIT}
            continue
        assert arguments.pop("x-dead-letter-strategy") == "at-least-once"
        assert arguments.pop("x-overflow") == "reject-publish"
        assert ("x-message-ttl" in arguments) == (queue.kind == "delay")


def test_crash_loops_end_in_the_agents_own_dead_letter_queue() -> None:
    """What the broker dead-letters itself, at the delivery limit, is routed to the one agent's dead-letter queue."""
    for agent in ("payment", "shop_payment", "agent", "audit"):
        arguments = BROKER.queues[NAMES.queue(agent)].arguments
        found = BROKER.route(arguments["x-dead-letter-exchange"], arguments["x-dead-letter-routing-key"])
        assert found == {NAMES.dlq(agent)}


@pytest.mark.parametrize(
    ("exchange", "key", "topic"),
    [
        ("choreo.events", "order.placed", "order.placed"),
        ("choreo.events", "", ""),
        ("amq.topic", "order.placed", "order.placed"),
        ("choreo.retry", schedule_key("order.placed", 5), "order.placed"),
        ("choreo.retry", schedule_key("placed", 5), "placed"),
        ("choreo.delay.0", schedule_key("order.placed", 0), "order.placed"),
        ("choreo.retry", schedule_key("agent.payment", 5), "agent.payment"),
        ("choreo.retry", return_key("payment", 5), None),
        ("choreo.retry", return_key("event", 5), None),
        ("choreo.retry", "1.0.event.order.placed", None),
        ("choreo.retry", "", None),
    ],
)
def test_topic_of_an_arrival(exchange: str, key: str, topic: str | None) -> None:
    """The routing key is the topic, behind the bits for a scheduled event; a retry's topic stands in a header."""
    assert topic_of(NAMES, exchange, key) == topic


def test_every_pattern_on_the_return_way_has_its_words_counted() -> None:
    """No binding that leads to an agent begins with `#`: it would match longer keys, such as another agent's."""
    ways = [each for each in TOPOLOGY.bindings if each.source in (NAMES.retry, NAMES.delay, NAMES.unclaimed)]
    assert ways
    for binding, position in product(ways, range(LEVELS)):
        assert binding.pattern.split(".")[position] == "*"
    assert {each.pattern.split(".")[LEVELS] for each in ways} == {"agent", "event"}
