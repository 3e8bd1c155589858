"""The topology as data: which exchanges, queues and bindings a set of agents needs. Pure; names are made here only.

Delays are a ladder of twenty levels, one quorum queue with one constant TTL each (2^n seconds), because a TTL per
message expires only at a queue's head. A message carries its delay as twenty bits in its routing key, highest first,
and passes only the levels whose bit is set; after the last bit stands where it returns to. Modelled on NServiceBus'
delay infrastructure for RabbitMQ.

A level waits until what leaves it is stored where it goes, thirty-two messages at a time. So it must lead to nothing
that may be full or gone: a retry goes to a queue of its agent's own for retries, and a scheduled event to one queue
from which workers publish it to all who are bound by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, Literal

from choreo.agent import Agent

LEVELS: Final = 20
UNCLAIMED: Final = "unclaimed"  # no agent has this name; `choreo dlq list unclaimed` shows what is addressed to nobody
# Deliveries that end with the consumer's crash. The broker dead-letters a message beyond it; choreo counts its own
# tries in a header, so this catches crash loops only.
DELIVERY_LIMIT: Final = 20
# A dead-letter queue must never drop what it holds, however often it is looked at. RabbitMQ 4 limits deliveries to 20
# by default, and -1 for "no limit" is refused before 4.0: a number that no queue reaches means the same to
# every release, and an upgrade does not find a queue with other arguments.
NO_LIMIT: Final = 1_000_000_000

_KEPT_BEFORE: Final = {"x-queue-type": "quorum", "x-delivery-limit": NO_LIMIT}
# An operator's policy may give every queue a length, and a full one drops its oldest letter for the newest unless told
# otherwise. Told here, it refuses the newest, which is then held and said. A policy with `overflow` still goes before.
_KEEPING: Final = _KEPT_BEFORE | {"x-overflow": "reject-publish"}

QueueKind = Literal["work", "retry", "dlq", "delay", "journal"]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange. What it cannot route goes to the exchange `alternate`, if it has one."""

    name: str
    type: Literal["topic", "direct"]
    alternate: str | None = None


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable quorum queue. `agent` is its owner, None for those that all agents share.

    `before`: what earlier releases declared it with. Arguments do not change in place: such a queue is taken as it is.
    """

    name: str
    kind: QueueKind
    agent: str | None
    arguments: Mapping[str, Any] = field(hash=False)
    before: Mapping[str, Any] | None = field(default=None, hash=False)


@dataclass(frozen=True, slots=True)
class Binding:
    """A binding from an exchange to a queue, or to another exchange."""

    source: str
    destination: str
    pattern: str
    to: Literal["queue", "exchange"] = "queue"


class Names:
    """The names of everything in one namespace."""

    def __init__(self, namespace: str = "choreo") -> None:
        self.namespace = namespace
        self.events = f"{namespace}.events"
        self.dead = f"{namespace}.dead"
        self.retry = f"{namespace}.retry"
        self.delay = f"{namespace}.delay"
        self.entry = f"{self.delay}.entry"
        self.due = f"{self.delay}.due"
        self.unclaimed = f"{namespace}.unclaimed"  # the exchange; its queue is the dead-letter queue of that name

    def level(self, level: int) -> str:
        """Return the name of both the exchange and the queue of one level of the delay ladder."""
        return f"{self.delay}.{level}"

    def queue(self, agent: str) -> str:
        """Return the name of an agent's queue."""
        return f"{self.namespace}.{agent}"

    def retries(self, agent: str) -> str:
        """Return the name of the queue that an agent's retries come back to."""
        return f"{self.namespace}.{agent}.retry"

    def dlq(self, agent: str) -> str:
        """Return the name of an agent's dead-letter queue."""
        return f"{self.namespace}.{agent}.dlq"


def return_key(agent: str, seconds: int) -> str:
    """Return the routing key that brings a retry back to `agent` alone, after `seconds` on the ladder."""
    return f"{_bits(seconds)}.retry.{agent}"


def replay_key(agent: str) -> str:
    """Return the routing key by which the exchange of retries knows the work queue of `agent`."""
    return f"{_bits(0)}.agent.{agent}"


def schedule_key(topic: str, seconds: int, refused: int = 0) -> str:
    """Return the routing key of an event that is published to all after `seconds` on the ladder.

    `refused`: how often it was due before and not stored by all who were bound; one digit.
    """
    return f"{_bits(seconds)}.due.{refused}.{topic}"


def older_schedule_key(topic: str, seconds: int) -> str:
    """Return the key of a namespace in which no worker has run yet that publishes due events: agents alone get it."""
    return f"{_bits(seconds)}.event.{topic}"


def scheduled(routing_key: str) -> tuple[str, int]:
    """Return the topic of an event that is due, and how often it was refused before."""
    refused, _, topic = _behind_delay(routing_key)[1].partition(".")
    return topic, int(refused) if refused.isdecimal() else 0


def topic_of(names: Names, exchange: str, routing_key: str) -> str | None:
    """Return the topic of a message that arrived from `exchange` with `routing_key`.

    None for one that came back to a single agent: its topic stands in a header.
    """
    if exchange == names.events or not (exchange == names.retry or exchange.startswith(names.delay)):
        return routing_key
    return topic_in(routing_key) if _behind_delay(routing_key)[0] else None


def topic_in(routing_key: str) -> str | None:
    """Return the topic of a key that may carry a delay; None for the way back to one agent, which names no topic."""
    kind, rest = _behind_delay(routing_key)
    return {"due": scheduled(routing_key)[0], "event": rest, "retry": None, "agent": None}.get(kind, routing_key)


