"""What to write for deliveries that are settled, in whatever order that happened. Pure.

A run of acknowledged tags without a gap is one frame with `multiple`, stragglers behind a gap go out singly: one slow
delivery never holds up the window. Fewer frames also matter to the broker: a quorum queue that is sent more than 32
settlements at once keeps the rest in the channel, and forgets them if the channel is closed before they are through.
"""

from __future__ import annotations

from typing import NamedTuple


class Frame(NamedTuple):
    """One basic.ack, or one basic.nack with requeue when `back` is set. Tag 0: all that is unsettled."""

    tag: int
    multiple: bool = False
    back: bool = False


class Settlements:
    """The delivery tags of one channel, which the broker counts up from 1.

    There must be one writer: a frame with `multiple` speaks for every tag below its own, so what was requeued has to
    be written before it. However much is settled beside one delivery that is not, no more is kept than there are such
    deliveries: between two of them lies one stretch.
    """

    def __init__(self) -> None:
        self._run = 0  # every tag up to this one is settled, or about to be by `_last`
        self._last = 0  # the highest acknowledged tag of the run, 0 when it has been written
        self._stragglers: set[int] = set()  # acknowledged behind a gap, not yet written
        self._given_back: list[int] = []  # not yet written
        self._rest_back = False  # all the others are to be requeued
        # Stretches of tags that are written, beyond the run and without a gap: the last tag of each by its first one,
        # and the other way round.
        self._lasts: dict[int, int] = {}
        self._firsts: dict[int, int] = {}

    def __len__(self) -> int:
        """How much is kept."""
        return len(self._stragglers) + len(self._given_back) + len(self._lasts)

    def acknowledge(self, tag: int) -> None:
        """Note that the delivery `tag` is done with."""
        if tag == self._run + 1:
            self._run = self._last = tag
        else:
            self._stragglers.add(tag)

    def give_back(self, tag: int) -> None:
        """Note that the delivery `tag` is to be delivered again."""
        self._given_back.append(tag)

    def give_back_rest(self) -> None:
        """Note that everything that is not settled by now is to be delivered again; nothing more is settled then."""
        self._rest_back = True

    def frames(self) -> list[Frame]:
        """Return what to write now, in this order, and take it as written."""
        found = [Frame(tag, back=True) for tag in self._given_back]
        for tag in self._given_back:
            self._written(tag)
        self._given_back.clear()
        while self._stragglers or self._lasts:
            tag = self._run + 1
            if tag in self._stragglers:
                self._stragglers.discard(tag)
                self._run = self._last = tag  # the broker knows this one as unsettled, as `multiple` asks of its tag
            elif tag in self._lasts:
                self._run = self._lasts.pop(tag)
                del self._firsts[self._run]
            else:
                break
        if self._last:
            found.append(Frame(self._last, multiple=True))
            self._last = 0
        if self._stragglers:
            stragglers = sorted(self._stragglers)
            found += map(Frame, stragglers)
            for tag in stragglers:
                self._written(tag)
            self._stragglers.clear()
        if self._rest_back:
            found.append(Frame(0, multiple=True, back=True))  # the last one: it speaks for what stands before it too
            self._rest_back = False
        return found

    def _written(self, tag: int) -> None:
        """Keep `tag` as one that is written, in one stretch with those beside it."""
        first, last = self._firsts.pop(tag - 1, tag), self._lasts.pop(tag + 1, tag)
        self._lasts[first] = last
        self._firsts[last] = first
