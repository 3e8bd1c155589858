"""The choreography: all agents' reactions seen as one graph, and what is wrong with it.

It follows from declarations alone: nothing here runs a reaction or speaks to a broker.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal

from choreo import pattern
from choreo.agent import Agent
from choreo.errors import DeclarationError
from choreo.event import Event, declaration, known
from choreo.reaction import Reaction

Rule = Literal["loop", "unheard", "unfed"]
Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a choreography: by which rule, where in the code, what to do (`hint`).

    An `error` makes deliveries end as dead letters once it runs: a loop at the agent's `max_hops`, an
    unheard event when the broker returns it. A `warning` (unfed) is a reaction that never runs.
    """

    rule: Rule
    severity: Severity
    message: str
    where: str
    hint: str


@dataclass(frozen=True, slots=True)
class KnownEvent:
    """One event of the graph. `kind` is None for a topic that only a subscription names, as text.

    `emitters` emit it by return or by `otherwise`; `consumers` take it by its class or by a pattern.
    """

    topic: str
    kind: type[Event] | None
    emitters: tuple[Reaction, ...]
    consumers: tuple[Reaction, ...]

    @property
    def takers(self) -> tuple[Reaction, ...]:
        """Those consumers that take it for what it is; whoever takes envelopes by a pattern only looks on."""
        return tuple(each for each in self.consumers if each.consumes or self.topic in each.patterns)

    @property
    def external(self) -> bool:
        """Whether it is declared to come from outside."""
        return self.kind is not None and declaration(self.kind).external

    @property
    def terminal(self) -> bool:
        """Whether it is declared that nobody needs to take it."""
        return self.kind is not None and declaration(self.kind).terminal


@dataclass(frozen=True, slots=True)
class Step:
    """A way through one reaction: it takes the event `taken` and may emit the event `emitted`."""

    taken: str
    reaction: Reaction = field(hash=False)
    emitted: str


@dataclass(frozen=True, slots=True)
class Choreography:
    """All agents and their events, in the order in which events reach them, from outside on."""

    agents: tuple[Agent, ...]
    events: tuple[KnownEvent, ...]

    @classmethod
    def of(cls, agents: Iterable[Agent], declared: Iterable[type[Event]] | None = None) -> Choreography:
        """Return the choreography of `agents`, whatever their order.

        `declared`: the event classes that patterns may stand for, by default all that have been imported.
        Raises DeclarationError when two agents have one name.
        """
        by_name = _by_name(agents)
        reactions = [each for name in sorted(by_name) for each in by_name[name].reactions]
        events = _events(reactions, known().values() if declared is None else declared)
        topics, names = _flow(events)
        names += [name for name in sorted(by_name) if name not in names]
        return cls(
            agents=tuple(by_name[name] for name in names),
            events=tuple(events[topic] for topic in topics),
        )

    @property
    def reactions(self) -> tuple[Reaction, ...]:
        """All reactions, agent by agent."""
        return tuple(reaction for agent in self.agents for reaction in agent.reactions)

    def findings(self) -> tuple[Finding, ...]:
        """Return everything that is wrong, loops first; empty when nothing is."""
        unheard = (_unheard(each) for each in self.events if each.emitters and not (each.takers or each.terminal))
        unfed = (_unfed(each) for each in self.events if each.takers and not (each.emitters or each.external))
        return (*map(_loop, self.loops()), *unheard, *unfed, *self._unfed_patterns())

    def loops(self) -> tuple[tuple[Step, ...], ...]:
        """Return the loops that no `max_hops` of a reaction bounds, each as the steps of one round.

        Every step that lies on such a loop is in at least one of them. There are thus no more of them than
        steps, and each is the shortest for some step; all loops of a graph can be exponentially many.
        """
        entry = {event.topic: (not event.external, place) for place, event in enumerate(self.events)}
        steps = _looping([step for step in self.steps() if step.reaction.max_hops is None])
        onward: dict[str, list[Step]] = {}
        for step in steps:
            onward.setdefault(step.taken, []).append(step)
        found, covered = [], set[Step]()
        for step in steps:
            back = None if step in covered else _shortest(step.emitted, step.taken, onward)
            if back is not None:
                found.append(_turned([step, *back], lambda step: entry[step.taken]))
                covered.update(found[-1])
        return tuple(found)

    def steps(self) -> Iterator[Step]:
        """Yield every way through a reaction, in the order of the events."""
        for event in self.events:
            for reaction in event.consumers:
                for emitted in dict.fromkeys(reaction.emits + reaction.otherwise_emits):
                    yield Step(event.topic, reaction, declaration(emitted).topic)

    def _unfed_patterns(self) -> Iterator[Finding]:
        """Yield a finding for each wildcard that no event reaches and whose events are not named besides."""
        fed = [event for event in self.events if event.emitters or event.external]
        for reaction in self.reactions:
            for each in reaction.patterns:
                heard = not pattern.is_wildcard(each) or any(pattern.matches(each, one.topic) for one in fed)
                if not heard and not reaction.consumes:
                    yield _unfed_pattern(reaction, each, [one.topic for one in fed])


