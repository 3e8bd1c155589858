"""Pictures of a choreography: as text, as a Mermaid flowchart, as data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from choreo.agent import Agent
from choreo.envelope import Envelope
from choreo.event import Event
from choreo.graph import render
from choreo.graph.choreography import Choreography
from choreo.retry import Retry


class Placed(Event, topic="tp.placed", version=2, external=True):
    pass


class Paid(Event, topic="tp.paid"):
    pass


class Declined(Event, topic="tp.declined"):
    pass


class Refunded(Event, topic="tp.refunded", terminal=True):
    pass


class Shipped(Event, topic="tp.shipped"):
    pass


class Failed(Event, topic="tp.failed"):
    pass


class Closed(Event, topic="tp.closed", terminal=True):
    pass


def charge(placed: Placed) -> Paid:
    raise NotImplementedError


def give_up(placed: Placed, error: Exception) -> Declined:
    raise NotImplementedError


def refund(failed: Failed) -> Refunded:
    raise NotImplementedError


def ship(paid: Paid) -> Shipped | Failed:
    raise NotImplementedError


def close(event: Declined | Shipped) -> Closed:
    raise NotImplementedError


def note(envelope: Envelope) -> None:
    raise NotImplementedError


def order_process() -> list[Agent]:
    """Return three agents with a retry, an `otherwise`, a bound and a compensation."""
    payment, shipping, order = Agent("payment"), Agent("shipping"), Agent("order")
    payment.on(retry=Retry(on=ConnectionError, attempts=3), otherwise=give_up)(charge)
    payment.on(compensates=charge, timeout="90s")(refund)
    shipping.on(max_hops=8)(ship)
    order.on(close)
    return [payment, shipping, order]


def place(function: Callable[..., Any]) -> str:
    return f"test_render.py:{function.__code__.co_firstlineno}"


def plain(text: str) -> str:
    """Return `text` without the folders before this file, which depend on where the tests are started."""
    return re.sub(r"\(\S*(test_render\.py:\d+)\)", r"(\1)", text)


def test_text_reads_agent_by_agent() -> None:
    """Each reaction with what it takes and emits, its policy, bound, compensation and place; then the dead letters."""
    first = "Pictures of a choreography: as text, as a Mermaid flowchart, as data."
    assert (
        plain(render.as_text(Choreography.of(order_process())))
        == f"""\
payment  {first}
  tp.placed -> charge -> tp.paid
      otherwise: tp.declined
      retry: ConnectionError: 3 attempts, 1s doubling to 5m, jittered
      timeout: 30s  ({place(charge)})
  tp.failed -> refund -> tp.refunded
      compensates: charge
      retry: none
      timeout: 1m30s  ({place(refund)})
  dead letters: choreo.payment.dlq

shipping  {first}
  tp.paid -> ship -> tp.shipped | tp.failed
      retry: none
      timeout: 30s, at most 8 hops  ({place(ship)})
  dead letters: choreo.shipping.dlq

order  {first}
  tp.declined | tp.shipped -> close -> tp.closed
      retry: none
      timeout: 30s  ({place(close)})
  dead letters: choreo.order.dlq

from outside: tp.placed
ends: tp.closed, tp.refunded
"""
    )


def test_text_shows_patterns_and_what_they_stand_for() -> None:
    """A pattern over a union shows its events, a mere pattern itself; nothing emitted is said so."""

    def some(event: Paid | Declined) -> None:
        raise NotImplementedError

    audit, bridge = Agent("audit"), Agent("bridge")
    audit.on("tp.#")(note)
    bridge.on("tp.*")(some)
    text = render.as_text(Choreography.of([audit, bridge]))
    assert "  tp.# -> note -> nothing\n" in text
    assert "  tp.paid | tp.declined -> some -> nothing\n" in text


def test_text_of_nothing_is_short() -> None:
    """Without agents there is nothing from outside and nothing ends."""
    assert render.as_text(Choreography.of([])) == "from outside: nothing\nends: nothing\n"


def test_names_of_queues_follow_the_namespace() -> None:
    """Text and data name the dead-letter queues as the broker has them."""
    choreography = Choreography.of(order_process())
    assert "dead letters: shop.payment.dlq" in render.as_text(choreography, "shop")
    agents = render.as_json(choreography, "shop")["agents"]
    assert [each["dead_letter_queue"] for each in agents] == ["shop.payment.dlq", "shop.shipping.dlq", "shop.order.dlq"]
    assert [each["queue"] for each in agents] == ["shop.payment", "shop.shipping", "shop.order"]


def test_mermaid_draws_agents_and_the_events_between_them() -> None:
    """External events come from outside, terminal ones end, compensations are dashed, shared ways are one arrow."""
    assert (
        render.as_mermaid(Choreography.of(reversed(order_process())))
        == """\
