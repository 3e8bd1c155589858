"""From a failure to a decision: what becomes of a delivery whose reaction did not succeed. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from choreo.errors import (
    EnvelopeError,
    NotEmitted,
    PublishFailed,
    PublishRefused,
    UndeclaredEvent,
    UnreadableEvent,
    ValidatorFailed,
)
from choreo.message import Reason
from choreo.reaction import Reaction
from choreo.retry import leaves

# What a reaction emitted but the broker did not confirm is tried again on the same ladder as other failures: seconds
# before each further attempt. After the last, the delivery is dead-lettered rather than tried for ever.
PUBLISH_DELAYS: Final = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class TryNow:
    """Call the reaction again, in this process, without waiting."""


@dataclass(frozen=True, slots=True)
class TryLater:
    """Give the delivery to the broker for `delay` whole seconds, then try again."""

    delay: int


@dataclass(frozen=True, slots=True)
class Otherwise:
    """Emit what the reaction's `otherwise` returns, and settle."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Move the delivery to the agent's dead-letter queue."""

    reason: str


Decision = TryNow | TryLater | Otherwise | DeadLetter


def decide(reaction: Reaction | None, error: BaseException, *, attempt: int, elapsed: float) -> Decision:
    """Return what to do after `error`.

    `reaction` is None when none was reached. `attempt`: tries so far, the failed one included. `elapsed`: seconds since
    the first failure.
    """
    policy = reaction.retry if reaction is not None else None
    if isinstance(error, ValidatorFailed) and error.__cause__ is not None and policy and policy.names(error.__cause__):
        error = error.__cause__  # what it asked was away: the policy counts as if the reaction had asked
    if isinstance(error, EnvelopeError | NotEmitted):
        return DeadLetter(error.reason)
    if isinstance(error, UndeclaredEvent):
        return DeadLetter(Reason.UNDECLARED)
    if isinstance(error, UnreadableEvent):
        return DeadLetter(Reason.UNREADABLE)
    found = list(leaves(error))
    if all(isinstance(each, PublishFailed) for each in found):
        return _unconfirmed(found[-1], attempt)
    if policy is None or not policy.names(error):
        return DeadLetter(Reason.FAILED)
    delay = policy.delay(error, attempt, elapsed)
    if delay is not None:
        return TryLater(int(delay)) if delay else TryNow()
    if reaction is not None and reaction.otherwise is not None:
        return Otherwise()
    return DeadLetter(Reason.EXHAUSTED)


def _unconfirmed(error: BaseException, attempt: int) -> Decision:
    if attempt <= len(PUBLISH_DELAYS):
        return TryLater(PUBLISH_DELAYS[attempt - 1])
    return DeadLetter(Reason.UNROUTABLE if isinstance(error, PublishRefused) else Reason.REFUSED)
