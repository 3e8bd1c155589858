"""The choreography: who emits and takes what, and what is wrong with it, from declarations alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from operator import or_
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo.agent import Agent
from choreo.envelope import Envelope
from choreo.errors import DeclarationError
from choreo.event import Event, declaration
from choreo.graph.choreography import Choreography, Finding, Step, full_name
from choreo.retry import Retry


class Placed(Event, topic="tcg.placed", version=2, external=True):
    pass


class Paid(Event, topic="tcg.paid"):
    pass


class Declined(Event, topic="tcg.declined", version=2):
    pass


class Shipped(Event, topic="tcg.shipped"):
    pass


class Closed(Event, topic="tcg.closed", terminal=True):
    pass


POOL = [type(f"E{n}", (Event,), {"__module__": __name__}, topic=f"tcg-pool.e{n}", terminal=True) for n in range(12)]


def function(name: str, takes: Any, emits: Any = None) -> Callable[..., Any]:
    """Return a function called `name` with the signature (event: takes) -> emits, a list standing for a union."""

    def made(event):
        raise NotImplementedError

    made.__name__ = name
    made.__annotations__ = {"event": takes, "return": reduce(or_, emits, None) if isinstance(emits, list) else emits}
    return made


def agent(name: str, *functions: Callable[..., Any], **options: Any) -> Agent:
    """Return an agent that reacts with `functions`."""
    made = Agent(name)
    for each in functions:
        made.on(**options)(each)
    return made


def findings(*agents: Agent) -> tuple[Finding, ...]:
    return Choreography.of(agents).findings()


def order_process() -> list[Agent]:
    """Return three agents that fit together."""
    return [
        agent("shipping", function("ship", Paid, Shipped)),
        agent("payment", function("charge", Placed, Paid | Declined)),
        agent("order", function("close", Shipped | Declined, Closed)),
    ]


def test_a_choreography_that_fits_together_has_no_findings() -> None:
    """Every event is emitted or external, and taken or terminal; nothing goes round."""
    assert findings(*order_process()) == ()


def test_a_choreography_without_agents_has_no_findings() -> None:
    """Nothing is wrong with nothing, nor with an agent that has no reactions yet."""
    assert findings() == ()
    assert findings(Agent("idle")) == ()


def test_events_know_who_emits_and_who_takes_them() -> None:
    """Emitters and consumers are reactions, `otherwise` counts as emitting, patterns count as taking."""
    payment = agent(
        "payment",
        function("charge", Placed, Paid),
        retry=Retry(on=ConnectionError),
        otherwise=declined,
    )
    audit = Agent("audit")
    audit.on("tcg.#")(function("note", Envelope))
    events = {event.topic: event for event in Choreography.of([payment, audit]).events}
    assert list(events) == ["tcg.placed", "tcg.paid", "tcg.declined"]
    assert [full_name(each) for each in events["tcg.declined"].emitters] == ["payment.charge"]
    assert [full_name(each) for each in events["tcg.placed"].consumers] == ["audit.note", "payment.charge"]
    assert [full_name(each) for each in events["tcg.paid"].consumers] == ["audit.note"]
    assert events["tcg.placed"].external
    assert events["tcg.placed"].kind is Placed


def declined(placed: Placed, error: Exception) -> Declined:
    raise NotImplementedError


def test_agents_and_events_stand_in_the_order_in_which_events_reach_them() -> None:
    """The order follows the events from outside on, whatever the order in which agents are given."""
    idle = Agent("a-listener")
    idle.on("tcg.#")(function("note", Envelope))
    for agents in ([*order_process(), idle], [idle, *reversed(order_process())]):
        choreography = Choreography.of(agents)
        assert [each.name for each in choreography.agents] == ["payment", "shipping", "order", "a-listener"]
        assert [each.topic for each in choreography.events] == [
            "tcg.placed",
            "tcg.paid",
            "tcg.declined",
            "tcg.shipped",
            "tcg.closed",
        ]
        assert [each.name for each in choreography.reactions] == ["charge", "ship", "close", "note"]


def test_without_events_from_outside_the_order_begins_with_what_nobody_emits() -> None:
    """Half of a choreography is read from its beginning too."""
    half = Choreography.of([agent("order", function("close", Shipped, Closed))])
    assert [each.topic for each in half.events] == ["tcg.shipped", "tcg.closed"]


def test_two_agents_of_one_name_are_refused() -> None:
    """A name owns a queue; the error says where both are."""
    one, other = Agent("payment"), Agent("payment")
    with pytest.raises(DeclarationError) as caught:
        Choreography.of([one, other])
    assert "'payment'" in caught.value.message
    assert one.where in caught.value.message
    assert other.where in caught.value.message
    assert "another name" in caught.value.way_out


# loop


def test_a_loop_is_told_with_its_whole_way() -> None:
    """The message names events and reactions all the way round, from where one comes in from outside."""
    found = findings(
        agent("payment", function("charge", Placed, Paid)),
        agent("shipping", function("ship", Paid, Shipped)),
        agent("order", function("again", Shipped, Placed)),
    )
    assert [finding.rule for finding in found] == ["loop"]
    assert found[0].severity == "error"
    assert found[0].message == (
        "tcg.placed -> payment.charge -> tcg.paid -> shipping.ship -> tcg.shipped -> order.again -> tcg.placed "
        "is a cycle without a declared bound"
    )
    assert "@agent.on(max_hops=8)" in found[0].hint
    assert "order.again" in found[0].hint
    assert "must not emit tcg.placed" in found[0].hint


@pytest.mark.parametrize("bounded", ["payment", "shipping", "order"])
def test_a_bound_on_any_of_its_reactions_ends_a_loop(bounded: str) -> None:
    """The way out of the finding works: `max_hops` on a reaction of the loop."""
    functions = {
        "payment": function("charge", Placed, Paid),
        "shipping": function("ship", Paid, Shipped),
        "order": function("again", Shipped, Placed),
    }
    agents = [agent(name, each, max_hops=8 if name == bounded else None) for name, each in functions.items()]
    assert findings(*agents) == ()


def test_the_bound_of_an_agent_is_no_declared_bound() -> None:
    """Every agent has a bound for what nobody foresaw; a loop that is meant says so on its reaction."""
    made = Agent("payment", max_hops=8)
    made.on(function("again", Placed, Placed))
    assert [finding.message.partition(" is a cycle")[0] for finding in findings(made)] == [
        "tcg.placed -> payment.again -> tcg.placed"
    ]


def test_a_loop_through_otherwise_is_a_loop() -> None:
    """What is emitted after the last try can go round as well."""
    retrying = agent("payment", function("charge", Placed), retry=Retry(on=ConnectionError), otherwise=declined)
    again = agent("order", function("again", Declined, Placed))
    assert [finding.rule for finding in findings(retrying, again)] == ["loop"]


def test_a_listener_that_hears_itself_is_a_loop() -> None:
    """A pattern that matches what its own reaction emits takes it again, for ever."""
    audit = Agent("audit")
    audit.on("tcg.#")(function("note", Envelope, Closed))
    assert "tcg.closed -> audit.note -> tcg.closed" in findings(audit)[0].message


def test_two_ways_round_are_both_told() -> None:
    """Bounding one of two reactions that go round between the same events leaves the other, so both are told."""
    found = findings(
        agent("one", function("go", Placed, Paid)),
        agent("two", function("go", Placed, Paid)),
        agent("back", function("go", Paid, Placed)),
    )
    ways = [finding.message.partition(" is a cycle")[0] for finding in found]
    assert ways == [
        "tcg.placed -> one.go -> tcg.paid -> back.go -> tcg.placed",
        "tcg.placed -> two.go -> tcg.paid -> back.go -> tcg.placed",
    ]


def test_a_loop_beside_a_long_way_is_told_alone() -> None:
    """Events before and after a loop are not part of it."""
    found = findings(
        agent("in", function("go", Placed, Paid)),
        agent("round", function("go", Paid, Paid | Shipped)),
        agent("out", function("go", Shipped, Closed)),
    )
    assert [finding.message.partition(" is a cycle")[0] for finding in found] == ["tcg.paid -> round.go -> tcg.paid"]


def choreography_of(arrows: Iterable[tuple[int, int]]) -> Choreography:
    """Return a choreography in which each arrow is an agent that takes one event of the pool and emits another."""
    return Choreography.of(
        agent(f"from{start}to{end}", function("go", POOL[start], POOL[end])) for start, end in arrows
    )


def goes_round(loop: tuple[Step, ...]) -> bool:
    """Say whether each step takes what the one before emits, and no event comes twice."""
    joined = all(one.emitted == other.taken for one, other in pairwise((*loop, loop[0])))
    return joined and len({step.taken for step in loop}) == len(loop)


def reachable(arrows: set[tuple[int, int]], start: int) -> set[int]:
    found: set[int] = set()
    waiting = [start]
    while waiting:
        here = waiting.pop()
        further = {end for begin, end in arrows if begin == here} - found
        found |= further
        waiting += further
    return found


@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=14))
def test_every_step_on_a_loop_is_told_and_no_other(arrows: set[tuple[int, int]]) -> None:
    """In any graph, the loops told are loops, and together they hold exactly the steps that can come round."""
    loops = choreography_of(arrows).loops()
    assert all(goes_round(loop) for loop in loops)
    assert len(set(loops)) == len(loops)
    told = {step.reaction.agent for loop in loops for step in loop}
    assert told == {f"from{start}to{end}" for start, end in arrows if start in reachable(arrows, end) | {end}}


@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=14))
def test_a_loop_is_told_exactly_where_there_is_no_order(arrows: set[tuple[int, int]]) -> None:
    """No loop is told of events that can be brought into an order, and one at least of those that cannot."""
    graph = TopologicalSorter[int]()
    for start, end in arrows:
        graph.add(end, start)
    try:
        graph.prepare()
    except CycleError:
        ordered = False
    else:
        ordered = True
    assert ordered is not any(finding.rule == "loop" for finding in choreography_of(arrows).findings())


def test_loops_stay_few_where_all_of_them_would_be_endless() -> None:
    """Twelve events that all lead to each other have over 100 million loops; no more than its steps are told."""
    arrows = [(start, end) for start in range(12) for end in range(12)]
    loops = choreography_of(arrows).loops()
    assert 12 <= len(loops) <= len(arrows)
    assert {step.reaction.agent for loop in loops for step in loop} == {f"from{a}to{b}" for a, b in arrows}


# unheard


def test_an_event_that_nobody_takes_is_unheard() -> None:
    """The finding names event and emitters, and shows both ways out as code."""
    found = findings(
        agent("payment", function("charge", Placed, Paid | Declined)),
        agent("shipping", function("ship", Paid, Declined)),
    )
    assert [(finding.rule, finding.severity) for finding in found] == [("unheard", "error")]
    assert found[0].message == "tcg.declined is emitted by payment.charge, shipping.ship, and no agent takes it"
    assert "@agent.on over a function of (event: Declined)" in found[0].hint
    assert 'class Declined(Event, topic="tcg.declined", version=2, terminal=True)' in found[0].hint


def test_an_event_of_otherwise_can_be_unheard() -> None:
    """`otherwise` emits as much as a return does."""
    options: dict[str, Any] = {"retry": Retry(on=ConnectionError), "otherwise": declined}
    found = findings(agent("payment", function("charge", Placed), **options))
    assert [finding.message.partition(" is")[0] for finding in found] == ["tcg.declined"]


def test_a_terminal_event_need_not_be_heard() -> None:
    """Declared as an end, it is one; somebody may take it nevertheless."""
    end = agent("order", function("close", Placed, Closed))
    assert findings(end) == ()
    assert findings(end, agent("mail", function("tell", Closed))) == ()


@pytest.mark.parametrize("pattern", ["#", "tcg.#", "tcg.*", "*.paid"])
def test_whoever_looks_on_by_a_pattern_takes_nothing(pattern: str) -> None:
    """An auditor hides no event that nobody takes; the finding names it as one who looks on."""
    audit = Agent("audit")
    audit.on(pattern)(function("note", Envelope))
    [found] = findings(agent("payment", function("charge", Placed, Paid)), audit)
    assert (found.rule, found.severity) == ("unheard", "error")
    assert found.message.endswith("no agent takes it; audit.note only looks on, by a pattern")


def test_an_envelope_of_a_named_topic_is_taken() -> None:
    """A bridge that names its topic takes it."""
    bridge = Agent("bridge")
    bridge.on("tcg.paid")(function("carry", Envelope))
    assert findings(agent("payment", function("charge", Placed, Paid)), bridge) == ()


def test_the_unfed_reaction_is_the_one_that_waits() -> None:
    """Beside an auditor, whose name comes first, the finding is at the reaction that takes the event."""
    audit = Agent("audit")
    audit.on("tcg.#")(function("note", Envelope))
    order = agent("order", function("close", Closed))
    [found] = [each for each in findings(audit, order) if each.rule == "unfed"]
    assert found.where == order.reactions[0].where
    assert found.message.startswith("tcg.closed is taken by order.close, and")


def test_a_pattern_over_a_union_hears_only_the_union() -> None:
    """What the pattern lets in but the function does not take is not heard."""
    audit = Agent("audit")
    audit.on("tcg.*")(function("note", Placed | Paid))
    found = findings(agent("payment", function("charge", Placed, Paid | Declined)), audit)
    assert [(finding.rule, finding.message.partition(" is")[0]) for finding in found] == [("unheard", "tcg.declined")]


# unfed


def test_an_event_that_nobody_emits_is_unfed() -> None:
    """The finding names event and consumers, and shows both ways out as code."""
    found = findings(
        agent("order", function("close", Declined)),
        agent("mail", function("tell", Declined)),
    )
    assert [(finding.rule, finding.severity) for finding in found] == [("unfed", "warning")]
    assert found[0].message == "tcg.declined is taken by mail.tell, order.close, and no agent emits it"
    assert "-> Declined" in found[0].hint
    assert 'class Declined(Event, topic="tcg.declined", version=2, external=True)' in found[0].hint


def test_an_external_event_need_not_be_fed() -> None:
    """Declared as coming from outside, nobody has to emit it."""
    assert findings(agent("order", function("open", Placed))) == ()


def test_a_hint_keeps_what_the_class_line_says_already() -> None:
    """A terminal event that is unfed stays terminal when it becomes external."""
    hint = findings(agent("order", function("close", Closed)))[0].hint
    assert 'class Closed(Event, topic="tcg.closed", terminal=True, external=True)' in hint


def test_a_topic_that_only_text_names_is_unfed_until_an_event_is_declared() -> None:
    """A subscription to one topic nobody knows; the way out is a class line, and it works."""
    bridge = Agent("bridge")
    bridge.on("tcg-legacy.stock_counted")(function("carry", Envelope))
    found = findings(bridge)
    assert [finding.rule for finding in found] == ["unfed"]
    line = 'class TcgLegacyStockCounted(Event, topic="tcg-legacy.stock_counted", external=True)'
    assert found[0].hint.endswith(line)
    exec(f"{line}: ...", {"Event": Event, "__name__": __name__})
    assert findings(bridge) == ()


def test_a_pattern_that_matches_nothing_is_unfed() -> None:
    """A misspelt pattern is told with the topics nearest to it."""
    audit = Agent("audit")
    audit.on("tgc.#")(function("note", Envelope))
    found = findings(*order_process(), audit)
    assert [(finding.rule, finding.severity) for finding in found] == [("unfed", "warning")]
    assert found[0].message.startswith("audit.note takes 'tgc.#', which matches no event")
    assert "tcg." in found[0].hint
    assert found[0].where == audit.reactions[0].where


def test_a_pattern_for_events_from_outside_is_fed() -> None:
    """An external event that is declared, and that nobody takes by its class, is known to the pattern."""
    audit = Agent("audit")
    audit.on("tcg.*")(function("note", Envelope))
    assert findings(audit) == ()
    assert [event.topic for event in Choreography.of([audit]).events] == ["tcg.placed"]


def test_only_the_declared_events_count_when_they_are_given() -> None:
    """Without a word, all imported events are known; a caller may say which ones are."""
    audit = Agent("audit")
    audit.on("tcg.*")(function("note", Envelope))
    assert Choreography.of([audit]).findings() == ()
    assert [each.rule for each in Choreography.of([audit], declared=[]).findings()] == ["unfed"]
    assert Choreography.of([audit], declared=[Event, Placed]).findings() == ()


def test_a_pattern_over_a_union_is_told_by_its_events() -> None:
    """What a union names is told event by event, and the pattern not once more."""
    audit = Agent("audit")
    audit.on("tcg.*")(function("note", Declined | Paid))
    assert [finding.message.partition(" is")[0] for finding in findings(audit)] == ["tcg.declined", "tcg.paid"]


# all of them


def test_findings_have_one_order_and_a_place() -> None:
    """Loops, then unheard, then unfed, the same on every run and for every order of agents."""
    agents = [
        agent("b", function("again", Placed, Placed | Paid)),
        agent("a", function("wait", Declined, Shipped)),
    ]
    found = findings(*agents)
    assert [finding.rule for finding in found] == ["loop", "unheard", "unheard", "unfed"]
    assert findings(*reversed(agents)) == found
    assert all("test_choreography.py:" in finding.where for finding in found)


@given(st.lists(st.tuples(st.integers(0, 5), st.sets(st.integers(0, 5), max_size=3)), max_size=8), st.randoms())
def test_every_event_is_fed_and_heard_or_told(shape: list[tuple[int, set[int]]], random: Any) -> None:
    """For any agents in any order: each event of the graph is emitted, or told as unfed (here all are terminal)."""
    agents = [
        agent(f"a{number}", function("go", POOL[taken], [POOL[each] for each in sorted(emitted)]))
        for number, (taken, emitted) in enumerate(shape)
    ]
    emitted = {declaration(POOL[each]).topic for _, many in shape for each in many}
    taken = {declaration(POOL[each]).topic for each, _ in shape}
    choreography = Choreography.of(agents)
    assert {event.topic for event in choreography.events} == emitted | taken
    told = {finding.message.partition(" is")[0] for finding in choreography.findings() if finding.rule == "unfed"}
    assert told == taken - emitted
    random.shuffle(agents)
    assert Choreography.of(agents).findings() == choreography.findings()
