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
        self._acknowledged: set[int] = set()  # not yet written
        self._given_back: list[int] = []  # not yet written
        self._settled: set[int] = set()  # written, beyond the run
        self._run = 0  # every tag up to this one is settled

    def acknowledge(self, tag: int) -> None:
        """Note that the delivery `tag` is done with."""
        self._acknowledged.add(tag)

    def give_back(self, tag: int) -> None:
        """Note that the delivery `tag` is to be delivered again."""
        self._given_back.append(tag)

    def frames(self) -> list[Frame]:
        """Return what to write now, in this order, and take it as written."""
        back = [Frame(tag, back=True) for tag in self._given_back]
        self._settled.update(self._given_back)
        self._given_back.clear()
        last = 0
        while True:
            tag = self._run + 1
            if tag in self._acknowledged:
                self._acknowledged.discard(tag)
                last = tag  # the broker knows this one as unsettled, as `multiple` asks of its tag
            elif tag in self._settled:
                self._settled.discard(tag)
            else:
                break
            self._run = tag
        stragglers = sorted(self._acknowledged)
        self._settled.update(stragglers)
        self._acknowledged.clear()
        return [*back, *([Frame(last, multiple=True)] if last else []), *map(Frame, stragglers)]
