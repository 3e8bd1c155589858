"""Pictures of a choreography: as text for a terminal, as a Mermaid flowchart, as data for programs.

All three follow from the declarations alone and are the same on every run: a test can hold a README to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from choreo import duration, pattern
from choreo.agent import Agent
from choreo.event import Event, declaration
from choreo.graph.choreography import Choreography, KnownEvent, full_name
from choreo.reaction import Reaction
from choreo.topology import Names

# The ends of an arrow that are no agent, and no agent can be named so: where external events come from, where
# terminal ones end, what stands in for the missing agent of an unfed or unheard event, and where whatever matches a
# pattern comes from.
_OUTSIDE: Final = "(outside)"
_DONE: Final = "(done)"
_NOBODY: Final = "(nobody)"
_ANY: Final = "(any)"
_ENDS: Final = {_OUTSIDE: "outside", _DONE: "done", _NOBODY: "nobody", _ANY: "any"}
_SHAPES: Final = {
    _OUTSIDE: '(["outside"])',
    _DONE: '((("done")))',
    _NOBODY: '{{"nobody"}}',
    _ANY: '(["any event"])',
}

_Arrow = tuple[str, str, bool]  # where it comes from, where it goes, and whether it is dashed


def as_text(choreography: Choreography, namespace: str = "choreo") -> str:
    """Return the choreography agent by agent, in the order in which events reach them."""
    names = Names(namespace)
    blocks = ["\n".join(_agent_lines(agent, names)) for agent in choreography.agents]
    events = choreography.events
    outside = [event.topic for event in events if event.external]
    ends = [event.topic for event in events if event.terminal]
    blocks.append(f"from outside: {', '.join(outside) or 'nothing'}\nends: {', '.join(ends) or 'nothing'}")
    return "\n\n".join(blocks) + "\n"


def as_mermaid(choreography: Choreography) -> str:
    """Return the choreography as a Mermaid flowchart: agents are nodes, events are arrows.

    Events that go the same way share an arrow. A dashed arrow leads to a reaction that compensates another.
    An agent that looks on, taking envelopes by a pattern, gets one arrow with the pattern on it, from "any event": it
    stands beside the flow. What is emitted for such agents alone goes to nobody, as `Choreography.findings` has it.
    """
    ids = _ids(choreography.agents)
    arrows = _arrows(choreography.events) | _looks(choreography)
    used = {end for source, target, _ in arrows for end in (source, target)}
    lines = ["flowchart LR"]
    lines += [f"    {ids[end]}{shape}" for end, shape in _SHAPES.items() if end in used]
    lines += [f'    {ids[agent.name]}("{_escaped(agent.name)}")' for agent in choreography.agents]
    for (source, target, dashed), labels in arrows.items():
        label = "<br/>".join(_escaped(each) for each in labels)
        arrow = "-.->" if dashed else "-->"
        lines.append(f'    {ids[source]} {arrow}|"{label}"| {ids[target]}')
    return "\n".join(lines) + "\n"


def as_json(choreography: Choreography, namespace: str = "choreo") -> dict[str, Any]:
    """Return all that is known, as values that JSON can hold; times in seconds.

    Reactions are named "agent.reaction". An edge is one event on its way from a reaction to a reaction; `by`
    says how it is emitted ("return", "otherwise", "outside", None for an unfed one), `from` is None when no
    agent emits it, `to` is None when none takes it. `pattern` is the one by which `to` only looks on, else None.
    """
    names = Names(namespace)
    return {
        "agents": [_agent_data(agent, names) for agent in choreography.agents],
        "events": [_event_data(event) for event in choreography.events],
        "edges": [edge for event in choreography.events for edge in _edges(event)],
    }


def _agent_lines(agent: Agent, names: Names) -> Iterator[str]:
    yield f"{agent.name}  {agent.description}".rstrip()
    for reaction in agent.reactions:
        yield f"  {' | '.join(reaction.patterns)} -> {reaction.name} -> {_either(reaction.emits)}"
        if reaction.otherwise is not None:
            yield f"      otherwise: {_either(reaction.otherwise_emits)}"
        if reaction.compensates is not None:
            yield f"      compensates: {reaction.compensates}"
        yield f"      retry: {reaction.retry.describe() if reaction.retry else 'none'}"
        bound = f", at most {reaction.max_hops} hops" if reaction.max_hops is not None else ""
        yield f"      timeout: {duration.text(reaction.timeout)}{bound}  ({reaction.where})"
    yield f"  dead letters: {names.dlq(agent.name)}"


def _either(events: Iterable[type[Event]]) -> str:
    return " | ".join(_topics(events)) or "nothing"


def _topics(events: Iterable[type[Event]]) -> list[str]:
    return [declaration(event).topic for event in events]


def _ids(agents: Iterable[Agent]) -> dict[str, str]:
    """Return a Mermaid id for each node. The prefix keeps clear of Mermaid's own words: `end`, `style`."""
    ids = dict(_ENDS)
    for agent in agents:
        plain = f"agent_{agent.name.replace('-', '_')}"
        while plain in ids.values():
            plain += "_"
        ids[agent.name] = plain
    return ids