def _behind_delay(routing_key: str) -> tuple[str, str]:
    """Return the word behind the bits and all that follows it, or two empty texts for a key that carries no delay."""
    words = routing_key.split(".", LEVELS + 1)
    if len(words) < LEVELS + 2 or not set(words[:LEVELS]) <= {"0", "1"}:
        return "", ""
    return words[LEVELS], words[-1]


@dataclass(frozen=True, slots=True)
class Topology:
    """Everything to declare, in an order in which each thing's needs stand before it."""

    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...]
    bindings: tuple[Binding, ...]

    @classmethod
    def of(cls, agents: Iterable[Agent], namespace: str = "choreo") -> Topology:
        """Return what `agents` need on the broker, in `namespace`."""
        names = Names(namespace)
        agents = list(agents)
        return cls(
            exchanges=_exchanges(names),
            queues=tuple(chain(_shared_queues(names), *(_agent_queues(agent.name, names) for agent in agents))),
            bindings=tuple(
                dict.fromkeys(chain(_shared_bindings(names), *(_agent_bindings(agent, names) for agent in agents)))
            ),
        )


def _exchanges(names: Names) -> tuple[Exchange, ...]:
    levels = (Exchange(names.level(level), "topic") for level in range(LEVELS))
    return (
        Exchange(names.events, "topic"),
        Exchange(names.dead, "direct"),
        Exchange(names.unclaimed, "topic"),
        Exchange(names.retry, "topic", alternate=names.unclaimed),
        Exchange(names.delay, "topic"),
        Exchange(names.entry, "topic"),
        *levels,
    )


def _agent_queues(agent: str, names: Names) -> Iterable[Queue]:
    work = _quorum(names.dead, DELIVERY_LIMIT) | {"x-dead-letter-routing-key": agent}
    yield Queue(names.queue(agent), "work", agent, work)
    yield Queue(names.retries(agent), "retry", agent, work)
    yield Queue(names.dlq(agent), "dlq", agent, _KEEPING, before=_KEPT_BEFORE)


def _agent_bindings(agent: Agent, names: Names) -> Iterable[Binding]:
    queue, dlq, any_delay = names.queue(agent.name), names.dlq(agent.name), _stars(LEVELS)
    retry, replay = f"{any_delay}retry.{agent.name}", f"{any_delay}agent.{agent.name}"
    yield Binding(names.dead, dlq, agent.name)
    # The entry of the ladder knows every agent, so that a retry of one that is not there comes back at once.
    yield Binding(names.delay, names.entry, retry, to="exchange")
    yield Binding(names.retry, names.retries(agent.name), retry)
    yield Binding(names.retry, queue, replay)
    # An agent's queue may be deleted while a retry waits in a delay. Its return must not be left standing at the end of
    # the ladder: a few dozen of those, and at-least-once dead-lettering lets nothing else pass that level.
    yield Binding(names.unclaimed, dlq, retry)
    yield Binding(names.unclaimed, dlq, replay)
    for pattern in agent.patterns:
        yield Binding(names.events, queue, pattern)
    yield from _older_bindings(agent, names, replay)


def _older_bindings(agent: Agent, names: Names, replay: str) -> Iterable[Binding]:
    """Yield the ways from before there were queues for retries: for what waits on them when an installation is updated,
    and for older workers beside ours.

    They end in the work queue itself. Nothing of ours takes them: its keys have another word behind the bits.
    """
    first = names.level(LEVELS - 1)
    yield Binding(names.delay, first, replay, to="exchange")
    for pattern in agent.patterns:
        event = f"{_stars(LEVELS)}event.{pattern}"
        yield Binding(names.retry, names.queue(agent.name), event)
        yield Binding(names.delay, first, event, to="exchange")


def _shared_queues(names: Names) -> Iterable[Queue]:
    yield Queue(names.dlq(UNCLAIMED), "dlq", None, _KEEPING, before=_KEPT_BEFORE)
    yield Queue(names.due, "delay", None, _KEEPING)
    for level in range(LEVELS):
        # No delivery limit counts here: nobody consumes from a delay.
        arguments = _quorum(_below(level, names), NO_LIMIT) | {"x-message-ttl": 1000 * 2**level}
        yield Queue(names.level(level), "delay", None, arguments)


def _shared_bindings(names: Names) -> Iterable[Binding]:
    due = f"{_stars(LEVELS)}due.#"
    yield Binding(names.delay, names.entry, due, to="exchange")
    yield Binding(names.retry, names.due, due)
    yield Binding(names.unclaimed, names.dlq(UNCLAIMED), due)
    yield Binding(names.unclaimed, names.dlq(UNCLAIMED), _stars(LEVELS) + "event.#")
    yield Binding(names.entry, names.retry, "0." * LEVELS + "#", to="exchange")
    for level in range(LEVELS):
        # Straight to the highest level whose bit is set: to pass the others costs the broker up to 1.6 ms [measured].
        yield Binding(names.entry, names.level(level), "0." * (LEVELS - 1 - level) + "1.#")
        before = _stars(LEVELS - 1 - level)
        yield Binding(names.level(level), names.level(level), f"{before}1.#")
        yield Binding(names.level(level), _below(level, names), f"{before}0.#", to="exchange")


def _below(level: int, names: Names) -> str:
    return names.level(level - 1) if level else names.retry


def _quorum(dead_letter_exchange: str, delivery_limit: int) -> dict[str, Any]:
    """Return the arguments of a quorum queue that loses nothing on its way to `dead_letter_exchange`."""
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": delivery_limit,
        "x-dead-letter-exchange": dead_letter_exchange,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",  # at-least-once dead-lettering asks for it
    }


def _stars(count: int) -> str:
    return "*." * count


def _bits(seconds: int) -> str:
    return ".".join(f"{seconds:0{LEVELS}b}")
