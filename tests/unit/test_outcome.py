"""From a failure to a decision, case by case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tenacity

from choreo.agent import Agent
from choreo.errors import (
    EnvelopeError,
    NotEmitted,
    PublishFailed,
    PublishRefused,
    PublishUnknown,
    ReactionTimeout,
    UndeclaredEvent,
    ValidatorFailed,
)
from choreo.event import Event
from choreo.message import Reason
from choreo.outcome import PUBLISH_DELAYS, DeadLetter, Decision, Otherwise, TryLater, TryNow, decide
from choreo.reaction import Reaction
from choreo.retry import LONGEST_DELAY, Retry


class Placed(Event, topic="test-outcome.placed"):
    pass


class Declined(Event, topic="test-outcome.declined"):
    pass


class Unreachable(Exception):
    """What the policies below name."""


def charge(placed: Placed) -> None:
    raise NotImplementedError


def declined(placed: Placed, error: Exception) -> Declined:
    raise NotImplementedError


def reaction(retry: Retry | None, otherwise: Callable[..., Any] | None = None) -> Reaction:
    agent = Agent("payment")
    agent.on(retry=retry, otherwise=otherwise)(charge)
    return agent.reactions[0]


FIXED = tenacity.wait_fixed(3)
THRICE = Retry(on=Unreachable, attempts=3, wait=FIXED)
AT_ONCE = Retry(on=Unreachable, attempts=4, immediate=2, wait=FIXED)
ONLY_AT_ONCE = Retry(on=Unreachable, attempts=3, immediate=5, wait=FIXED)
A_MINUTE = Retry(on=Unreachable, wait=FIXED, stop=tenacity.stop_after_delay(60))
EVERYTHING = Retry(on=BaseException, attempts=3, wait=FIXED)

FAILED = DeadLetter(Reason.FAILED)
EXHAUSTED = DeadLetter(Reason.EXHAUSTED)
FAILURE = Unreachable("no answer")


def validator_failed(cause: Exception) -> ValidatorFailed:
    """Return what reading an event comes to whose validator raised `cause`."""
    error = ValidatorFailed(Reason.INVALID, "no")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("policy", "error", "attempt", "decision"),
    [
        # no policy: a failure is final
        (None, ValueError("no"), 1, FAILED),
        (None, FAILURE, 1, FAILED),
        (None, SystemExit(1), 1, FAILED),
        # an exception that the policy does not name is final too, at whatever attempt
        (THRICE, ValueError("no"), 1, FAILED),
        (THRICE, ValueError("no"), 3, FAILED),
        (THRICE, ReactionTimeout("late"), 1, FAILED),
        (Retry(on=TimeoutError, wait=FIXED), ReactionTimeout("late"), 1, TryLater(3)),
        # one that it names goes to the broker until its tries are used up, the first one included
        (THRICE, FAILURE, 1, TryLater(3)),
        (THRICE, FAILURE, 2, TryLater(3)),
        (THRICE, FAILURE, 3, EXHAUSTED),
        (THRICE, FAILURE, 4, EXHAUSTED),
        (Retry(on=Unreachable, attempts=1), FAILURE, 1, EXHAUSTED),
        # immediate tries come first, and count
        (AT_ONCE, FAILURE, 1, TryNow()),
        (AT_ONCE, FAILURE, 2, TryNow()),
        (AT_ONCE, FAILURE, 3, TryLater(3)),
        (AT_ONCE, FAILURE, 4, EXHAUSTED),
        (ONLY_AT_ONCE, FAILURE, 2, TryNow()),
        (ONLY_AT_ONCE, FAILURE, 3, EXHAUSTED),
        # what the user may name, and choreo decides all the same: no retry mends it
        (EVERYTHING, EnvelopeError(Reason.INVALID, "no"), 1, DeadLetter(Reason.INVALID)),
        (EVERYTHING, EnvelopeError(Reason.LOOP, "no"), 1, DeadLetter(Reason.LOOP)),
        # what a validator raises besides a ValueError counts as the reaction's, where the policy names it
        (THRICE, validator_failed(FAILURE), 1, TryLater(3)),
        (THRICE, validator_failed(FAILURE), 3, EXHAUSTED),
        (THRICE, validator_failed(KeyError("no")), 1, DeadLetter(Reason.INVALID)),
        (None, validator_failed(FAILURE), 1, DeadLetter(Reason.INVALID)),
        (EVERYTHING, NotEmitted(Reason.TOO_LARGE, "no"), 1, DeadLetter(Reason.TOO_LARGE)),
        (EVERYTHING, UndeclaredEvent("no"), 1, DeadLetter(Reason.UNDECLARED)),
        (EVERYTHING, SystemExit(1), 1, TryLater(3)),
        # what was not confirmed has a ladder of its own, with or without a policy
        (None, PublishUnknown("?"), 1, TryLater(PUBLISH_DELAYS[0])),
        (THRICE, PublishRefused("no"), 3, TryLater(PUBLISH_DELAYS[2])),
        (None, PublishRefused("no"), len(PUBLISH_DELAYS), TryLater(PUBLISH_DELAYS[-1])),
        (None, PublishRefused("no"), len(PUBLISH_DELAYS) + 1, DeadLetter(Reason.UNROUTABLE)),
        (None, PublishUnknown("?"), len(PUBLISH_DELAYS) + 1, DeadLetter(Reason.REFUSED)),
        (None, PublishFailed("?"), 1_000, DeadLetter(Reason.REFUSED)),
    ],
)
def test_decision(policy: Retry | None, error: BaseException, attempt: int, decision: Decision) -> None:
    """One kind of failure at one attempt leads to one decision."""
    assert decide(reaction(policy), error, attempt=attempt, elapsed=0.0) == decision


@pytest.mark.parametrize(
    ("error", "attempt", "decision"),
    [
        (FAILURE, 2, TryLater(3)),
        (FAILURE, 3, Otherwise()),
        (FAILURE, 9, Otherwise()),
        (ValueError("no"), 3, FAILED),  # the last word is for the failures that the policy names
        (EnvelopeError(Reason.INVALID, "no"), 3, DeadLetter(Reason.INVALID)),
        (UndeclaredEvent("no"), 3, DeadLetter(Reason.UNDECLARED)),
        (PublishRefused("no"), 9, DeadLetter(Reason.UNROUTABLE)),
    ],
)
def test_otherwise_speaks_when_all_tries_have_failed(error: BaseException, attempt: int, decision: Decision) -> None:
    """`otherwise` takes the place of the dead letter only for a named failure whose tries are used up."""
    assert decide(reaction(THRICE, declined), error, attempt=attempt, elapsed=0.0) == decision


@pytest.mark.parametrize(
    ("error", "decision"),
    [
        (EnvelopeError(Reason.UNEXPECTED, "no"), DeadLetter(Reason.UNEXPECTED)),
        (EnvelopeError(Reason.TOO_LARGE, "no"), DeadLetter(Reason.TOO_LARGE)),
        (RuntimeError("a defect"), FAILED),
    ],
)
def test_failure_before_a_reaction_was_reached(error: Exception, decision: Decision) -> None:
    """Without a reaction there is no policy, and still a decision."""
    assert decide(None, error, attempt=1, elapsed=0.0) == decision


def test_time_since_the_first_failure_ends_the_tries() -> None:
    """tenacity's stop_after_delay counts from the first failure, however many tries that were."""
    assert decide(reaction(A_MINUTE), FAILURE, attempt=40, elapsed=59.0) == TryLater(3)
    assert decide(reaction(A_MINUTE), FAILURE, attempt=2, elapsed=61.0) == EXHAUSTED


