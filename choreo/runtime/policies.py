"""Policies that destroy, or hide for a while, what choreo's queues hold: where no argument of a queue helps, say it.

They do not show over AMQP. The management API tells them, with their names; a worker neither fails over it nor waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final

from choreo.agent import Agent
from choreo.logger import get_logger
from choreo.topology import Topology
from choreo.transport import Management, QueueDetail, Server, Unavailable

_NAMED: Final = 3  # queues of one kind that are named; of the others, how many there are
# Seconds between questions: a new queue's policies show with its first statistics, up to 9 s later [measured: 3.10.8].
_PAUSES: Final = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)

_logger = get_logger()


def effects(queue: QueueDetail) -> tuple[str, ...]:
    """Return what the policies on one of choreo's queues do to what it holds; nothing: no harm, or another's queue."""
    policy, arguments = queue.policy, queue.arguments
    if policy is None or "x-delivery-limit" not in arguments:
        return ()
    found = {}
    final = "x-dead-letter-exchange" not in arguments  # what it drops is gone
    overflow = policy.get("overflow") or arguments.get("x-overflow") or "drop-head"
    found["expires"] = "deletes the queue if it is unused for so many ms"
    if final:
        if overflow == "drop-head":
            found |= dict.fromkeys(("max-length", "max-length-bytes"), "drops the oldest messages")
        found["message-ttl"] = "drops messages after so many ms"
        found["delivery-limit"] = "drops messages that came back so often (until RabbitMQ 4.3 each look counts)"
        if policy.get("delayed-retry-type") != "disabled":
            found["delayed-retry-type"] = "hides inspected messages for a while"
    else:
        if overflow == "drop-head":
            found["overflow"] = "writes the messages that it drops as dead letters at most once"
        if "x-message-ttl" in arguments:
            found["message-ttl"] = "ends delays early"
    return tuple(f"{key}={policy[key]} {what}" for key, what in found.items() if key in policy)


def dangers(queues: Iterable[QueueDetail]) -> tuple[str, ...]:
    """Return a sentence on each policy that destroys what `queues` hold: which, what it does, and a hint."""
    alike: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for queue in queues:
        if found := effects(queue):
            alike.setdefault((queue.policies, found), []).append(queue.name)
    return tuple(_sentence(names, *what) for what, names in alike.items())


def before_looking(queue: str, server: Server, told: QueueDetail | Unavailable | None) -> tuple[str, ...]:
    """Return what to know of policies before a look at dead letters. `told`: None where nobody could be asked."""
    if isinstance(told, QueueDetail) and told.policy is not None:
        return dangers([told])
    if not server.counts_returns:
        return ()
    match told:
        case None:
            why = "set CHOREO_MANAGEMENT_URL to have it found"
        case Unavailable(reason):
            why = reason
        case _:
            why = "the management API does not show its policies"
    counts = f"on RabbitMQ {server.version} each look counts"
    return (f"{counts}: a policy delivery-limit on {queue}, if it has one, drops what was looked at more often; {why}",)


def _sentence(names: list[str], policies: tuple[str, ...], found: tuple[str, ...]) -> str:
    others = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    lose = "lose" if len(names) > 1 else "loses"
    by = " and ".join(map(repr, policies)) or "a policy"
    return (
        f"{', '.join(names[:_NAMED])}{others} {lose} messages, by {by}: {'; '.join(found)}."
        " Leave such queues out of its pattern"
    )


async def report(agents: Sequence[Agent], namespace: str, management: Management | None) -> None:
    """Name in one line those on the queues of `agents`; a management API that does not answer is no more than said.

    It is asked for a minute until it shows the policies of all.
    """
    if management is None:
        return
    ours = {queue.name for queue in Topology.of(agents, namespace).queues}
    shown: list[QueueDetail] = []
    for pause in (*_PAUSES, None):
        told = await management.queues(namespace)
        if isinstance(told, Unavailable):
            _logger.info("policies not known", why=told.reason)
            break
        shown = [each for each in told if each.name in ours and each.policy is not None]
        if len(shown) == len(ours):
            break
        if pause is None:
            hidden = sorted(ours - {each.name for each in shown})
            _logger.info("policies not known", why="the management API does not show them", queues=hidden)
        else:
            await asyncio.sleep(pause)
    if found := dangers(shown):
        _logger.error("policies destroy messages", found=list(found))


def report_older(queues: Sequence[str]) -> None:
    """Name dead-letter queues that were declared before they refused what they have no room for."""
    if queues:
        _logger.error(
            "dead-letter queues of an earlier release",
            queues=list(queues),
            danger="under a policy with a length they drop their oldest letters",
            way_out="empty each (choreo dlq replay, or drop) and rabbitmqctl delete_queue it: it is declared again",
        )