def _arrows(events: Iterable[KnownEvent]) -> dict[_Arrow, list[str]]:
    """Return the labels on each arrow of the flow."""
    arrows: dict[_Arrow, list[str]] = {}
    for event in events:
        sources = [reaction.agent for reaction in event.emitters] or ([] if event.external else [_NOBODY])
        if event.external:
            sources.append(_OUTSIDE)
        targets = [(each.agent, each.compensates is not None) for each in event.takers]
        for source in sources:
            only_seen = source == _OUTSIDE and event.consumers and not event.terminal
            for target, dashed in targets or ([] if only_seen else [(_DONE if event.terminal else _NOBODY, False)]):
                labels = arrows.setdefault((source, target, dashed), [])
                if event.topic not in labels:
                    labels.append(event.topic)
    return arrows


def _looks(choreography: Choreography) -> dict[_Arrow, list[str]]:
    """Return the patterns by which agents look on: one arrow to each, whatever it sees."""
    fed = [event.topic for event in choreography.events if event.emitters or event.external]
    arrows: dict[_Arrow, list[str]] = {}
    for reaction in choreography.reactions:
        for each in () if reaction.consumes else filter(pattern.is_wildcard, reaction.patterns):
            sees = any(pattern.matches(each, topic) for topic in fed)
            arrow = (_ANY if sees else _NOBODY, reaction.agent, reaction.compensates is not None)
            labels = arrows.setdefault(arrow, [])
            if each not in labels:
                labels.append(each)
    return arrows


def _escaped(text: str) -> str:
    """Return `text` for a quoted Mermaid label, where `#` begins a character's number and markup is read."""
    return "".join(each if each.isalnum() or each in "._- " else f"#{ord(each)};" for each in text)


def _agent_data(agent: Agent, names: Names) -> dict[str, Any]:
    return {
        "name": agent.name,
        "description": agent.description,
        "where": agent.where,
        "queue": names.queue(agent.name),
        "dead_letter_queue": names.dlq(agent.name),
        "patterns": list(agent.patterns),
        "max_hops": agent.max_hops,
        "reactions": [_reaction_data(reaction) for reaction in agent.reactions],
    }


def _reaction_data(reaction: Reaction) -> dict[str, Any]:
    return {
        "name": reaction.name,
        "consumes": list(reaction.consumes),
        "patterns": list(reaction.patterns),
        "emits": _topics(reaction.emits),
        "otherwise": _topics(reaction.otherwise_emits) if reaction.otherwise is not None else None,
        "compensates": reaction.compensates,
        "retry": reaction.retry.describe() if reaction.retry is not None else None,
        "timeout": reaction.timeout,
        "max_hops": reaction.max_hops,
        "where": reaction.where,
    }


def _event_data(event: KnownEvent) -> dict[str, Any]:
    return {
        "topic": event.topic,
        "class": event.kind.__name__ if event.kind is not None else None,
        "version": declaration(event.kind).version if event.kind is not None else None,
        "external": event.external,
        "terminal": event.terminal,
        "emitted_by": [full_name(reaction) for reaction in event.emitters],
        "consumed_by": [full_name(reaction) for reaction in event.consumers],
    }


def _edges(event: KnownEvent) -> Iterator[dict[str, Any]]:
    sources: list[tuple[str | None, str | None]] = [
        (full_name(each), "return" if event.kind in each.emits else "otherwise") for each in event.emitters
    ]
    if event.external or not sources:
        sources.append((None, "outside" if event.external else None))
    targets: list[dict[str, Any]] = [
        {"to": full_name(each), "compensates": each.compensates, "pattern": None} for each in event.takers
    ]
    if not targets and (event.emitters or not event.consumers):
        targets.append({"to": None, "compensates": None, "pattern": None})
    for each in event.consumers:
        if each not in event.takers:
            seen_by = next(one for one in each.patterns if pattern.matches(one, event.topic))
            targets.append({"to": full_name(each), "compensates": each.compensates, "pattern": seen_by})
    for source, way in sources:
        for target in targets:
            yield {"event": event.topic, "from": source, "by": way, **target}