flowchart LR
    outside(["outside"])
    done((("done")))
    agent_payment("payment")
    agent_shipping("shipping")
    agent_order("order")
    outside -->|"tp.placed"| agent_payment
    agent_payment -->|"tp.paid"| agent_shipping
    agent_payment -->|"tp.declined"| agent_order
    agent_shipping -->|"tp.shipped"| agent_order
    agent_shipping -.->|"tp.failed"| agent_payment
    agent_order -->|"tp.closed"| done
    agent_payment -->|"tp.refunded"| done
"""
    )


def arrows(*agents: Agent) -> list[str]:
    """Return the arrows of the picture."""
    lines = render.as_mermaid(Choreography.of(agents)).splitlines()
    return [line.strip() for line in lines if "|" in line]


def test_mermaid_bundles_events_that_go_the_same_way() -> None:
    """Two events between the same agents are two lines on one arrow."""

    def both(event: Shipped | Failed) -> None:
        raise NotImplementedError

    shipping, order = Agent("shipping"), Agent("order")
    shipping.on(ship)
    order.on(both)
    assert 'agent_shipping -->|"tp.shipped<br/>tp.failed"| agent_order' in arrows(shipping, order)


def test_mermaid_shows_what_is_missing() -> None:
    """An unfed event comes from nobody, an unheard one goes to nobody."""
    shipping = Agent("shipping")
    shipping.on(ship)
    assert arrows(shipping) == [
        'nobody -->|"tp.paid"| agent_shipping',
        'agent_shipping -->|"tp.shipped<br/>tp.failed"| nobody',
    ]
    assert 'nobody{{"nobody"}}' in render.as_mermaid(Choreography.of([shipping]))


def test_mermaid_draws_who_looks_on_beside_the_flow() -> None:
    """An auditor is one arrow, however many agents there are, and all the others are as they are without it."""
    audit = Agent("audit")
    audit.on("#")(note)
    without, with_it = arrows(*order_process()), arrows(audit, *order_process())
    assert with_it == [*without, 'any -->|"#35;"| agent_audit']
    assert 'any(["any event"])' in render.as_mermaid(Choreography.of([audit, *order_process()]))
    assert "any event" not in render.as_mermaid(Choreography.of(order_process()))


def test_mermaid_draws_what_is_only_looked_at_as_nobodys() -> None:
    """As `choreo check` has it; an end stays an end although somebody looks on."""

    def begin(placed: Placed) -> Paid | Closed:
        raise NotImplementedError

    def unfed(envelope: Envelope) -> None:
        raise NotImplementedError

    order, audit, idle = Agent("order"), Agent("audit"), Agent("idle")
    order.on(begin)
    audit.on("tp.#")(note)
    idle.on("tp.paid.*")(unfed)
    assert arrows(order, audit, idle) == [
        'outside -->|"tp.placed"| agent_order',
        'agent_order -->|"tp.paid"| nobody',
        'agent_order -->|"tp.closed"| done',
        'any -->|"tp.#35;"| agent_audit',
        'nobody -->|"tp.paid.#42;"| agent_idle',
    ]


def test_mermaid_draws_a_topic_that_is_named_to_an_envelope() -> None:
    """Whoever names a topic takes it, also as an envelope."""
    shipping, audit = Agent("shipping"), Agent("audit")
    shipping.on(ship)
    audit.on("tp.shipped")(note)
    assert 'agent_shipping -->|"tp.shipped"| agent_audit' in arrows(shipping, audit)


def test_mermaid_draws_what_an_onlooker_emits() -> None:
    """One that takes whatever matches a pattern may be a bridge: what comes out of it is part of the flow."""

    def close_all(envelope: Envelope) -> Closed:
        raise NotImplementedError

    bridge = Agent("bridge")
    bridge.on("tp.*")(close_all)
    assert arrows(bridge) == ['agent_bridge -->|"tp.closed"| done', 'any -->|"tp.#42;"| agent_bridge']


def test_mermaid_draws_a_pattern_over_a_union_event_by_event() -> None:
    """A function that takes named events is drawn with their names, whatever pattern they come by."""

    def some(event: Paid | Declined) -> None:
        raise NotImplementedError

    payment, bridge = Agent("payment"), Agent("bridge")
    payment.on(retry=Retry(on=ConnectionError), otherwise=give_up)(charge)
    bridge.on("tp.*")(some)
    assert 'agent_payment -->|"tp.paid<br/>tp.declined"| agent_bridge' in arrows(payment, bridge)


def test_an_end_that_is_taken_goes_on() -> None:
    """A terminal event that an agent takes by its class is drawn to that agent only."""

    def tell(closed: Closed) -> None:
        raise NotImplementedError

    order, mail = Agent("order"), Agent("mail")
    order.on(close)
    mail.on(tell)
    assert 'agent_order -->|"tp.closed"| agent_mail' in arrows(order, mail)
    assert not any("done" in arrow for arrow in arrows(order, mail))


def test_mermaid_keeps_its_own_words_apart_from_names() -> None:
    """Agents named like words of Mermaid, like the ends of the picture, or alike but for a dash, all get their node."""
    names = ["end", "style", "outside", "done", "nobody", "a-b", "a_b"]
    agents = [Agent(name) for name in names]
    for each in agents:
        each.on(charge)
    drawn = render.as_mermaid(Choreography.of(agents))
    nodes = dict(re.findall(r'^    (\w+)[({]+\[?"([\w-]+)"', drawn, flags=re.MULTILINE))
    assert len(nodes) == len(names) + 2  # all, and `outside` and `nobody`
    assert [name for node, name in nodes.items() if node.startswith("agent_")] == sorted(names)
    assert drawn.count('outside -->|"tp.placed"| agent_') == len(names)


def test_data_is_whole() -> None:
    """Everything that was declared is in the data, which JSON can hold."""
    data = render.as_json(Choreography.of(order_process()))
    assert json.loads(json.dumps(data)) == data
    payment = data["agents"][0]
    assert payment["name"] == "payment"
    assert payment["patterns"] == ["tp.failed", "tp.placed"]
    assert payment["max_hops"] == 64
    assert "test_render.py:" in payment["where"]
    first, second = payment["reactions"]
    assert first.pop("where").endswith(place(charge))
    assert first == {
        "name": "charge",
        "consumes": ["tp.placed"],
        "patterns": ["tp.placed"],
        "emits": ["tp.paid"],
        "otherwise": ["tp.declined"],
        "compensates": None,
        "retry": "ConnectionError: 3 attempts, 1s doubling to 5m, jittered",
        "timeout": 30.0,
        "max_hops": None,
    }
    assert (second["otherwise"], second["compensates"], second["retry"]) == (None, "charge", None)
    assert data["agents"][1]["reactions"][0]["max_hops"] == 8
    assert data["events"][0] == {
        "topic": "tp.placed",
        "class": "Placed",
        "version": 2,
        "external": True,
        "terminal": False,
        "emitted_by": [],
        "consumed_by": ["payment.charge"],
    }


@pytest.mark.parametrize(
    "edge",
    [
        {
            "event": "tp.placed",
            "from": None,
            "by": "outside",
            "to": "payment.charge",
            "compensates": None,
            "pattern": None,
        },
        {
            "event": "tp.paid",
            "from": "payment.charge",
            "by": "return",
            "to": "shipping.ship",
            "compensates": None,
            "pattern": None,
        },
        {
            "event": "tp.declined",
            "from": "payment.charge",
            "by": "otherwise",
            "to": "order.close",
            "compensates": None,
            "pattern": None,
        },
        {
            "event": "tp.failed",
            "from": "shipping.ship",
            "by": "return",
            "to": "payment.refund",
            "compensates": "charge",
            "pattern": None,
        },
        {
            "event": "tp.refunded",
            "from": "payment.refund",
            "by": "return",
            "to": None,
            "compensates": None,
            "pattern": None,
        },
    ],
)
def test_edges_say_how_each_event_goes(edge: dict[str, Any]) -> None:
    """From which reaction, by return or otherwise, to which reaction, and what that one takes back."""
    edges = render.as_json(Choreography.of(order_process()))["edges"]
    assert edges.count(edge) == 1
    assert len(edges) == 7


def test_edges_of_what_is_missing_have_no_end() -> None:
    """An unfed event has no emitter and no way, a topic that only text names has no class."""
    bridge = Agent("bridge")
    bridge.on("tp-unknown")(note)
    data = render.as_json(Choreography.of([bridge]))
    assert data["edges"] == [
        {"event": "tp-unknown", "from": None, "by": None, "to": "bridge.note", "compensates": None, "pattern": None}
    ]
    assert (data["events"][0]["class"], data["events"][0]["version"]) == (None, None)


def test_edges_to_who_looks_on_name_the_pattern() -> None:
    """So a program can leave them out as the picture does; an event that is only looked at goes to nobody besides."""
    shipping, audit = Agent("shipping"), Agent("audit")
    shipping.on(ship)
    audit.on("tp.#")(note)
    edges = render.as_json(Choreography.of([shipping, audit]))["edges"]
    assert [(each["event"], each["to"], each["pattern"]) for each in edges] == [
        ("tp.placed", "audit.note", "tp.#"),
        ("tp.paid", "shipping.ship", None),
        ("tp.paid", "audit.note", "tp.#"),
        ("tp.shipped", None, None),
        ("tp.shipped", "audit.note", "tp.#"),
        ("tp.failed", None, None),
        ("tp.failed", "audit.note", "tp.#"),
    ]