def full_name(reaction: Reaction) -> str:
    """Return a reaction's name with its agent's: "payment.charge"."""
    return f"{reaction.agent}.{reaction.name}"


def _by_name(agents: Iterable[Agent]) -> dict[str, Agent]:
    by_name: dict[str, Agent] = {}
    for agent in agents:
        other = by_name.setdefault(agent.name, agent)
        if other is not agent and other.where == agent.where and len(names := _modules_of(agent, other)) > 1:
            raise DeclarationError(
                f"agent {agent.name!r} at {agent.where} is imported twice, as {' and as '.join(names)}",
                f"import it by one name everywhere, the one that choreo uses: {min(names, key=len)}",
            )
        if other is not agent:
            raise DeclarationError(
                f"two agents have the name {agent.name!r}: at {other.where} and at {agent.where}",
                "give one of them another name: an agent owns its queue",
            )
    return by_name


def _modules_of(*agents: Agent) -> list[str]:
    """Return the names of the modules that hold `agents`."""
    modules = list(sys.modules.items())
    return sorted(
        name for name, module in modules if any(value is each for value in vars(module).values() for each in agents)
    )


def _events(reactions: Sequence[Reaction], declared: Iterable[type[Event]]) -> dict[str, KnownEvent]:
    """Return every event that one of `reactions` emits or takes, by topic, sorted."""
    kinds = {declaration(each).topic: each for each in declared if each.__choreo__ is not None}
    emitters: dict[str, list[Reaction]] = {}
    for reaction in reactions:
        kinds |= reaction.consumes
        for emitted in dict.fromkeys(reaction.emits + reaction.otherwise_emits):
            topic = declaration(emitted).topic
            kinds[topic] = emitted
            emitters.setdefault(topic, []).append(reaction)
    named = {each for reaction in reactions for each in reaction.patterns if not pattern.is_wildcard(each)}
    named.update(topic for reaction in reactions for topic in reaction.consumes)
    from_outside = {topic for topic, kind in kinds.items() if declaration(kind).external}
    events = {}
    for topic in sorted(named | from_outside | emitters.keys()):
        consumers = tuple(each for each in reactions if _takes(each, topic))
        if consumers or topic in emitters:
            events[topic] = KnownEvent(topic, kinds.get(topic), tuple(emitters.get(topic, ())), consumers)
    return events


def _takes(reaction: Reaction, topic: str) -> bool:
    if reaction.consumes:
        return topic in reaction.consumes
    return any(pattern.matches(each, topic) for each in reaction.patterns)


def _flow(events: dict[str, KnownEvent]) -> tuple[list[str], list[str]]:
    """Return topics and agents' names in the order in which they are reached, without mere listeners."""
    outside = [topic for topic, event in events.items() if event.external]
    unfed = [topic for topic, event in events.items() if not event.emitters]
    topics, names = dict[str, None](), dict[str, None]()
    for start in (*outside, *unfed, *events):
        waiting = deque([start])
        while waiting:
            topic = waiting.popleft()
            if topic in topics:
                continue
            topics[topic] = None
            for reaction in events[topic].consumers:
                if reaction.consumes:  # one that takes whatever matches a pattern is not part of the flow
                    names[reaction.agent] = None
                    waiting.extend(declaration(each).topic for each in reaction.emits + reaction.otherwise_emits)
    return list(topics), list(names)


