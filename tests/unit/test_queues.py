"""What is said of queues and agents, without a broker."""

from __future__ import annotations

from typing import Any

import pytest

from choreo import Agent, Event, Retry
from choreo.operate import queues
from choreo.operate.queues import QueueView, Snapshot, danger, place, policies, state
from choreo.rabbit import management
from choreo.topology import Names, QueueKind
from choreo.transport import QueueDetail, QueueStats


def stats(ready: int = 0, consumers: int = 0) -> QueueStats:
    return QueueStats("q", ready, consumers)


def detail(state: str | None) -> QueueDetail:
    return QueueDetail("q", state, None, None, None, None, None, None, None)


@pytest.mark.parametrize(
    ("kind", "found", "told", "word"),
    [
        ("work", None, None, "missing"),
        ("work", stats(), None, "no consumer"),
        ("work", stats(ready=5), None, "no consumer"),
        ("work", stats(consumers=1), None, "running"),
        ("work", stats(consumers=1), "running", "running"),
        ("work", stats(consumers=1), "minority", "minority"),
        ("work", None, "down", "down"),
        ("dlq", None, None, "missing"),
        ("dlq", stats(), None, "empty"),
        ("dlq", stats(ready=1), None, "waiting"),
        ("dlq", stats(ready=1, consumers=1), "idle", "waiting"),
        ("delay", stats(ready=1), None, "waiting"),
        ("delay", stats(), None, "empty"),
    ],
)
def test_state_of_a_queue(kind: QueueKind, found: QueueStats | None, told: str | None, word: str):
    """A word of the list in the module's text; the management API knows of trouble that AMQP does not show."""
    assert state(kind, found) == word or told
    assert state(kind, found, detail(told)) == word


@pytest.mark.parametrize(
    ("queue", "kind", "agent"),
    [
        ("shop.payment", "work", "payment"),
        ("shop.payment.dlq", "dlq", "payment"),
        ("shop.delay.19", "delay", None),
        ("shop.delay", "work", "delay"),
        ("shop.delay.dlq", "dlq", "delay"),
        ("shop.unclaimed.dlq", "dlq", None),
        ("shop.delay.due", "delay", None),
        ("shop.desk.retry", "retry", "desk"),
        ("shop.delay.retry", "retry", "delay"),
    ],
)
def test_place_of_a_queue_that_nobody_here_declares(queue: str, kind: str, agent: str | None):
    """Its name says what it is and whose."""
    assert place(Names("shop"), queue) == (kind, agent)


class Asked(Event, topic="queues-test.asked"):
    """In."""


class Answered(Event, topic="queues-test.answered"):
    """Out."""


class Gave(Event, topic="queues-test.gave.up"):
    """In the end."""


def clerk() -> Agent:
    agent = Agent("clerk", retry=Retry(on=OSError, attempts=3), timeout="5s")
    own = Retry(on=ValueError, attempts=2, first="1s")

    def given_up(_asked: Asked, _error: Exception) -> Gave:
        return Gave()

    @agent.on(retry=own, otherwise=given_up)
    async def answer(_asked: Asked) -> Answered | None:
        return None

    @agent.on
    async def note(_gave: Gave) -> None:
        return None

    return agent


def test_policies_name_the_agents_own_and_what_differs():
    """The agent-wide policy is stated, since it holds where a reaction names none."""
    assert (
        policies(clerk())
        == "OSError: 3 tries, 1s doubling to 5m, jittered; answer: ValueError: 2 tries, 1s doubling to 5m, jittered"
    )


def test_no_policy_is_said_as_what_it_means():
    assert policies(Agent("simple")) == "none: a failure is final"


def test_overview_of_an_agent():
    """What it takes and emits, its last words included, and how its two queues stand."""
    agent = clerk()
    views = (
        QueueView("n.clerk", "clerk", "work", 7, 2, "running"),
        QueueView("n.clerk.dlq", "clerk", "dlq", 3, 0, "waiting"),
    )
    row = queues.overview(agent, Snapshot(views))
    assert row["consumes"] == ["queues-test.asked", "queues-test.gave.up"]
    assert row["emits"] == ["queues-test.answered", "queues-test.gave.up"]
    assert (row["ready"], row["consumers"], row["dead"], row["state"]) == (7, 2, 3, "running")
    assert (row["timeout"], row["reactions"]) == (5.0, ["answer", "note"])
    assert row["where"].startswith("tests/unit/test_queues.py:")


def test_rows_have_details_only_when_somebody_told_them():
    view = QueueView("n.a", "a", "work", 0, 1, "running")
    assert list(view.row(detailed=False)) == ["queue", "agent", "kind", "ready", "consumers", "state"]
    assert view.row(detailed=True)["ack_rate"] is None


def dead_letters(policy: dict[str, Any], arguments: dict[str, Any] | None = None, kind: QueueKind = "dlq") -> QueueView:
    found = {"name": "choreo.shop.dlq", "policy": "limit", "effective_policy_definition": policy}
    detail = management._queue(found | {"arguments": arguments or {}})
    return QueueView("choreo.shop.dlq", "shop", kind, 0, 0, "empty", detail=detail)


@pytest.mark.parametrize(
    ("policy", "arguments", "said"),
    [
        ({"max-length": 5}, {}, "max-length=5 drops the oldest"),
        ({"max-length": 5, "overflow": "drop-head"}, {"x-overflow": "reject-publish"}, "max-length=5 drops the oldest"),
        ({"message-ttl": 1000}, {}, "message-ttl=1000 drops letters"),
        ({"expires": 1000}, {}, "expires=1000 deletes the queue"),
        ({"delivery-limit": 5}, {}, "delivery-limit=5 drops letters"),
        ({"delayed-retry-type": "all"}, {}, "delayed-retry-type hides"),
    ],
)
def test_policy_that_destroys_dead_letters_is_named(
    policy: dict[str, Any], arguments: dict[str, Any], said: str
) -> None:
    """With its name, what it does and the way out; only for dead-letter queues."""
    sentence = danger(dead_letters(policy, arguments))
    assert said in sentence
    assert "'limit'" in sentence
    assert "Leave such queues out of its pattern" in sentence
    assert not danger(dead_letters(policy, arguments, kind="delay"))


@pytest.mark.parametrize(
    ("policy", "arguments"),
    [
        ({}, {}),
        ({"max-length": 5}, {"x-overflow": "reject-publish"}),
        ({"max-length": 5, "overflow": "reject-publish"}, {}),
        ({"delayed-retry-type": "disabled"}, {}),
        ({"queue-leader-locator": "balanced"}, {}),
    ],
)
def test_policy_that_destroys_nothing_is_not_spoken_of(policy: dict[str, Any], arguments: dict[str, Any]) -> None:
    """A length that refuses is none: what cannot be buried is held."""
    assert not danger(dead_letters(policy, arguments))
