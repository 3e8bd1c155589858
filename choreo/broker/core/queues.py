"""Queues and their consumers: who gets which message, and what becomes of those that nobody gets."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from math import inf
from typing import Any, NamedTuple, Protocol

from choreo.broker.core.arguments import Terms
from choreo.broker.core.dead_letters import buried, is_cycle, shown
from choreo.broker.core.failure import AmqpError
from choreo.broker.core.message import Message, Properties
from choreo.broker.core.outbound import Deliver, QueueOk, Sink
from choreo.broker.core.persistence import Journal, Settled, Stored
from choreo.broker.core.ready_messages import Entry, RankedReady, Ready


class Surroundings(Protocol):
    """What a queue needs of the virtual host that it is in."""

    vhost: str
    journal: Journal | None

    @property
    def now(self) -> float:
        """The time, in seconds since 1970."""
        ...

    def set_alarm(self, queue: Queue, at: float) -> None:
        """Have `queue` woken at the time `at`, if nothing wakes it before."""

    def put_off(self, queue: Queue, task: Callable[[], None]) -> None:
        """Have `task` called at the end of the method under way, if `queue` is still there."""

    def queues_for(self, message: Message) -> tuple[Queue, ...]:
        """Return the queues that a message comes to; none when its exchange is not there."""
        ...

    def drop_queue(self, queue: Queue) -> None:
        """Delete `queue`."""


class Recipient(Protocol):
    """What a queue and a consumer need of the channel that messages are delivered on.

    `prefetch`: of each new consumer. `full`: nothing may be delivered now. `sink`: what the client is sent.
    """

    prefetch: int
    last_tag: int
    unsettled: dict[int, Held]
    consumers: dict[str, Consumer]
    sink: Sink

    @property
    def full(self) -> bool:
        """See Recipient."""
        ...


class Consumer:
    """A subscription. `credit` is how many unsettled deliveries it may have: `limit`, or 0 while it takes none."""

    def __init__(
        self, channel: Recipient, queue: Queue, tag: str, *, no_ack: bool, exclusive: bool, arguments: Mapping[str, Any]
    ) -> None:
        self.channel = channel
        self.queue = queue
        self.tag = tag
        self.no_ack = no_ack
        self.exclusive = exclusive
        self.arguments = arguments
        self.limit = inf if (no_ack and not queue.limits_all) or not channel.prefetch else channel.prefetch
        self.credit = 0 if channel.full else self.limit
        self.priority: int = arguments.get("x-priority", 0)
        self.held = 0
        self.parked = True  # not among those who wait for messages
        self.cancelled = False
        self.next = 0  # the offset in a stream
        self.order = channel.last_tag, len(channel.consumers)  # in which the consumers of a channel came

    @property
    def leaves(self) -> tuple[str, tuple[int, int]]:
        """When it requeues what it holds as its channel closes: as they came; each basic.get, by its tag's text."""
        return "" if self.tag else str(self.order[0]), self.order


class Held(NamedTuple):
    """A delivery that is not settled."""

    queue: Queue
    entry: Entry
    consumer: Consumer


class Turns:
    """The consumers of a queue that wait for a message: those of the highest priority first, in turn."""

    __slots__ = ("_rings", "waiting")

    def __init__(self) -> None:
        self.waiting = 0  # how many there are
        self._rings: dict[int, deque[Consumer]] = {}  # by priority, the highest first

    def join(self, consumer: Consumer) -> None:
        """Let a parked consumer wait."""
        if consumer.priority not in self._rings:
            rings = self._rings | {consumer.priority: deque()}
            self._rings = dict(sorted(rings.items(), reverse=True))
        self._rings[consumer.priority].append(consumer)
        consumer.parked = False
        self.waiting += 1

    def leave(self, consumer: Consumer) -> None:
        """Park a consumer, if it waits."""
        if not consumer.parked:
            self._rings[consumer.priority].remove(consumer)
            consumer.parked = True
            self.waiting -= 1

    def next(self) -> Consumer:
        """Park and return the one whose turn it is; there has to be one."""
        for ring in self._rings.values():
            if ring:
                consumer = ring.popleft()
                consumer.parked = True
                self.waiting -= 1
                return consumer
        raise LookupError


