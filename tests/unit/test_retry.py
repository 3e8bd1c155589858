"""Retry policies: which failures are tried again, how often, and when."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from math import ceil, floor
from typing import Any

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from choreo.errors import DeclarationError
from choreo.retry import LONGEST_DELAY, Retry


class Unreachable(Exception):
    """What the policies of this file are for."""


class Refused(Unreachable):
    """A kind of Unreachable."""


@given(
    first=st.floats(min_value=0, max_value=1000),
    longer=st.floats(min_value=0, max_value=100_000),
    attempt=st.integers(min_value=1, max_value=60),
)
def test_delays_double_up_to_the_ceiling(first: float, longer: float, attempt: int) -> None:
    """Each delay doubles the one before, plus up to `first` of jitter, in whole seconds from 1 to the ceiling."""
    ceiling = first + longer
    delay = Retry(on=Unreachable, attempts=100, first=first, ceiling=ceiling).delay(Unreachable(), attempt, 0)
    least = min(first * 2 ** (attempt - 1), ceiling)
    most = min(first * 2 ** (attempt - 1) + first, ceiling)
    assert delay is not None
    assert delay == int(delay)
    assert max(1, floor(least)) <= delay <= max(1, ceil(most))


def test_attempts_count_every_try_the_first_included() -> None:
    """With three attempts there are delays after the first and the second try, and none after the third."""
    policy = Retry(on=Unreachable, attempts=3)
    assert [policy.delay(Unreachable(), attempt, 0) is None for attempt in (1, 2, 3, 4)] == [
        False,
        False,
        True,
        True,
    ]


def test_five_attempts_unless_told_otherwise() -> None:
    """The default is five tries in all."""
    policy = Retry(on=Unreachable)
    assert policy.delay(Unreachable(), 4, 0) is not None
    assert policy.delay(Unreachable(), 5, 0) is None


def test_only_named_exceptions_are_tried_again() -> None:
    """A subclass of a named exception is named too; anything else is final at once."""
    policy = Retry(on=(Unreachable, TimeoutError))
    assert policy.names(Refused())
    assert policy.names(TimeoutError())
    assert not policy.names(ValueError())
    assert policy.delay(ValueError(), 1, 0) is None


def test_an_exception_stays_named_when_its_tries_are_used_up() -> None:
    """That a policy names an error says nothing about how often it was tried."""
    assert Retry(on=Unreachable, attempts=1).names(Unreachable())


def test_immediate_tries_come_first_and_in_the_process() -> None:
    """Two immediate tries have the delay 0.0; the delays of the broker then begin with the first one."""
    policy = Retry(on=Unreachable, attempts=5, immediate=2, wait=tenacity.wait_incrementing(10, 10))
    assert [policy.delay(Unreachable(), attempt, 0) for attempt in (1, 2, 3, 4, 5)] == [0.0, 0.0, 10, 20, None]


def test_tenacity_objects_decide_on_retry_wait_and_stop() -> None:
    """A tenacity `retry_*`, `wait_*` and `stop_*` object are used as they are."""
    policy = Retry(
        on=tenacity.retry_if_exception_message(match="busy"),
        wait=tenacity.wait_fixed(7),
        stop=tenacity.stop_after_attempt(2),
    )
    assert policy.delay(Unreachable("busy"), 1, 0) == 7
    assert policy.delay(Unreachable("busy"), 2, 0) is None
    assert policy.delay(Unreachable("gone"), 1, 0) is None


def test_stop_after_delay_counts_from_the_first_failure() -> None:
    """The time since the first failure counts, not the time in this process."""
    policy = Retry(on=Unreachable, stop=tenacity.stop_after_delay(60))
    assert policy.delay(Unreachable(), 9, 59) is not None
    assert policy.delay(Unreachable(), 2, 60) is None


def test_a_wait_that_reads_the_error_gets_it() -> None:
    """tenacity's wait_exception sees the exception, for a Retry-After for example."""
    policy = Retry(on=Unreachable, wait=tenacity.wait_exception(lambda error: float(str(error))))
    assert policy.delay(Unreachable("42"), 1, 0) == 42


@pytest.mark.parametrize(("wait", "expected"), [(0, 1), (0.2, 1), (2.6, 3), (10**9, LONGEST_DELAY)])
def test_a_delay_is_one_that_the_broker_has(wait: float, expected: int) -> None:
    """Whatever a wait object says, the delay is a whole number of seconds that the ladder of delays can make."""
    assert Retry(on=Unreachable, wait=tenacity.wait_fixed(wait)).delay(Unreachable(), 1, 0) == expected


def test_the_longest_delay_is_what_the_ladder_adds_up_to() -> None:
    """Twenty levels of 2^n seconds; a policy may go as far."""
    assert sum(2**level for level in range(20)) == LONGEST_DELAY
    policy = Retry(on=Unreachable, first=LONGEST_DELAY, ceiling=LONGEST_DELAY)
    assert policy.delay(Unreachable(), 1, 0) == LONGEST_DELAY


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Retry(on=Unreachable), "Unreachable: 5 attempts, 1s doubling to 5m, jittered"),
        (
            Retry(on=(Unreachable, TimeoutError), attempts=3, first="500ms", ceiling="1m", immediate=1),
            "Unreachable, TimeoutError: 3 attempts, 1 at once, 500ms doubling to 1m, jittered",
        ),
        (
            Retry(
                on=tenacity.retry_if_exception_message(match="busy"),
                wait=tenacity.wait_fixed(7),
                stop=tenacity.stop_after_delay(60),
            ),
            "retry_if_exception_message: stop_after_delay, wait_fixed",
        ),
    ],
)
def test_a_policy_says_in_a_line_what_it_does(policy: Retry, expected: str) -> None:
    """`describe` is what `choreo graph` and `choreo inspect` show."""
    assert policy.describe() == expected
    assert expected in repr(policy)


