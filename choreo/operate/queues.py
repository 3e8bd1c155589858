"""What the broker shows of agents' queues and bindings. AMQP alone is enough; the management API adds detail.

The states of a queue:

    missing       the broker has no such queue: its agent has never run here
    running       a work queue that somebody consumes from
    no consumer   a work queue that nobody consumes from
    empty         a dead-letter queue, a queue of retries or a delay with nothing in it
    waiting       a dead-letter queue, a queue of retries or a delay that holds messages

The management API may say more of a queue that is in trouble: down, minority, crashed. Its word then stands there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from choreo.agent import Agent
from choreo.event import declaration
from choreo.reaction import Reaction
from choreo.retry import Retry
from choreo.runtime.policies import dangers
from choreo.topology import UNCLAIMED, Binding, Names, QueueKind, Topology
from choreo.transport import Management, QueueDetail, QueueStats, Session, Unavailable

DETAILS: Final = ("unacked", "publish_rate", "deliver_rate", "ack_rate", "memory")
_KINDS: Final[tuple[QueueKind, ...]] = ("work", "retry", "dlq")  # of the queues of an agent
NO_RETRY: Final = "none: a failure is final"

_HEALTHY: Final = (None, "running", "idle")


@dataclass(frozen=True, slots=True)
class QueueView:
    """One queue. `declared`: by an agent of this project, or the ladder. `detail`: None without management."""

    queue: str
    agent: str | None
    kind: QueueKind
    ready: int | None
    consumers: int | None
    state: str
    declared: bool = True
    detail: QueueDetail | None = None

    def row(self, *, detailed: bool) -> dict[str, Any]:
        """Return what to show of it; `detailed` with what the management API tells, None where it does not."""
        names = ("queue", "agent", "kind", "ready", "consumers", "state")
        row: dict[str, Any] = {name: getattr(self, name) for name in names}
        if detailed:
            row |= {name: getattr(self.detail, name, None) for name in DETAILS} | {"declared": self.declared}
        return row


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All queues at one moment. `detailed`: the management API has answered; `notes` say why not, if it was asked."""

    queues: tuple[QueueView, ...]
    detailed: bool = False
    notes: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per queue."""
        return [view.row(detailed=self.detailed) for view in self.queues]

    def of(self, agent: str, kind: QueueKind) -> QueueView:
        """Return an agent's queue of one kind."""
        return next(view for view in self.queues if view.agent == agent and view.kind == kind)


async def look(session: Session, agents: Iterable[str], names: Names, management: Management | None = None) -> Snapshot:
    """Return the queues of `agents`, by name, and of the delay ladder; with `management` also others of the namespace.

    Raises what the session raises: BrokerUnreachable, AccessRefused.
    """
    told = await management.queues(names.namespace) if management is not None else ()
    notes = (f"no rates and no details: {told.reason}",) if isinstance(told, Unavailable) else ()
    details = {} if isinstance(told, Unavailable) else {each.name: each for each in told}
    ours: dict[str, tuple[QueueKind, str | None]] = {
        queue.name: (queue.kind, queue.agent) for queue in Topology.of([], names.namespace).queues
    }
    for agent in agents:
        ours |= {
            names.queue(agent): ("work", agent),
            names.retries(agent): ("retry", agent),
            names.dlq(agent): ("dlq", agent),
        }
    everything = ours | {name: place(names, name) for name in sorted(details) if name not in ours}
    # One after the other, a millisecond each: aiormq, asked for several at once of which some are missing, opens a
    # channel number that is still closing, and the broker ends the connection [measured: aiormq 7.2.4].
    found = [await session.stats(name) for name in everything]
    views = tuple(
        QueueView(
            queue=name,
            agent=agent,
            kind=kind,
            ready=stats.ready if stats else None,
            consumers=stats.consumers if stats else None,
            state=state(kind, stats, details.get(name)),
            declared=name in ours,
            detail=details.get(name),
        )
        for (name, (kind, agent)), stats in zip(everything.items(), found, strict=True)
    )
    notes_on = dangers(view.detail for view in views if view.detail is not None)
    return Snapshot(views, detailed=management is not None and not notes, notes=notes + notes_on)


def state(kind: QueueKind, stats: QueueStats | None, detail: QueueDetail | None = None) -> str:
    """Return the state of a queue in a word; the module's text says which words there are."""
    if detail is not None and detail.state not in _HEALTHY:
        return str(detail.state)
    if stats is None:
        return "missing"
    if kind == "work":
        return "running" if stats.consumers else "no consumer"
    return "waiting" if stats.ready else "empty"


def place(names: Names, queue: str) -> tuple[QueueKind, str | None]:
    """Return what a queue of the namespace is by its name, and whose: one that no agent of this project declares."""
    rest = queue.removeprefix(f"{names.namespace}.")
    if queue == names.due or (rest.startswith("delay.") and rest.removeprefix("delay.").isdecimal()):
        return "delay", None
    if rest.endswith(".retry"):
        return "retry", rest.removesuffix(".retry")
    if queue == names.dlq(UNCLAIMED):
        return "dlq", None
    if rest.endswith(".dlq"):
        return "dlq", rest.removesuffix(".dlq")
    return "work", rest


