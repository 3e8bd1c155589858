"""Streams: a log that consumers read at their own place, and nothing is taken out of but what is too old."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from choreo.broker.core.arguments import age
from choreo.broker.core.dead_letters import shown
from choreo.broker.core.failure import AmqpError, field_type
from choreo.broker.core.message import Message, Properties
from choreo.broker.core.outbound import QueueOk
from choreo.broker.core.persistence import Settled, Stored
from choreo.broker.core.queues import Consumer, Held, Queue, Surroundings
from choreo.broker.core.ready_messages import Entry
from choreo.message import STREAM_OFFSET, FarTime


class StreamQueue(Queue):
    """A stream. Each message is a chunk of its own; whole segments are dropped when a new one begins."""

    _tells_place = True

    def __init__(self, host: Surroundings, name: str, arguments: Mapping[str, Any], **properties: Any) -> None:
        self._log: deque[Entry] = deque()
        self._times: deque[float] = deque()
        self._segments: deque[list[int]] = deque([[0, 0]])  # the offset that each begins with, and its bytes
        super().__init__(host, name, arguments, **properties)

    @property
    def ready(self) -> int:
        """See Queue."""
        return len(self._log)

    def ok(self) -> QueueOk:
        """See Queue; a stream does not tell of its consumers."""
        return QueueOk(self.name, self.ready, 0)

    @property
    def _first(self) -> int:
        return self.number - len(self._log)

    def put(self, message: Message, publisher: object) -> bool:
        """See Queue."""
        self._append(Entry(self.number, message), self.host.now)
        if self.journal:
            self.journal(self.storing(self._log[-1]))
        if self._segments[-1][0] == self.number - 1:
            self._retain()
        self.dispatch()
        return True

    def _append(self, entry: Entry, time: float) -> None:
        entry.kept, entry.expires, entry.failures = True, time, 0
        size, segment = len(entry.message.body), self._segments[-1]
        if segment[1] + size > self.terms.segment and segment[1]:
            segment = [entry.number, 0]
            self._segments.append(segment)
        segment[1] += size
        self.bytes += size
        self.number = entry.number + 1
        self._log.append(entry)
        self._times.append(time)

    def _retain(self) -> None:
        """Drop what is too old or too much, now that a segment begins."""
        terms = self.terms
        while len(self._segments) > 1:
            newest = self._times[self._segments[1][0] - 1 - self._first]
            too_old = terms.max_age is not None and newest < self.host.now - terms.max_age
            if not too_old and (terms.max_bytes is None or self.bytes <= terms.max_bytes):
                return
            _, size = self._segments.popleft()
            self.bytes -= size
            while self._first < self._segments[0][0]:
                self._times.popleft()
                gone = self._log.popleft()
                if self.journal:
                    self.journal(Settled(self.name, gone.number))

    def restore(self, stored: Stored) -> None:
        """See Queue."""
        if not self._log:
            self.number = stored.number
            self._segments = deque([[stored.number, 0]])
        self._append(Entry(stored.number, stored.message), stored.expires or self.host.now)

    def stored(self) -> Iterator[Stored]:
        """See Queue."""
        return map(self.storing, self._log)

    def subscribe(self, consumer: Consumer) -> None:
        """See Queue. Raises AmqpError 406 or 540 for a consumer that a stream cannot have."""
        if not consumer.channel.prefetch:
            raise AmqpError(406, f"consumer prefetch count is not set for stream {self}")
        if consumer.no_ack:
            raise AmqpError(540, f"automatic acknowledgement not supported by stream {self}")
        consumer.next = self._offset(consumer.arguments.get("x-stream-offset", "next"))
        super().subscribe(consumer)

    def _offset(self, asked: object) -> int:
        match asked:
            case "first":
                return self._first
            case "last":
                return max(self._first, self.number - 1)
            case "next":
                return self.number
            case FarTime():
                return self.number
            case datetime():
                return self._since(asked.timestamp())
            case str() if (ago := age(asked)) is not None:
                return self._since(self.host.now - ago)
            case int():
                return max(self._first, asked)
        said = f'{{{field_type(asked)},<<"{asked}">>}}'
        raise AmqpError(406, f"invalid arg 'x-stream-offset' for {self}: {{invalid_stream_offset_arg,{said}}}")

    def _since(self, time: float) -> int:
        later = (self._first + at for at, each in enumerate(self._times) if each >= time)
        return next(later, self.number)

    def unpark(self, consumer: Consumer) -> None:
        """See Queue; each consumer reads for itself."""
        self._read(consumer)

    def dispatch(self) -> None:
        """See Queue."""
        for consumer in self.consumers:
            self._read(consumer)

    def _read(self, consumer: Consumer) -> None:
        consumer.next = max(consumer.next, self._first)
        while consumer.next < self.number and not consumer.cancelled and consumer.held < consumer.credit:
            entry = self._log[consumer.next - self._first]
            consumer.next += 1
            self._hand(consumer, entry)

    def shown(self, entry: Entry) -> Properties:
        """See Queue."""
        return shown(entry.message, {STREAM_OFFSET: entry.number})

    def settle(self, entry: Entry, consumer: Consumer) -> None:
        """See Queue."""
        self._release(consumer)

    def put_back(self, held: Iterable[Held], *, failed: bool) -> None:
        """See Queue; it is as good as settled."""
        for each in held:
            self._release(each.consumer)

    reject = put_back

    def take(self) -> Entry | None:
        """See Queue. Always raises AmqpError 540."""
        raise AmqpError(540, f"basic.get not supported by stream queues {self}")

    def check_deletion(self, *, if_unused: bool, if_empty: bool) -> None:
        """See Queue; a stream does not look."""

    def purge(self) -> int:
        """See Queue. Always raises AmqpError 540."""
        raise AmqpError(540, f"queue.purge not supported by stream queues {self}")