def test_delays_double_up_to_the_ceiling_and_are_whole_seconds_of_the_ladder() -> None:
    """Retry's own waits are jittered by at most `first`, and never longer than the broker's ladder."""
    doubling = reaction(Retry(on=Unreachable, attempts=99, first="1s", ceiling="20s"))
    for attempt, (least, most) in enumerate([(1, 2), (2, 3), (4, 5), (8, 9), (16, 17), (20, 20), (20, 20)], 1):
        decision = decide(doubling, FAILURE, attempt=attempt, elapsed=0.0)
        assert isinstance(decision, TryLater)
        assert type(decision.delay) is int
        assert least <= decision.delay <= most
    years = reaction(Retry(on=Unreachable, wait=tenacity.wait_fixed(10**9)))
    assert decide(years, FAILURE, attempt=1, elapsed=0.0) == TryLater(LONGEST_DELAY)


def test_what_was_not_confirmed_is_tried_for_four_minutes() -> None:
    """The delays of unconfirmed events fit the ladder and double: a listener that comes back late finds them."""
    assert tuple(2**n for n in range(8)) == PUBLISH_DELAYS


def test_a_group_is_decided_on_by_what_is_in_it() -> None:
    """A TaskGroup's error is retried, given up and taken for an unconfirmed publish as the exception in it is."""
    payment = reaction(Retry(on=Unreachable, attempts=2), otherwise=declined)
    unreachable, mixed = ExceptionGroup("g", [Unreachable()]), ExceptionGroup("g", [Unreachable(), KeyError()])
    assert isinstance(decide(payment, unreachable, attempt=1, elapsed=0), TryLater)
    assert decide(payment, unreachable, attempt=2, elapsed=0) == Otherwise()
    assert decide(payment, mixed, attempt=1, elapsed=0) == DeadLetter(Reason.FAILED)
    unconfirmed = ExceptionGroup("g", [PublishUnknown("no answer"), ExceptionGroup("h", [PublishUnknown("none")])])
    assert decide(payment, unconfirmed, attempt=1, elapsed=0) == TryLater(PUBLISH_DELAYS[0])
