"""What has happened in a rehearsal: tries, emitted events, the ways that were gone, what went wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from choreo.agent import Agent
from choreo.envelope import Envelope, open_envelope
from choreo.errors import EnvelopeError, UsageError
from choreo.event import Event, declaration, known
from choreo.graph.choreography import Choreography, full_name
from choreo.message import TOPIC, Message
from choreo.reaction import Reaction
from choreo.topology import Names, topic_of
from choreo.transport import Confirmed, Delivery, Publication, Refused

E = TypeVar("E", bound=Event)


@dataclass(frozen=True, slots=True)
class Emission(Generic[E]):
    """An event that an agent has emitted and the broker has taken, at `time` seconds into the rehearsal.

    `reaction` is its full name, "payment.charge". `event` is the envelope where no reader could read it. An event
    that is emitted twice is there twice, with one id.
    """

    event: E
    envelope: Envelope
    agent: str
    reaction: str
    time: float


@dataclass(slots=True)
class Attempt:
    """One call of a reaction. Times are seconds into the rehearsal; `ended` is None while it runs.

    `reaction` is its full name; `number` counts the attempts of this event from 1, as the context does. `error` is what
    it raised; a process that ended meanwhile raises CancelledError.
    """

    reaction: str
    event: Event | Envelope
    event_id: str
    number: int
    began: float
    ended: float | None = None
    error: BaseException | None = field(default=None, repr=False)


class Hop(NamedTuple):
    """One hop of a choreography: `reaction` (its full name) takes `taken` and emits `emitted`, or nothing."""

    taken: str
    reaction: str
    emitted: str | None

    def __str__(self) -> str:
        return f"{self.taken} -> {self.reaction}" + (f" -> {self.emitted}" if self.emitted else "")


def declared(agents: Iterable[Agent]) -> set[Hop]:
    """Return all hops that the signatures of `agents` allow."""
    choreography = Choreography.of(agents)
    hops = {Hop(step.taken, full_name(step.reaction), step.emitted) for step in choreography.steps()}
    for event in choreography.events:
        hops |= {Hop(event.topic, full_name(each), None) for each in event.consumers if _emits_nothing(each)}
    return hops


class Record:
    """Everything that has happened. `time`: seconds into the rehearsal."""

    def __init__(self, names: Names, time: Callable[[], float]) -> None:
        self.agents: dict[str, Agent] = {}
        self.attempts: list[Attempt] = []
        self.emissions: list[Emission[Any]] = []
        self.walked: set[Hop] = set()
        self.faults: list[str] = []
        self._names = names
        self._time = time
        self._topics: dict[str, str] = {}  # of what has arrived somewhere, by id

    def note(self, fault: str) -> None:
        """Note what went wrong."""
        self.faults.append(f"{self._time():.3f} s: {fault}")

    def arrived(self, delivery: Delivery) -> tuple[str, str]:
        """Note that a delivery has arrived; return its topic and its id."""
        topic = topic_of(self._names, delivery.exchange, delivery.routing_key)
        found = topic or str(delivery.message.headers.get(TOPIC, ""))
        event_id = str(delivery.message.headers.get("ce-id") or delivery.message.message_id)
        self._topics[event_id] = found
        return found, event_id

    def attempts_of(self, reaction: str | None) -> list[Attempt]:
        """Return the attempts of a reaction or an agent, None: all. Raises UsageError for one that is not there."""
        agents = self.agents
        names = [*agents, *(f"{agent.name}.{each.name}" for agent in agents.values() for each in agent.reactions)]
        if reaction is not None and reaction not in names:
            raise UsageError(f"no reaction {reaction!r} is part of this rehearsal", f"there are: {', '.join(names)}")
        whole = [each for each in self.attempts if reaction in (None, each.reaction)]
        return whole or [each for each in self.attempts if each.reaction.startswith(f"{reaction}.")]

    def began(self, reaction: Reaction, event: Event | Envelope, event_id: str, number: int) -> Attempt:
        """Note that a reaction is called."""
        attempt = Attempt(full_name(reaction), event, event_id, number, self._time())
        self.attempts.append(attempt)
        return attempt

    def ended(self, attempt: Attempt, reaction: Reaction, error: BaseException | None = None) -> None:
        """Note how a call has ended."""
        attempt.ended, attempt.error = self._time(), error
        if error is None and _emits_nothing(reaction):
            topic = self._topics.get(attempt.event_id, "")
            self.walked.add(Hop(topic, full_name(reaction), None))

    def answered(self, message: Message, exchange: str, routing_key: str, answer: Publication) -> None:
        """Note what an agent has emitted: the broker has stored it, or nobody listens and nobody needs to."""
        agent = self.agents.get(message.app_id or "")
        kind = known().get(routing_key)
        if exchange != self._names.events or agent is None or kind is None:
            return
        match answer:
            case Confirmed():
                pass
            case Refused("returned") if declaration(kind).terminal:
                pass
            case _:
                return
        envelope = open_envelope(message, routing_key, max_body=len(message.body))
        event: Any = envelope
        with contextlib.suppress(
            EnvelopeError
        ):  # a rehearsal looks on: what it cannot read has been emitted all the same
            event = envelope.event(kind)
        taken = self._topics.get(envelope.causation_id or "", "")
        reaction = agent.reaction_to(taken)
        if reaction is None:
            return  # published by hand in the agent's name
        name = full_name(reaction)
        self.emissions.append(Emission(event, envelope, agent.name, name, self._time()))
        self.walked.add(Hop(taken, name, routing_key))


def topic_named(event: type[Event] | str | None) -> str | None:
    """Return the topic of an event class, or the one given."""
    return declaration(event).topic if isinstance(event, type) else event


def _emits_nothing(reaction: Reaction) -> bool:
    return not (reaction.emits or reaction.otherwise_emits)
