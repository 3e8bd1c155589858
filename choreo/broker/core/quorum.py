"""Quorum queues: what they do otherwise than classic ones, as of RabbitMQ 4.3."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final

from choreo.broker.core.dead_letters import shown
from choreo.broker.core.failure import AmqpError
from choreo.broker.core.message import Message, Properties
from choreo.broker.core.persistence import Counted, Stored
from choreo.broker.core.queues import Consumer, Queue, Surroundings
from choreo.broker.core.ready_messages import Entry, QuorumReady, Ready
from choreo.message import ACQUIRED_COUNT, DELIVERY_COUNT

_PATIENCE: Final = 180.0  # seconds until at-least-once dead-lettering tries again
_OUTSTANDING: Final = 32  # messages of one queue that it has tried and that have not arrived
_SOFT: Final = 0.8  # how full of its limit a queue may be at most to take publishes again


class _Dying:
    """A dead letter that has not arrived everywhere. `reached`: the queues that have it."""

    def __init__(self, entry: Entry, message: Message) -> None:
        self.entry = entry
        self.message = message
        self.reached: set[str] = set()


class QuorumQueue(Queue):
    """A quorum queue: it counts failed deliveries, and can wait until its dead letters have arrived."""

    _keeps_turn = False
    limits_all = True

    def __init__(self, host: Surroundings, name: str, arguments: Mapping[str, Any], **properties: Any) -> None:
        self._waiting: deque[Entry] = deque()  # to be dead-lettered, not tried yet
        self._stuck: list[_Dying] = []  # tried, and not arrived
        self._retry: float | None = None
        self._sated: list[Consumer] = []  # they acknowledge nothing, and have been given something
        self._publishers: set[object] = set()
        self._blocked: set[object] = set()
        super().__init__(host, name, arguments, **properties)

    def _no_messages(self) -> Ready:
        return QuorumReady()

    def _keeps(self, message: Message) -> bool:
        return True

    def _expiry(self, message: Message) -> float | None:
        expires = super()._expiry(message)
        return self.host.now + 0.001 if expires == self.host.now else expires

    def _load(self) -> tuple[int, int]:
        dying = self._dying()
        return len(self.messages) + len(dying), self.bytes + sum(len(entry.message.body) for entry in dying)

    def _admits(self, message: Message, publisher: object) -> bool:
        """A publisher is refused from when the limit is passed until a fifth of it is free again."""
        if self.terms.overflow == "drop-head" or publisher is None:
            return True
        if publisher not in self._publishers:
            self._publishers.add(publisher)
            if self._is_over(*self._load()):
                self._blocked.add(publisher)
        return publisher not in self._blocked

    def _drop_surplus(self) -> None:
        super()._drop_surplus()
        if self.terms.overflow != "drop-head" and self._is_over(*self._load()):
            self._blocked |= self._publishers

    def _reopen(self) -> None:
        """Take publishes again, if enough is gone: from now on, even when what was delivered comes back."""
        if self._blocked and not self._is_over(*self._load(), share=_SOFT):
            self._blocked.clear()

    def _take(self) -> Entry:
        entry = super()._take()
        self._reopen()
        return entry

    def drop_expired(self) -> None:
        """See Queue."""
        super().drop_expired()
        self._reopen()

    def leave(self, publisher: object) -> None:
        """Forget a publisher that is gone."""
        self._publishers.discard(publisher)
        self._blocked.discard(publisher)

    def _hand(self, consumer: Consumer, entry: Entry) -> None:
        super()._hand(consumer, entry)
        if consumer.no_ack:  # what it is given is settled when the client's channel has it
            self.held += 1
            consumer.held += 1
            if not self._sated:
                self.host.put_off(self, self._release_sated)
            self._sated.append(consumer)

    def _release_sated(self) -> None:
        """Let those who acknowledge nothing have more again."""
        sated, self._sated = self._sated, []
        for consumer in sated:
            self._release(consumer)
        self.dispatch()

    def shown(self, entry: Entry) -> Properties:
        """See Queue."""
        counts = {ACQUIRED_COUNT: entry.returns or entry.failures}
        if entry.failures:
            counts[DELIVERY_COUNT] = entry.failures
        return shown(entry.message, counts if counts[ACQUIRED_COUNT] else None)

    def _put_back(self, entry: Entry, *, failed: bool) -> None:
        limit = self.terms.delivery_limit
        if limit is not None and entry.failures + failed > limit:
            entry.failures += failed
            self._drop(entry, "delivery_limit")
            return
        super()._put_back(entry, failed=failed)
        if failed and self.journal:
            self.journal(Counted(self.name, entry.number, entry.failures, None))

    def _settle_down(self) -> None:
        """See Queue; what is handed out is not too much any more."""
        if self._timed:
            self.drop_expired()
        self.dispatch()
        if self._limited:
            self._drop_surplus()
            if self._timed:
                self.drop_expired()  # which may be at the head only now

    # -- single active consumer -----------------------------------------------------------------------------------

    def _elect(self) -> None:
        """A consumer of higher priority takes over as soon as the active one holds nothing, and it gets no more."""
        super()._elect()
        active = self._active
        if not self.terms.single_active or active is None:
            return
        best = max(self.consumers, key=self._precedence)
        self._leaving = best.priority > active.priority
        if self._leaving:
            self._turns.leave(active)
        if self._leaving and not active.held:
            self._leaving = False
            self._activate(best)

    def _precedence(self, consumer: Consumer) -> tuple[float, ...]:
        """See Queue; of those of one priority, whoever may have most at once."""
        return consumer.priority, consumer.limit

    # -- dead-lettering at least once -----------------------------------------------------------------------------

    def _drop(self, entry: Entry, reason: str) -> None:
        if not self.terms.at_least_once or reason == "maxlen" or self.terms.dead_letter_exchange is None:
            super()._drop(entry, reason)
            return
        entry.dying = reason
        self._waiting.append(entry)
        if self.journal:
            self.journal(Counted(self.name, entry.number, entry.failures, reason))
        self._bury_later(entry, reason)

    def bury(self, entry: Entry, reason: str) -> None:
        """See Queue; at least once, if that was asked for."""
        if entry.dying is None:
            super().bury(entry, reason)
        else:
            self._try_waiting()

    def _dying(self) -> list[Entry]:
        return [*self._waiting, *(each.entry for each in self._stuck)]

    def _try_waiting(self) -> None:
        while self._waiting and len(self._stuck) < _OUTSTANDING:
            entry = self._waiting.popleft()
            dying = _Dying(entry, self._dead_letter(entry, entry.dying or ""))
            if not self._arrives(dying):
                self._stuck.append(dying)
                self._retry = self._retry or self.host.now + _PATIENCE
                self._set_alarm()
        self._reopen()

    def _arrives(self, dying: _Dying) -> bool:
        """Publish to all queues that do not have it yet; say whether all have it now."""
        graves = self._graves(dying.message, dying.entry.dying or "")
        for queue in graves:
            if queue.name not in dying.reached and queue.put(dying.message, self):
                dying.reached.add(queue.name)
        if not dying.reached.issuperset(queue.name for queue in graves) or not dying.reached:
            return False
        self.forget(dying.entry)
        return True

    def due(self) -> float | None:
        """See Queue."""
        return min((time for time in (super().due(), self._retry) if time is not None), default=None)

    def wake(self) -> None:
        """See Queue."""
        if self._retry is not None and self._retry <= self.host.now:
            self._stuck = [dying for dying in self._stuck if not self._arrives(dying)]
            self._retry = self.host.now + _PATIENCE if self._stuck else None
            self._try_waiting()
        super().wake()

    def check_deletion(self, *, if_unused: bool, if_empty: bool) -> None:
        """See Queue. Raises AmqpError 540: it can do neither."""
        for asked, flag in ((if_unused, "if-unused"), (if_empty, "if-empty")):
            if asked:
                words = f"queue.delete operations with {flag} flag set are not supported by quorum queues"
                raise AmqpError(540, f"cannot delete {self}. {words}")

    def take(self) -> Entry | None:
        """See Queue. Raises AmqpError 405 when it has a single active consumer."""
        if self.terms.single_active:
            words = 'basic.get operations are not supported by <<"quorum">> queues with single active consumer'
            raise AmqpError(405, f"cannot obtain access to locked {self}. {words}")
        return super().take()

    def purge(self) -> int:
        """See Queue; what is dying is purged as well."""
        dying = self._dying()
        for entry in dying:
            self.forget(entry)
        self._waiting.clear()
        self._stuck.clear()
        self._retry = None
        count = super().purge() + len(dying)
        self._reopen()
        return count

    def stored(self) -> Iterator[Stored]:
        """See Queue."""
        yield from super().stored()
        yield from map(self.storing, self._dying())

    def _requeue_stored(self, entry: Entry, dying: str | None) -> None:
        if dying is None:
            super()._requeue_stored(entry, None)
        else:
            self._drop(entry, dying)
