"""What to write for deliveries that are settled, in whatever order that happened. Pure.

A run of acknowledged tags without a gap is one frame with `multiple`, stragglers behind a gap go out singly: one slow
delivery never holds up the window. Fewer frames also matter to the broker: a quorum queue that is sent more than 32
settlements at once keeps the rest in the channel, and forgets them if the channel is closed before they are through.
"""

from __future__ import annotations

from typing import NamedTuple


class Frame(NamedTuple):
    """One basic.ack, or one basic.nack with requeue when `back` is set."""

    tag: int
    multiple: bool = False
    back: bool = False


class Settlements:
    """The delivery tags of one channel, which the broker counts up from 1.

    There must be one writer: a frame with `multiple` speaks for every tag below its own, so what was given back has to
    be written before it.
    """

    def __init__(self) -> None:
        self._run = 0  # every tag up to this one is settled, or about to be by `_last`
        self._last = 0  # the highest acknowledged tag of the run, 0 when it has been written
        self._stragglers: set[int] = set()  # acknowledged behind a gap, not yet written
        self._given_back: list[int] = []  # not yet written
        self._settled: set[int] = set()  # written, beyond the run

    def acknowledge(self, tag: int) -> None:
        """Note that the delivery `tag` is done with."""
        if tag == self._run + 1:
            self._run = self._last = tag
        else:
            self._stragglers.add(tag)

    def give_back(self, tag: int) -> None:
        """Note that the delivery `tag` is to be delivered again."""
        self._given_back.append(tag)

    def frames(self) -> list[Frame]:
        """Return what to write now, in this order, and take it as written."""
        found = [Frame(tag, back=True) for tag in self._given_back]
        if self._given_back:
            self._settled.update(self._given_back)
            self._given_back.clear()
        while self._stragglers or self._settled:
            tag = self._run + 1
            if tag in self._stragglers:
                self._stragglers.discard(tag)
                self._last = tag  # the broker knows this one as unsettled, as `multiple` asks of its tag
            elif tag in self._settled:
                self._settled.discard(tag)
            else:
                break
            self._run = tag
        if self._last:
            found.append(Frame(self._last, multiple=True))
            self._last = 0
        if self._stragglers:
            found += map(Frame, sorted(self._stragglers))
            self._settled |= self._stragglers
            self._stragglers.clear()
        return found
