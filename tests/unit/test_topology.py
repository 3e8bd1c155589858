"""The topology as data: routing is simulated from the declared bindings alone, with no broker."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain, product

import pytest
from hypothesis import example, given, settings
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
    older_schedule_key,
    replay_key,
    return_key,
    schedule_key,
    scheduled,
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

    def __init__(self, topology: Topology, passed: list[str] | None = None) -> None:
        self.passed = [] if passed is None else passed
        self.exchanges = {each.name: each for each in topology.exchanges}
        self.queues = {each.name: each for each in topology.queues}
        self.bindings: dict[str, list[Binding]] = defaultdict(list)
        for binding in topology.bindings:
            self.bindings[binding.source].append(binding)

    def route(self, exchange: str, key: str) -> set[str]:
        """Return the queues that a message published to `exchange` with `key` is stored in."""
        found: set[str] = set()
        declared = self.exchanges[exchange]
        self.passed.append(exchange)
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
        while at and all("x-message-ttl" in self.queues[each].arguments for each in at):
            assert len(at) == 1
            waited += at
            arguments = self.queues[waited[-1]].arguments
            assert "x-dead-letter-routing-key" not in arguments
            at = self.route(arguments["x-dead-letter-exchange"], key)
        return waited, at

    def _matches(self, exchange: str, bound: str, key: str) -> bool:
        return pattern.matches(bound, key) if self.exchanges[exchange].type == "topic" else bound == key


BROKER = Broker(TOPOLOGY)
few = settings(max_examples=15)  # each goes over twenty exchanges in plain Python
seconds_of_the_ladder = st.integers(0, 2**LEVELS - 1)


def levels(seconds: int) -> list[str]:
    """Return the levels whose bit is set in `seconds`, highest first."""
    return [NAMES.level(level) for level in reversed(range(LEVELS)) if seconds & 2**level]


def older(end: str, seconds: int) -> str:
    """Return a key as it was before there were queues for retries: bits, then `agent.NAME` or `event.TOPIC`."""
    return ".".join([*f"{seconds:020b}", end])


@example(seconds=0)
@example(seconds=1)
@example(seconds=2**LEVELS - 1)
@few
@given(seconds=seconds_of_the_ladder)
def test_a_retry_waits_in_the_levels_of_its_bits_and_comes_back_to_one_queue(seconds: int) -> None:
    """The levels' times add up to exactly the delay, and no sibling, however like its name, sees the retry."""
    for agent in ("payment", "shop_payment", "agent", "audit"):
        waited, arrived = BROKER.travel(return_key(agent, seconds))
        assert waited == levels(seconds)
        assert sum(BROKER.queues[each].arguments["x-message-ttl"] for each in waited) == 1000 * seconds
        assert arrived == {NAMES.retries(agent)}


@example(seconds=0, refused=0)
@example(seconds=2**LEVELS - 1, refused=9)
@few
@given(seconds=seconds_of_the_ladder, refused=st.integers(0, 9))
def test_a_scheduled_event_comes_to_where_it_is_published_from(seconds: int, refused: int) -> None:
    """Whoever listens, and if nobody does, a scheduled event is due in one queue, which says what it is."""
    for topic in ("test-topology.placed", "test-topology.paid", "agent.payment", "unheard.of", "1.0.due.0.x"):
        key = schedule_key(topic, seconds, refused)
        assert BROKER.travel(key) == (levels(seconds), {NAMES.due})
        assert scheduled(key) == (topic, refused)


@few
@given(seconds=st.integers(1, 2**LEVELS - 1))
def test_what_is_delayed_goes_straight_to_its_first_level(seconds: int) -> None:
    """No exchange of a level lies on the way in: each costs the broker up to 80 µs."""
    passed: list[str] = []
    broker = Broker(TOPOLOGY, passed)
    for key in (return_key("payment", seconds), schedule_key("test-topology.placed", seconds)):
        passed.clear()
        assert broker.route(NAMES.delay, key) == {levels(seconds)[0]}
        assert passed == [NAMES.delay, NAMES.entry]


