"""The messages of a queue that wait for a consumer: their order, and the place of one that comes back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import chain
from typing import Final

from choreo.broker.core.message import Message

_MIDDLE: Final = 4  # the priority in a quorum queue of a message that has none


class Entry:
    """A message in one queue. `number` is its place of arrival, `returns` how often it came back.

    `failures` are the deliveries that count towards a delivery limit; `expires` is a time in seconds since 1970.
    `kept`: it outlasts a restart. `dying`: the reason for which it waits for being dead-lettered.
    """

    __slots__ = ("dying", "expires", "failures", "kept", "message", "number", "returns")

    def __init__(self, number: int, message: Message) -> None:
        self.number = number
        self.message = message
        self.expires: float | None = None
        self.kept = False
        self.returns = 0
        self.failures = message.failures
        self.dying: str | None = None

    def __lt__(self, other: Entry) -> bool:
        return self.number < other.number


class Ready:
    """The ready messages of a classic queue: the order of arrival, to which messages that come back return.

    Those that come back were taken from the head, so they stand before all that were never taken.
    """

    __slots__ = ("_back", "_rest")

    def __init__(self) -> None:
        self._back: list[Entry] = []
        self._rest: deque[Entry] = deque()

    def __len__(self) -> int:
        return len(self._back) + len(self._rest)

    def __iter__(self) -> Iterator[Entry]:
        return chain(sorted(self._back), self._rest)

    def put(self, entry: Entry) -> None:
        """Add one that has just arrived."""
        self._rest.append(entry)

    def put_back(self, entry: Entry) -> None:
        """Add one that was taken before."""
        heappush(self._back, entry)

    def heads(self) -> list[Entry]:
        """Return who could expire next; the first of them is the next to be delivered."""
        return self._back[:1] or ([self._rest[0]] if self._rest else [])

    def take(self) -> Entry:
        """Remove and return the next one to be delivered."""
        return heappop(self._back) if self._back else self._rest.popleft()

    def take_head(self, head: Entry) -> None:
        """Remove one of `heads()`."""
        self.take()

    def rank(self, entry: Entry) -> int:
        """Return what comes before the order of arrival; the lowest is first."""
        return 0


class RankedReady(Ready):
    """Those of a classic queue with x-max-priority: higher priorities first, each in order of arrival."""

    __slots__ = ("_heap", "_highest")

    def __init__(self, highest: int) -> None:
        super().__init__()
        self._highest = highest
        self._heap: list[tuple[int, Entry]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Entry]:
        return (entry for _, entry in sorted(self._heap))

    def put(self, entry: Entry) -> None:
        """See Ready."""
        heappush(self._heap, (self.rank(entry), entry))

    put_back = put

    def rank(self, entry: Entry) -> int:
        """See Ready."""
        return -min(entry.message.properties.priority or 0, self._highest)

    def heads(self) -> list[Entry]:
        """See Ready."""
        return [self._heap[0][1]] if self._heap else []

    def take(self) -> Entry:
        """See Ready."""
        return heappop(self._heap)[1]


class QuorumReady(Ready):
    """Those of a quorum queue: what came back, in the order of coming back; then by priority, 0 to 31, and arrival."""

    __slots__ = ("_other", "_returned")

    def __init__(self) -> None:
        super().__init__()
        self._returned: deque[Entry] = deque()
        self._other: list[tuple[int, int, Entry]] = []  # of other priorities than most have

    def __len__(self) -> int:
        return len(self._returned) + len(self._rest) + len(self._other)

    def __iter__(self) -> Iterator[Entry]:
        return chain(self._returned, self._rest, (entry for _, _, entry in sorted(self._other)))

    def put(self, entry: Entry) -> None:
        """See Ready."""
        priority = entry.message.properties.priority
        if priority is None or priority == _MIDDLE:
            self._rest.append(entry)
        else:
            heappush(self._other, (-min(priority, 31), entry.number, entry))

    def put_back(self, entry: Entry) -> None:
        """See Ready."""
        self._returned.append(entry)

    def heads(self) -> list[Entry]:
        """See Ready."""
        found = [lane[0] for lane in (self._returned, self._rest) if lane]
        if self._other:
            found.insert(len(found) - (bool(self._rest) and self._urgent()), self._other[0][2])
        return found

    def take(self) -> Entry:
        """See Ready."""
        if self._returned:
            return self._returned.popleft()
        if self._other and (not self._rest or self._urgent()):
            return heappop(self._other)[2]
        return self._rest.popleft()

    def take_head(self, head: Entry) -> None:
        """See Ready."""
        for lane in (self._returned, self._rest):
            if lane and lane[0] is head:
                lane.popleft()
                return
        heappop(self._other)

    def _urgent(self) -> bool:
        return self._other[0][0] < -_MIDDLE