def test_a_policy_does_not_change() -> None:
    """A policy is shared between reactions and therefore frozen."""
    with pytest.raises(FrozenInstanceError):
        Retry(on=Unreachable).immediate = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "named", "mend"),
    [
        ({"on": "Unreachable"}, "on='Unreachable'", "an exception class, a tuple of them"),
        ({"on": ()}, "on=()", "an exception class"),
        ({"on": (Unreachable, int)}, "on=(", "an exception class"),
        ({"attempts": 0}, "attempts=0", "from 1"),
        ({"attempts": 2.5}, "attempts=2.5", "a whole number"),
        ({"attempts": True}, "attempts=True", "a whole number"),
        ({"immediate": -1}, "immediate=-1", "from 0"),
        ({"first": "soon"}, "first='soon'", "500ms, 30s"),
        ({"first": "-1s"}, "first='-1s'", "500ms, 30s"),
        ({"ceiling": "20d"}, "ceiling='20d'", "the longest delay is 12d"),
        ({"first": "2m", "ceiling": "1m"}, "ceiling='1m'", "the longest delay"),
        ({"wait": 5}, "wait=5", "tenacity.wait_"),
        ({"stop": 5}, "stop=5", "tenacity.stop_"),
        ({"wait": tenacity.wait_fixed(1), "first": "1s"}, "both wait= and first=", "one way"),
        ({"stop": tenacity.stop_never, "attempts": 3}, "both stop= and attempts=", "one way"),
    ],
)
def test_a_wrong_policy_is_refused_by_the_parameter(arguments: dict[str, Any], named: str, mend: str) -> None:
    """The error names the parameter, shows its value and says what it takes."""
    with pytest.raises(DeclarationError) as caught:
        Retry(**{"on": Unreachable} | arguments)
    assert named in caught.value.message
    assert mend in caught.value.way_out


def group(*errors: BaseException) -> BaseException:
    return BaseExceptionGroup("unhandled errors in a TaskGroup", errors)


@pytest.mark.parametrize(
    ("on", "error", "named"),
    [
        (OSError, group(OSError()), True),
        (OSError, group(ConnectionError(), TimeoutError()), True),
        (OSError, group(group(OSError()), group(group(OSError()), ConnectionError())), True),
        (OSError, group(OSError(), ValueError()), False),
        (OSError, group(group(OSError()), group(group(OSError(), ValueError()))), False),
        ((OSError, ValueError), group(OSError(), group(ValueError())), True),
        (Exception, group(OSError(), ValueError()), True),
        (Exception, group(OSError(), SystemExit()), False),
        (BaseException, group(OSError(), SystemExit()), True),
        (ExceptionGroup, group(OSError(), ValueError()), True),
        (ExceptionGroup, group(OSError(), SystemExit()), False),
        (tenacity.retry_if_exception_type(OSError), group(OSError(), group(OSError())), True),
        (tenacity.retry_if_exception_type(OSError), group(OSError(), ValueError()), False),
        (tenacity.retry_if_not_exception_type(ValueError), group(OSError()), True),
        (tenacity.retry_if_not_exception_type(ValueError), group(OSError(), ValueError()), False),
        (tenacity.retry_if_exception_message(match="busy"), group(OSError("busy"), OSError("busy too")), True),
        (tenacity.retry_if_exception_message(match="busy"), group(OSError("busy"), OSError("gone")), False),
        (tenacity.retry_if_exception(lambda error: len(error.args) == 1), group(OSError(1), OSError(2)), True),
    ],
)
def test_a_group_is_tried_again_if_all_that_is_in_it_is(on: Any, error: BaseException, named: bool) -> None:
    """However deep; one exception that nobody named is enough against it."""
    policy = Retry(on=on, attempts=3, immediate=1)
    assert policy.names(error) is named
    assert (policy.delay(error, 1, 0) == 0.0) is named
    assert (policy.delay(error, 2, 0) is not None) is named
    assert policy.delay(error, 3, 0) is None


nested: st.SearchStrategy[BaseException] = st.recursive(
    st.sampled_from([OSError, ValueError, KeyError, SystemExit]).map(lambda kind: kind()),
    lambda inner: st.lists(inner, min_size=1, max_size=4).map(lambda errors: group(*errors)),
    max_leaves=20,
)


@given(nested, st.sets(st.sampled_from([OSError, ValueError, KeyError, SystemExit]), min_size=1))
def test_a_group_is_named_as_its_flat_list_is(error: BaseException, kinds: set[type[BaseException]]) -> None:
    """Whatever its shape."""

    def flat(error: BaseException) -> list[BaseException]:
        if not isinstance(error, BaseExceptionGroup):
            return [error]
        return [leaf for each in error.exceptions for leaf in flat(each)]

    assert Retry(on=tuple(kinds)).names(error) is all(isinstance(each, tuple(kinds)) for each in flat(error))
