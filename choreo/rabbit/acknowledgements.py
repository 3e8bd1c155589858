"""Which acknowledgements to write for deliveries that are done with, in whatever order that happened. Pure.

A run of tags without a gap is one frame with `multiple`, stragglers behind a gap go out singly, so that one slow
delivery never holds up the window. Fewer frames also matter to the broker: a quorum queue that is sent more than 32
settlements at once keeps the rest in the channel, and forgets them if the channel is closed before they are through.
"""

from __future__ import annotations


class Acknowledgements:
    """The delivery tags of one channel, which the broker counts up from 1."""

    def __init__(self) -> None:
        self._waiting: set[int] = set()  # done with, not yet written
        self._settled: set[int] = set()  # written singly, beyond the run
        self._run = 0  # every tag up to this one is settled

    def add(self, tag: int) -> None:
        """Note that the delivery `tag` is done with."""
        self._waiting.add(tag)

    def settled(self, tag: int) -> None:
        """Note that `tag` was settled in another way: given back."""
        self._settled.add(tag)

    def frames(self) -> list[tuple[int, bool]]:
        """Return what to write now, as pairs of tag and `multiple`, and take it as written."""
        last = 0
        while True:
            tag = self._run + 1
            if tag in self._waiting:
                self._waiting.discard(tag)
                last = tag  # the broker knows this one as unsettled, as `multiple` asks of its tag
            elif tag in self._settled:
                self._settled.discard(tag)
            else:
                break
            self._run = tag
        stragglers = sorted(self._waiting)
        self._settled.update(stragglers)
        self._waiting.clear()
        return [*([(last, True)] if last else []), *((tag, False) for tag in stragglers)]
