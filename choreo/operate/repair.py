"""What became of a replay or a drop of dead letters, and what of it is an error."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from choreo.errors import ChoreoError, PartlyDone, PublishFailed, UsageError

INCOMPLETE: Final = "choreo dlq replay --without-headers sends the events without them, with what was kept of them"


@dataclass(frozen=True, slots=True)
class Failure:
    """A letter that could not be replayed and is still there, and why. `ours`: not the broker but choreo refused it."""

    id: str | None
    topic: str
    reason: str
    ours: bool = False

    def __str__(self) -> str:
        return f"{self.id or 'one without an id'} ({self.topic}): {self.reason}"


@dataclass(slots=True)
class Repair:
    """What became of a replay or a drop. `wanted`: letters to do; `missing`: ids that were not found.

    `ended`: what ended it early. Letters that are not `done` are still there. `again`: those that were replayed and had
    died once more when the replay ended, with the error of each.
    """

    wanted: int
    done: int = 0
    failures: list[Failure] = field(default_factory=list)
    missing: tuple[str, ...] = ()
    ended: ChoreoError | None = None
    again: list[Failure] = field(default_factory=list)
    aside: Counter[str] = field(default_factory=Counter)  # how many were replayed without what stands aside on them
    replayed: dict[str | None, datetime | None] = field(default_factory=dict)  # ids, each with when it had failed

    def data(self) -> dict[str, Any]:
        """Return it as a program wants to read it."""
        return {
            "done": self.done,
            "not_done": self.wanted - self.done,
            "failures": [{"id": each.id, "topic": each.topic, "reason": each.reason} for each in self.failures],
            "missing": list(self.missing),
            "set_aside": dict(self.aside),
            "died_again": [{"id": each.id, "topic": each.topic, "reason": each.reason} for each in self.again],
        }

    def check(self, done: str) -> None:
        """Raise unless all is `done` ("replayed"): PartlyDone, or the cause when nothing was."""
        if self.done == self.wanted and self.ended is None:
            if self.again:
                raise PartlyDone(
                    f"{len(self.again)} of {self.done} {done} died again at once: {self.again[0]}",
                    "they are dead letters again; fix what fails, start the agent anew, then replay them",
                )
            return
        reasons = [*map(str, self.failures), *(f"{each}: no such dead letter was found" for each in self.missing)]
        if self.ended is not None:
            reasons.append(self.ended.message)
        why = "; ".join(reasons) or "another consumer holds them"
        if self.done:
            rest = "the rest is" if self.done < self.wanted else "the last ones may be"
            text = f"{self.done} of {self.wanted} {done}, {rest} still there: {why}"
            rest = INCOMPLETE if any(each.ours for each in self.failures) else "choreo dlq list shows the rest"
            raise PartlyDone(text, f"what is done stays done; {rest}")
        if self.failures and all(each.ours for each in self.failures):
            raise PublishFailed(f"nothing {done}: {why}", INCOMPLETE)
        if self.failures:
            raise PublishFailed(f"nothing {done}: {why}", "everything is still there; look at choreo inspect queues")
        if self.ended is not None:
            raise self.ended
        if self.missing:
            raise UsageError(why, "choreo dlq list shows which there are")
        raise ChoreoError(f"nothing {done}: {why}", "retry when nothing else reads this queue")