class Queue:
    """A classic queue, and what the other types have in common with it. `owner`: the connection it is exclusive to."""

    _keeps_turn = True
    _tells_place = False  # of each message to its consumer, by a header
    limits_all = False  # consumers that acknowledge nothing have their prefetch too

    def __init__(
        self,
        host: Surroundings,
        name: str,
        arguments: Mapping[str, Any],
        *,
        durable: bool,
        auto_delete: bool,
        owner: object,
    ) -> None:
        self.host = host
        self.name = name
        self.arguments = arguments
        self.terms = Terms.of(arguments)
        self.durable = durable
        self.auto_delete = auto_delete
        self.owner = owner
        self.consumers: list[Consumer] = []
        self.messages = self._no_messages()
        self.bytes = 0  # of the bodies in line
        self.held = 0
        self.number = 0
        self.alarm: float | None = None  # when the broker will call `wake`
        self.gone = False
        self.lasting = durable and owner is None  # and with it its persistent messages
        self.journal = host.journal if self.lasting else None
        self._turns = Turns()
        self._active: Consumer | None = None
        self._leaving = False  # the active consumer gets no more, another one takes over
        self._limited = self.terms.max_length is not None or self.terms.max_bytes is not None
        self._timed = self.terms.ttl is not None
        self._used = host.now
        self.touch()

    def __str__(self) -> str:
        return f"queue '{self.name}' in vhost '{self.host.vhost}'"

    def _no_messages(self) -> Ready:
        return Ready() if self.terms.max_priority is None else RankedReady(self.terms.max_priority)

    @property
    def ready(self) -> int:
        """How many messages wait for a consumer."""
        return len(self.messages)

    def ok(self) -> QueueOk:
        """Return what queue.declare-ok says."""
        return QueueOk(self.name, self.ready, len(self.consumers))

    # -- in -------------------------------------------------------------------------------------------------------

    def put(self, message: Message, publisher: object) -> bool:
        """Take a message; False when it is refused. None publishes what dead-lettering does not wait for."""
        if self._limited and not self._admits(message, publisher):
            return False
        self.number += 1
        entry = Entry(self.number, message)
        if self._timed or message.ttl is not None:
            entry.expires = self._expiry(message)
        if self.lasting and self._keeps(message):
            entry.kept = True
            if self.journal:
                self.journal(self.storing(entry))
        self.messages.put(entry)
        self.bytes += len(message.body)
        if self._turns.waiting:
            self.dispatch()
        if self._limited:
            self._drop_surplus()
        if self._timed:
            self.drop_expired()
        return True

    def restore(self, stored: Stored) -> None:
        """Take back what was stored before a restart."""
        entry = Entry(stored.number, stored.message)
        entry.kept, entry.expires = True, stored.expires
        entry.returns = entry.failures = stored.failures
        self.number = max(self.number, stored.number)
        self._timed = self._timed or stored.expires is not None
        self._requeue_stored(entry, stored.dying)

    def _requeue_stored(self, entry: Entry, dying: str | None) -> None:
        self.messages.put(entry)
        self.bytes += len(entry.message.body)
        if self._timed:
            self.drop_expired()

    def stored(self) -> Iterator[Stored]:
        """Return what is in line and outlasts a restart."""
        for entry in self.messages:
            if entry.kept:
                yield self.storing(entry)

    def storing(self, entry: Entry) -> Stored:
        """Return the change that stores `entry`."""
        return Stored(self.name, entry.number, entry.message, entry.expires, entry.failures, entry.dying)

    def _keeps(self, message: Message) -> bool:
        return message.properties.delivery_mode == 2

    def _expiry(self, message: Message) -> float | None:
        own = None if message.ttl is None else message.ttl / 1000
        ttl = min((each for each in (self.terms.ttl, own) if each is not None), default=None)
        if ttl is None:
            return None
        self._timed = True
        return self.host.now + ttl

    def _admits(self, message: Message, publisher: object) -> bool:
        overflow = self.terms.overflow
        if overflow == "drop-head" or not self._is_over(len(self.messages) + 1, self.bytes + len(message.body)):
            return True
        if overflow == "reject-publish-dlx":
            self._bury_later(Entry(0, message), "maxlen")
        return False

    def _is_over(self, length: int, size: int, share: float = 1.0) -> bool:
        most, largest = self.terms.max_length, self.terms.max_bytes
        return (most is not None and length > int(most * share)) or (
            largest is not None and size > int(largest * share)
        )

    def _drop_surplus(self) -> None:
        while self.messages and self.terms.overflow == "drop-head" and self._is_over(len(self.messages), self.bytes):
            self._drop(self._take(), "maxlen")

    def drop_expired(self) -> None:
        """Let go of whoever stands at the head and is expired, and ask to be woken for the next one."""
        now, ready = self.host.now, self.messages
        while expired := [head for head in ready.heads() if head.expires is not None and head.expires <= now]:
            ready.take_head(expired[0])
            self.bytes -= len(expired[0].message.body)
            self._drop(expired[0], "expired")
        self._set_alarm()

    def _drop(self, entry: Entry, reason: str) -> None:
        """Let go of an entry that is in no line any more: to the dead-letter exchange, if there is one."""
        if self.terms.dead_letter_exchange is not None:
            self._bury_later(entry, reason)
        self.forget(entry)

    def _bury_later(self, entry: Entry, reason: str) -> None:
        self.host.put_off(self, partial(self.bury, entry, reason))

    def forget(self, entry: Entry) -> None:
        """Tell the journal that the message is gone."""
        if entry.kept and self.journal:
            self.journal(Settled(self.name, entry.number))

    def bury(self, entry: Entry, reason: str) -> None:
        """Publish a dead letter, at most once."""
        message = self._dead_letter(entry, reason)
        for queue in self._graves(message, reason):
            queue.put(message, None)

    def _dead_letter(self, entry: Entry, reason: str) -> Message:
        terms = self.terms
        exchange = terms.dead_letter_exchange or ""
        return buried(entry, reason, self.name, exchange, terms.dead_letter_key, self.host.now)

    def _graves(self, message: Message, reason: str) -> list[Queue]:
        queues = self.host.queues_for(message)
        return [queue for queue in queues if reason == "rejected" or not is_cycle(message, queue.name)]

    # -- out ------------------------------------------------------------------------------------------------------

    def _take(self) -> Entry:
        entry = self.messages.take()
        self.bytes -= len(entry.message.body)
        return entry

    def take(self) -> Entry | None:
        """Hand out the next message, as basic.get does; None when there is none."""
        self.touch()
        if not self.messages:
            return None
        entry = self._take()
        self.held += 1
        if self._timed:
            self.drop_expired()
        return entry

    def dispatch(self) -> None:
        """Hand out messages to those who wait for one, in turn."""
        ready, turns = self.messages, self._turns
        while ready and turns.waiting:
            consumer = turns.next()
            if consumer.held >= consumer.credit:
                continue
            self._hand(consumer, self._take())
            # One that may have no more keeps its turn here until it is its turn: it may have settled by then.
            if self._keeps_turn or consumer.held < consumer.credit:
                turns.join(consumer)
            if self._timed:
                self.drop_expired()

    def _hand(self, consumer: Consumer, entry: Entry) -> None:
        message, channel = entry.message, consumer.channel
        channel.last_tag = tag = channel.last_tag + 1
        if consumer.no_ack:
            self.forget(entry)
        else:
            self.held += 1
            consumer.held += 1
            channel.unsettled[tag] = Held(self, entry, consumer)
        redelivered = bool(entry.returns or entry.failures)
        plain = not (redelivered or message.deaths or self._tells_place)
        properties = message.properties if plain else self.shown(entry)
        channel.sink(
            Deliver(consumer.tag, tag, redelivered, message.exchange, message.keys[0], properties, message.body)
        )

    def shown(self, entry: Entry) -> Properties:
        """Return the properties of a message as a consumer sees them."""
        return shown(entry.message) if entry.message.deaths else entry.message.properties

    # -- settled --------------------------------------------------------------------------------------------------

    def settle(self, entry: Entry, consumer: Consumer) -> None:
        """Forget a message for good, and let its consumer have another one."""
        if entry.kept:
            self.forget(entry)
        self._release(consumer)
        if self.messages and self._turns.waiting:
            self.dispatch()

    def reject(self, held: Iterable[Held], *, failed: bool) -> None:
        """Dead-letter messages, all of them before anybody gets another one; `failed` counts as failed deliveries."""
        for each in sorted(held, key=lambda each: self.messages.rank(each.entry)):
            each.entry.failures += failed
            self._drop(each.entry, "rejected")
            self._release(each.consumer)
        self.dispatch()

    def put_back(self, held: Iterable[Held], *, failed: bool) -> None:
        """Put delivered messages back in line, all of them before anybody gets one; `failed` see `reject`."""
        for each in held:
            self._put_back(each.entry, failed=failed)
            self._release(each.consumer)
        self._settle_down()

    def _settle_down(self) -> None:
        """Drop what is too much or too old now, then hand out messages."""
        if self._limited:
            self._drop_surplus()
        if self._timed:
            self.drop_expired()
        self.dispatch()

    def _put_back(self, entry: Entry, *, failed: bool) -> None:
        entry.returns += 1
        entry.failures += failed
        self.messages.put_back(entry)
        self.bytes += len(entry.message.body)

    def _release(self, consumer: Consumer) -> None:
        self.held -= 1
        consumer.held -= 1
        if consumer.parked:
            self.unpark(consumer)

    # -- consumers ------------------------------------------------------------------------------------------------

    def subscribe(self, consumer: Consumer) -> None:
        """Add a consumer. Raises AmqpError 403 when it, or one that is there, must be the only one."""
        alone = consumer.exclusive and (self.consumers or self.terms.single_active)
        if alone or any(other.exclusive for other in self.consumers):
            raise AmqpError(403, f"{self} in exclusive use")
        self.consumers.append(consumer)

    def unsubscribe(self, consumer: Consumer) -> None:
        """Remove a consumer, whose deliveries stay its own. `carry_on` has to follow."""
        consumer.cancelled = True
        self.consumers.remove(consumer)
        self._turns.leave(consumer)

    def carry_on(self) -> None:
        """Go on without the consumers that are gone."""
        self.touch()
        self._elect()
        self.dispatch()
        if self.auto_delete and not self.consumers:
            self.host.drop_queue(self)

    def unpark(self, consumer: Consumer) -> None:
        """Let a consumer wait for messages, if it may have any."""
        if self.terms.single_active:
            self._elect()
            if consumer is not self._active or self._leaving:
                return
        if consumer.parked and not consumer.cancelled and consumer.held < consumer.credit:
            self._turns.join(consumer)

    def _elect(self) -> None:
        """Choose the single active consumer, when there is none: who takes precedence, or else came first."""
        if self.terms.single_active and (self._active is None or self._active.cancelled):
            self._activate(max(self.consumers, key=self._precedence, default=None))

    def _precedence(self, consumer: Consumer) -> tuple[float, ...]:
        """Return what is compared to choose the single active consumer; the highest is chosen."""
        return (consumer.priority,)

    def _activate(self, consumer: Consumer | None) -> None:
        self._active = consumer
        if consumer is not None:
            self.unpark(consumer)

    # -- time -----------------------------------------------------------------------------------------------------

    def touch(self) -> None:
        """Take note that the queue is in use."""
        self._used = self.host.now
        if self.terms.expires is not None:
            self._set_alarm()

    def due(self) -> float | None:
        """Return when something happens here by itself."""
        times = [head.expires for head in self.messages.heads() if head.expires is not None] if self._timed else []
        if self.terms.expires is not None and not self.consumers:
            times.append(self._used + self.terms.expires)
        return min(times, default=None)

    def _set_alarm(self) -> None:
        due = self.due()
        if due is not None:
            self.host.set_alarm(self, due)

    def wake(self) -> None:
        """Do what is due."""
        expires = self.terms.expires
        if expires is not None and not self.consumers and self._used + expires <= self.host.now:
            self.host.drop_queue(self)
        else:
            self.drop_expired()

    def check_deletion(self, *, if_unused: bool, if_empty: bool) -> None:
        """Raise AmqpError 406 when it is not what it has to be in order to be deleted."""
        if if_unused and self.consumers:
            raise AmqpError(406, f"{self} in use")
        if if_empty and self.messages:
            raise AmqpError(406, f"{self} not empty")

    def leave(self, publisher: object) -> None:
        """Forget a publisher that is gone."""

    def purge(self) -> int:
        """Remove what is in line; return how many."""
        count = len(self.messages)
        for entry in self.messages:
            self.forget(entry)
        self.messages, self.bytes = self._no_messages(), 0
        return count