@example(seconds=0)
@example(seconds=2**LEVELS - 1)
@few
@given(seconds=seconds_of_the_ladder)
def test_the_ladder_still_takes_the_keys_of_older_workers(seconds: int) -> None:
    """What waits when an installation is updated, and what older workers send: once, to the work queues, as before."""
    for agent in ("payment", "shop_payment", "agent", "audit"):
        assert BROKER.travel(older(f"agent.{agent}", seconds)) == (levels(seconds), {NAMES.queue(agent)})
    for topic in ("test-topology.placed", "test-topology.paid", "agent.payment", "unheard.of"):
        assert older_schedule_key(topic, seconds) == older(f"event.{topic}", seconds)
        waited, arrived = BROKER.travel(older_schedule_key(topic, seconds))
        assert (waited, arrived) == (levels(seconds), BROKER.route(NAMES.events, topic))
        assert NAMES.queue("audit") in arrived


@few
@given(seconds=seconds_of_the_ladder)
def test_a_delay_whose_destination_was_deleted_meanwhile_ends_in_a_dead_letter_queue(seconds: int) -> None:
    """An agent's queue is deleted, or its binding, while messages wait: they do not stand at the end of the ladder,
    where a few of them would hold up those of all other agents."""
    broker = Broker(TOPOLOGY)
    for queue in (NAMES.queue("payment"), NAMES.retries("payment"), NAMES.queue("audit"), NAMES.due):
        broker.delete(queue)
    assert broker.travel(return_key("payment", seconds)) == (levels(seconds), {NAMES.dlq("payment")})
    assert broker.travel(return_key("shop_payment", seconds)) == (levels(seconds), {NAMES.retries("shop_payment")})
    assert broker.travel(schedule_key("unheard.of", seconds)) == (levels(seconds), {NAMES.dlq("unclaimed")})
    assert broker.travel(older("agent.payment", seconds)) == (levels(seconds), {NAMES.dlq("payment")})
    assert broker.travel(older("event.unheard.of", seconds)) == (levels(seconds), {NAMES.dlq("unclaimed")})
    placed = broker.travel(older("event.test-topology.placed", seconds))
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


def test_a_scheduled_event_is_taken_whoever_listens() -> None:
    """A queue that others have bound is not known at the entry. Who has only older workers refuses it, as before."""
    quiet = Broker(Topology.of([agent for agent in agents() if agent.name != "audit"]))
    assert quiet.route(NAMES.delay, schedule_key("unheard.of", 5)) == {NAMES.level(2)}
    assert quiet.route(NAMES.delay, older_schedule_key("unheard.of", 5)) == set()


def test_longest_delay_fits_the_ladder() -> None:
    """A retry policy never asks for more than twenty bits."""
    assert LONGEST_DELAY == 2**LEVELS - 1
    assert len(return_key("payment", LONGEST_DELAY).split(".")) == LEVELS + 2


def test_keys_fit_an_amqp_short_string() -> None:
    """The longest agent name and the longest topic leave room for the bits: a routing key has at most 255 bytes."""
    assert len(return_key("a" * 63, LONGEST_DELAY).encode()) <= 255
    assert len(schedule_key("t" * MAX_TOPIC, LONGEST_DELAY, 9).encode()) <= 255


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


