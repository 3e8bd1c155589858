"""What is said of queues and agents, without a broker."""

from __future__ import annotations

import pytest

from choreo import Agent, Event, Retry
from choreo.operate import queues
from choreo.operate.queues import QueueView, Snapshot, place, policies, state
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
    assert policies(clerk()) == (
        "OSError: 3 attempts, 1s doubling to 5m, jittered; answer: ValueError: 2 attempts, 1s doubling to 5m, jittered"
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
