"""What is said of policies that destroy what choreo's queues hold, without a broker."""

from __future__ import annotations

from typing import Any

import pytest

from choreo.agent import Agent
from choreo.rabbit import management
from choreo.runtime.policies import before_looking, dangers, effects
from choreo.topology import Names, Topology
from choreo.transport import QueueDetail, Server, Unavailable

TOPOLOGY = Topology.of([Agent("shop")])
NAMES = Names()
DLQ, WORK, RETRY = NAMES.dlq("shop"), NAMES.queue("shop"), NAMES.retries("shop")


def under(policy: dict[str, Any], queue: str = DLQ, **more: Any) -> QueueDetail:
    """A queue of ours, as the management API tells of it."""
    arguments = dict(next(each.arguments for each in TOPOLOGY.queues if each.name == queue))
    found = {"name": queue, "policy": "limit", "effective_policy_definition": policy, "arguments": arguments}
    return management._queue(found | more)


OLDER = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (under({"max-length": 5}, arguments=OLDER), "max-length=5 drops the oldest"),
        (under({"max-length-bytes": 5}, arguments=OLDER), "max-length-bytes=5 drops the oldest"),
        (under({"max-length": 5, "overflow": "drop-head"}), "max-length=5 drops the oldest"),
        (under({"message-ttl": 1000}), "message-ttl=1000 drops messages"),
        (under({"expires": 1000}), "expires=1000 deletes the queue"),
        (under({"delivery-limit": 5}), "delivery-limit=5 drops messages"),
        (under({"delayed-retry-type": "all"}), "delayed-retry-type=all hides"),
        (under({"message-ttl": 1000}, NAMES.due), "message-ttl=1000 drops messages"),
        (under({"expires": 1000}, WORK), "expires=1000 deletes the queue"),
        (under({"expires": 1000}, RETRY), "expires=1000 deletes the queue"),
        (under({"expires": 1000}, NAMES.level(19)), "expires=1000 deletes the queue"),
        (
            under({"overflow": "drop-head"}, WORK),
            "overflow=drop-head has what it drops written as dead letters at most",
        ),
        (under({"message-ttl": 10}, NAMES.level(3)), "message-ttl=10 ends delays early"),
    ],
)
def test_policy_that_destroys_is_named(found: QueueDetail, said: str) -> None:
    """With its name, what it does and the way out, for every kind of queue."""
    (sentence,) = dangers([found])
    assert found.name in sentence
    assert said in sentence
    assert "'limit'" in sentence
    assert "Leave such queues out of its pattern" in sentence


@pytest.mark.parametrize(
    "found",
    [
        under({}),
        under({"max-length": 5}),
        under({"max-length": 5, "overflow": "reject-publish"}, arguments=OLDER),
        under({"delayed-retry-type": "disabled"}),
        under({"queue-leader-locator": "balanced"}),
        under({"max-length": 5}, WORK),
        under({"message-ttl": 1000, "delivery-limit": 3}, WORK),
        under({"expires": 1000}, arguments={"x-queue-type": "quorum"}),
    ],
)
def test_policy_that_destroys_nothing_is_not_spoken_of(found: QueueDetail) -> None:
    """A length that refuses is none, what a work queue drops is a dead letter, and other queues are none of ours."""
    assert effects(found) == ()
    assert dangers([found]) == ()


def test_queues_alike_share_a_sentence() -> None:
    """A policy on everything is a line for each kind of harm, and not one for each of some twenty queues."""
    found = dangers(under({"expires": 1000}, queue.name, operator_policy="ops") for queue in TOPOLOGY.queues)
    assert len(found) == 1
    assert f"and {len(TOPOLOGY.queues) - 3} more lose messages, by 'limit' and 'ops'" in found[0]


@pytest.mark.parametrize(("version", "counts"), [("3.10.8", True), ("4.0.5", True), ("4.2.9", True), ("4.3.0", False)])
def test_looks_that_may_count_are_said_where_nobody_knows_the_policies(version: str, counts: bool) -> None:
    """Where the release counts them; from 4.3 on there is nothing to say without a policy."""
    server = Server("RabbitMQ", version)
    for told, why in ((None, "CHOREO_MANAGEMENT_URL"), (Unavailable("host: no answer in time"), "no answer in time")):
        said = before_looking(DLQ, server, told)
        assert len(said) == counts
        assert all(DLQ in each and why in each and "delivery-limit" in each for each in said)
    assert before_looking(DLQ, server, under({"max-length": 5})) == ()
    assert "'limit'" in before_looking(DLQ, server, under({"delivery-limit": 5}))[0]
