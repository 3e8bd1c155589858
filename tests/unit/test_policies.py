"""What is said of policies that destroy what choreo's queues hold, without a broker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from choreo.agent import Agent
from choreo.rabbit import management
from choreo.runtime.policies import before_looking, dangers, effects, report
from choreo.topology import Binding, Names, Topology
from choreo.transport import QueueDetail, Server, Unavailable
from tests.waiting import in_virtual_time

TOPOLOGY = Topology.of([Agent("shop")])
NAMES = Names()
DLQ, WORK, RETRY = NAMES.dlq("shop"), NAMES.queue("shop"), NAMES.retries("shop")


def under(policy: dict[str, Any], queue: str = DLQ, **more: Any) -> QueueDetail:
    """A queue of ours, as the management API tells of it."""
    arguments = dict(next(each.arguments for each in TOPOLOGY.queues if each.name == queue))
    found = {"name": queue, "policy": "limit", "effective_policy_definition": policy, "arguments": arguments}
    return management._queue(found | more)


NEW = replace(under({}), policy=None)  # the API has no statistics of it so far
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
            "overflow=drop-head writes the messages that it drops as dead letters at most once",
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
    unknown: list[tuple[QueueDetail | Unavailable | None, str]] = [
        (None, "CHOREO_MANAGEMENT_URL"),
        (Unavailable("host: no answer in time"), "no answer in time"),
        (NEW, "does not show its policies"),
    ]
    for told, why in unknown:
        said = before_looking(DLQ, server, told)
        assert len(said) == counts
        assert all(DLQ in each and why in each and "delivery-limit" in each for each in said)
    assert before_looking(DLQ, server, under({"max-length": 5})) == ()
    assert "'limit'" in before_looking(DLQ, server, under({"delivery-limit": 5}))[0]


class Api:
    """A management API that answers in turn, and goes on with the last answer."""

    def __init__(self, *answers: tuple[QueueDetail, ...] | Unavailable) -> None:
        self.answers = list(answers)

    async def queues(self, namespace: str) -> tuple[QueueDetail, ...] | Unavailable:
        assert namespace == NAMES.namespace
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def queue(self, name: str) -> QueueDetail:
        raise AssertionError(name)

    async def bindings(self, namespace: str) -> tuple[Binding, ...]:
        raise AssertionError(namespace)


def everything(change: Callable[[QueueDetail], QueueDetail] = lambda each: each) -> tuple[QueueDetail, ...]:
    """All queues, under a policy by which they expire."""
    return tuple(change(under({"expires": 1000}, queue.name)) for queue in TOPOLOGY.queues)


ALL = everything()
HIDDEN = everything(lambda each: replace(each, policy=None))


@pytest.mark.parametrize(
    "before",
    [[], [HIDDEN], [()], [ALL[:1]], [HIDDEN, (*ALL[:5], *HIDDEN[5:])]],
    ids=["at once", "no policies", "no queues", "one queue", "some policies"],
)
@in_virtual_time
async def test_policies_that_show_late_are_named_all_the_same(before: list[tuple[QueueDetail, ...]]) -> None:
    """Once, and for all queues: a new one's policies show with its first statistics, some seconds later."""
    with capture_logs() as logs:
        await report([Agent("shop")], NAMES.namespace, Api(*before, ALL))
    assert [(each["event"], each["found"]) for each in logs] == [("policies destroy messages", list(dangers(ALL)))]


@pytest.mark.parametrize("last", [ALL[:2] + HIDDEN[2:], Unavailable("host: no answer in time")])
@in_virtual_time
async def test_policies_that_never_show_are_said_not_to(last: tuple[QueueDetail, ...] | Unavailable) -> None:
    """What did show is named."""
    with capture_logs() as logs:
        await report([Agent("shop")], NAMES.namespace, Api(ALL[:2] + HIDDEN[2:], last))
    assert [each["event"] for each in logs] == ["policies not known", "policies destroy messages"]
    assert logs[1]["found"] == list(dangers(ALL[:2]))
    if not isinstance(last, Unavailable):
        assert logs[0]["queues"] == sorted(each.name for each in ALL[2:])