def _looping(steps: list[Step]) -> list[Step]:
    """Return `steps` without those before and after all loops: none, where there is no loop."""
    while True:
        taken, emitted = {step.taken for step in steps}, {step.emitted for step in steps}
        kept = [step for step in steps if step.taken in emitted and step.emitted in taken]
        if len(kept) == len(steps):
            return kept
        steps = kept


def _shortest(start: str, goal: str, onward: dict[str, list[Step]]) -> list[Step] | None:
    """Return the fewest steps from one event to another, None when there is no way."""
    ways: dict[str, list[Step]] = {start: []}
    waiting = deque([start])
    while waiting and goal not in ways:
        here = waiting.popleft()
        for step in onward.get(here, ()):
            if step.emitted not in ways:
                ways[step.emitted] = [*ways[here], step]
                waiting.append(step.emitted)
    return ways.get(goal)


def _turned(loop: list[Step], entry: Callable[[Step], tuple[bool, int]]) -> tuple[Step, ...]:
    """Return `loop` beginning where one comes in from outside."""
    first = loop.index(min(loop, key=entry))
    return (*loop[first:], *loop[:first])


def _loop(loop: tuple[Step, ...]) -> Finding:
    path = "".join(f"{step.taken} -> {full_name(step.reaction)} -> " for step in loop) + loop[0].taken
    last = loop[-1].reaction
    return Finding(
        rule="loop",
        severity="error",
        message=f"{path} is a cycle without a declared bound",
        where=last.where,
        hint=f"if it is intended, bound it with max_hops in the decorator of {full_name(last)}, as in "
        f"@agent.on(max_hops=8); if not, {last.name} must not emit {loop[0].taken}",
    )


def _unheard(event: KnownEvent) -> Finding:
    kind = _name(event)
    lookers = f"; {_listed(event.consumers)} only looks on, by a pattern" if event.consumers else ""
    return Finding(
        rule="unheard",
        severity="error",
        message=f"{event.topic} is emitted by {_listed(event.emitters)}, and no agent takes it{lookers}",
        where=event.emitters[0].where,
        hint=f"let an agent take it: @agent.on over a function of (event: {kind}); or declare that nobody "
        f"needs to: {_class_line(event, 'terminal')}",
    )


def _unfed(event: KnownEvent) -> Finding:
    return Finding(
        rule="unfed",
        severity="warning",
        message=f"{event.topic} is taken by {_listed(event.takers)}, and no agent emits it",
        where=event.takers[0].where,
        hint=f"let a reaction return it: -> {_name(event)}; or declare that it comes from outside: "
        f"{_class_line(event, 'external')}",
    )


def _unfed_pattern(reaction: Reaction, subscription: str, topics: list[str]) -> Finding:
    near = get_close_matches(subscription, topics, n=3, cutoff=0.0)
    return Finding(
        rule="unfed",
        severity="warning",
        message=f"{full_name(reaction)} takes {subscription!r}, which matches no event that an agent emits "
        "or that comes from outside",
        where=reaction.where,
        hint=f"correct it (nearest topics: {', '.join(near) or 'none'}); or declare an event for it: "
        'class Something(Event, topic="...", external=True)',
    )


def _listed(reactions: tuple[Reaction, ...]) -> str:
    return ", ".join(full_name(each) for each in reactions)


def _name(event: KnownEvent) -> str:
    """Return the name of the event's class, or the one that its topic would give it."""
    if event.kind is not None:
        return event.kind.__name__
    words = event.topic.replace(".", "-").replace("_", "-").split("-")
    return "".join(word.capitalize() for word in words)


def _class_line(event: KnownEvent, further: Literal["terminal", "external"]) -> str:
    """Return the class line of the event as it should be, with the one keyword `further` set."""
    version = declaration(event.kind).version if event.kind is not None else 1
    keywords = [f'topic="{event.topic}"', f"version={version}" if version > 1 else ""]
    keywords += [f"{each}=True" for each in ("terminal", "external") if each == further or getattr(event, each)]
    return f"class {_name(event)}(Event, {', '.join(filter(None, keywords))})"