@pytest.mark.parametrize("name", ["events", "retry", "dead", "delay", "dlq", "agent", "event", "due"])
def test_no_agent_name_collides_with_the_topologys_own(name: str) -> None:
    """An agent may be called as an exchange, a level's family or a word of the keys is."""
    agent = Agent(name)
    agent.on("#")(audit)
    other = Agent("payment")
    other.on("test-topology.*")(audit)
    topology = Topology.of([agent, other])
    queues = [each.name for each in topology.queues]
    assert len(set(queues)) == len(queues)
    assert Broker(topology).travel(return_key(name, 5)) == (levels(5), {NAMES.retries(name)})
    assert Broker(topology).travel(return_key("payment", 5)) == (levels(5), {NAMES.retries("payment")})


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
        assert limit == (DELIVERY_LIMIT if queue.kind in ("work", "retry") else NO_LIMIT)
        if queue.kind == "dlq":
            assert arguments == {"x-overflow": "reject-publish"}
            assert queue.before == {"x-queue-type": "quorum", "x-delivery-limit": NO_LIMIT}
            continue
        assert arguments.pop("x-overflow") == "reject-publish"
        if queue.name == NAMES.due:  # what is there waits for a worker, for as long as it takes
            assert arguments == {}
            continue
        assert arguments.pop("x-dead-letter-strategy") == "at-least-once"
        assert ("x-message-ttl" in arguments) == (queue.kind == "delay")


def test_crash_loops_end_in_the_agents_own_dead_letter_queue() -> None:
    """What the broker dead-letters itself, at the delivery limit, is routed to the one agent's dead-letter queue."""
    for agent in ("payment", "shop_payment", "agent", "audit"):
        for queue in (NAMES.queue(agent), NAMES.retries(agent)):
            arguments = BROKER.queues[queue].arguments
            found = BROKER.route(arguments["x-dead-letter-exchange"], arguments["x-dead-letter-routing-key"])
            assert found == {NAMES.dlq(agent)}


def test_a_replay_goes_to_the_work_queue_of_one_agent() -> None:
    """Where also an older worker takes it."""
    for agent in ("payment", "shop_payment", "agent", "audit"):
        assert BROKER.route(NAMES.retry, replay_key(agent)) == {NAMES.queue(agent)}


@pytest.mark.parametrize(
    ("exchange", "key", "topic"),
    [
        ("choreo.events", "order.placed", "order.placed"),
        ("choreo.events", "", ""),
        ("amq.topic", "order.placed", "order.placed"),
        ("choreo.retry", older_schedule_key("order.placed", 5), "order.placed"),
        ("choreo.retry", older_schedule_key("agent.payment", 5), "agent.payment"),
        ("choreo.retry", replay_key("payment"), None),
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
    assert {each.pattern.split(".")[LEVELS] for each in ways} == {"agent", "event", "retry", "due"}


def test_nothing_that_was_declared_before_is_declared_otherwise() -> None:
    """An installation is updated in place: RabbitMQ refuses a queue or an exchange with other arguments."""
    arguments = {each.name: each.arguments for each in TOPOLOGY.queues}
    work = {"x-queue-type": "quorum", "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
    kept = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000}
    dead = {"x-dead-letter-exchange": "choreo.dead", "x-dead-letter-routing-key": "payment", "x-delivery-limit": 20}
    assert arguments["choreo.payment"] == work | dead
    before = {each.name: each.before for each in TOPOLOGY.queues}
    assert before["choreo.payment.dlq"] == before["choreo.unclaimed.dlq"] == kept  # is let be where it stands
    for level in range(20):
        below = f"choreo.delay.{level - 1}" if level else "choreo.retry"
        delay = {"x-delivery-limit": 1_000_000_000, "x-dead-letter-exchange": below, "x-message-ttl": 1000 * 2**level}
        assert arguments[f"choreo.delay.{level}"] == work | delay
    exchanges = {each.name: (each.type, each.alternate) for each in TOPOLOGY.exchanges}
    assert exchanges["choreo.retry"] == ("topic", "choreo.unclaimed")
    assert exchanges["choreo.dead"] == ("direct", None)
    topics = ("events", "unclaimed", "delay", *(f"delay.{level}" for level in range(20)))
    assert all(exchanges[f"choreo.{name}"] == ("topic", None) for name in topics)