def overview(agent: Agent, snapshot: Snapshot) -> dict[str, Any]:
    """Return one row on an agent: what it does, and how its queues stand. `timeout` is in seconds."""
    work, dead = snapshot.of(agent.name, "work"), snapshot.of(agent.name, "dlq")
    return {
        "agent": agent.name,
        "state": work.state,
        "ready": work.ready,
        "consumers": work.consumers,
        "dead": dead.ready,
        "reactions": [reaction.name for reaction in agent.reactions],
        "consumes": list(agent.patterns),
        "emits": sorted({topic for reaction in agent.reactions for topic in _emitted(reaction)}),
        "retry": policies(agent),
        "timeout": agent.timeout,
        "description": agent.description,
        "where": agent.where,
    }


def policies(agent: Agent) -> str:
    """Return the agent-wide retry policy, and the reactions that have another one."""
    own = [
        f"{reaction.name}: {policy(reaction.retry)}"
        for reaction in agent.reactions
        if reaction.retry is not agent.retry
    ]
    return "; ".join([policy(agent.retry), *own])


def policy(retry: Retry | None) -> str:
    """Return a retry policy in words."""
    return NO_RETRY if retry is None else retry.describe()


async def portrait(
    session: Session, agent: Agent, names: Names, management: Management | None = None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return everything about one agent, and notes on what could not be had."""
    snapshot = await look(session, [agent.name], names, management)
    queues = [snapshot.of(agent.name, kind) for kind in _KINDS]
    data = overview(agent, snapshot) | {
        "retry": policy(agent.retry),
        "max_hops": agent.max_hops,
        "queue": names.queue(agent.name),
        "dlq": names.dlq(agent.name),
        "queues": [view.row(detailed=snapshot.detailed) for view in queues],
        "reactions": [_reaction(each) for each in agent.reactions],
    }
    if management is not None and snapshot.detailed:
        told = await management.queue(names.queue(agent.name))
        consumers = () if isinstance(told, Unavailable) else told.consumer_details
        fields = ("address", "user", "prefetch", "active")
        data["consumer_details"] = [{name: getattr(each, name) for name in fields} for each in consumers]
    return data, snapshot.notes


def _reaction(reaction: Reaction) -> dict[str, Any]:
    return {
        "reaction": reaction.name,
        "consumes": list(reaction.patterns),
        "emits": _topics(reaction.emits),
        "retry": policy(reaction.retry),
        "otherwise": getattr(reaction.otherwise, "__name__", None),
        "otherwise_emits": _topics(reaction.otherwise_emits),
        "compensates": reaction.compensates,
        "timeout": reaction.timeout,
        "max_hops": reaction.max_hops,
        "where": reaction.where,
    }


def _emitted(reaction: Reaction) -> list[str]:
    return _topics(reaction.emits) + _topics(reaction.otherwise_emits)


def _topics(events: Iterable[Any]) -> list[str]:
    return [declaration(event).topic for event in events]


async def bindings(
    agents: Sequence[Agent], names: Names, management: Management | None = None
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Return the bindings that `agents` and the ladder need, and notes on what could not be had.

    With `management` each says whether it is `on_broker`, and those of the namespace that nobody here declares follow
    (`declared` is false): an agent that has given up a topic still gets it until such a binding is removed.
    """
    told = await management.bindings(names.namespace) if management is not None else ()
    needed = list(_needed(agents, names.namespace))
    rows = [_binding(each, agent) for each, agent in needed]
    if management is None:
        return rows, ()
    if isinstance(told, Unavailable):
        return rows, (f"not known which bindings are on the broker: {told.reason}",)
    declared, existing = {each for each, _ in needed}, set(told)
    for row, (each, _) in zip(rows, needed, strict=True):
        row |= {"on_broker": each in existing, "declared": True}
    for each in told:
        if each not in declared:
            agent = place(names, each.destination)[1] if each.to == "queue" else None
            rows.append(_binding(each, agent) | {"on_broker": True, "declared": False})
    return rows, ()


def _needed(agents: Iterable[Agent], namespace: str) -> Iterator[tuple[Binding, str | None]]:
    """Yield each agent's bindings and then the ladder's own."""
    ladder = Topology.of([], namespace).bindings
    for agent in agents:
        for each in Topology.of([agent], namespace).bindings:
            if each not in ladder:
                yield each, agent.name
    for each in ladder:
        yield each, None


def _binding(binding: Binding, agent: str | None) -> dict[str, Any]:
    return {
        "source": binding.source,
        "pattern": binding.pattern,
        "destination": binding.destination,
        "to": binding.to,
        "agent": agent,
    }
