"""A channel's transaction: what it has published and settled since it was begun, none of which has happened yet.

A commit is no more atomic than the queues are (https://www.rabbitmq.com/docs/semantics): a full queue that refuses one
of its messages makes it fail, and what others have taken, and what was acknowledged, stays so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from choreo.broker.core.message import Message
from choreo.broker.core.queues import Held, Queue

Settle = Callable[[list[Held]], None]


class Publication(NamedTuple):
    """A message on its way to the queues that were bound for it when it was published."""

    routing_key: str
    message: Message
    queues: tuple[Queue, ...]
    mandatory: bool


class Transaction:
    """What waits for the commit. What it settles cannot be settled again, and is the channel's all the same."""

    def __init__(self) -> None:
        self.publications: list[Publication] = []
        self._settlements: list[tuple[tuple[bool, ...], Settle, dict[int, Held]]] = []

    def settle(self, kind: tuple[bool, ...], settle: Settle, held: dict[int, Held]) -> None:
        """Have `settle` called with deliveries at the commit, together with what came just before of the same kind."""
        if self._settlements and self._settlements[-1][0] == kind:
            self._settlements[-1][2].update(held)
        else:
            self._settlements.append((kind, settle, held))

    def settlements(self) -> Iterator[tuple[Settle, list[Held]]]:
        """Return what is to be settled and how, each kind's deliveries in the order of their tags."""
        for _, settle, held in self._settlements:
            yield settle, [held[tag] for tag in sorted(held)]

    def held(self) -> dict[int, Held]:
        """Return the deliveries that it settles, by tag."""
        return {tag: each for _, _, held in self._settlements for tag, each in held.items()}
