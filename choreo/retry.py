"""Retry policies: a thin, named front over tenacity's `retry`, `stop` and `wait` objects, which it takes as well.

What differs from tenacity is where the sleep happens: short ones in the process (`immediate`), long ones in the broker,
so that no delivery is held while it waits and a restart forgets nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

import tenacity
from tenacity.retry import retry_base
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from choreo import duration
from choreo.duration import Duration
from choreo.errors import DeclarationError

LONGEST_DELAY: Final = 2**20 - 1  # seconds, about 12 days: what the broker's twenty levels of delay add up to

Exceptions = type[BaseException] | tuple[type[BaseException], ...]


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Retry:
    """When a reaction is tried again, how often and after how long. Immutable.

    `on`: the exceptions that are worth another attempt, or a tenacity `retry_*` object. An exception group, as a
    TaskGroup raises it, is worth one if each exception in it is, however deep (or if `on` names its own class).
    `attempts`: how many in all, the first included. `immediate`: how many of the further attempts happen at once and in
    the process, before the broker's delays begin. `first`, `ceiling`: the first delay and the longest; each delay
    doubles the one before, with up to `first` of jitter on top. The broker's delays are whole seconds, at least one.
    `wait` and `stop` take tenacity objects in place of `first`/`ceiling` and `attempts`; `stop_after_delay` counts from
    the first failure, across restarts. Raises DeclarationError that names the parameter.
    """

    immediate: int
    _retry: retry_base
    _stop: stop_base
    _wait: wait_base
    _text: str

    def __init__(
        self,
        on: Exceptions | retry_base,
        *,
        attempts: int | None = None,
        first: Duration | None = None,
        ceiling: Duration | None = None,
        immediate: int = 0,
        wait: wait_base | None = None,
        stop: stop_base | None = None,
    ) -> None:
        if wait is not None and not (first is None and ceiling is None):
            raise DeclarationError(
                "Retry has both wait= and first= or ceiling=", "give one way to say how long to wait"
            )
        if stop is not None and attempts is not None:
            raise DeclarationError("Retry has both stop= and attempts=", "give one way to say when to stop")
        if type(immediate) is not int or immediate < 0:
            raise DeclarationError(f"Retry has immediate={immediate!r}", "a whole number of attempts from 0")
        tries = 5 if attempts is None else attempts
        if type(tries) is not int or tries < 1:
            raise DeclarationError(
                f"Retry has attempts={attempts!r}", "a whole number of attempts from 1, the first included"
            )
        set_ = object.__setattr__
        set_(self, "immediate", immediate)
        set_(self, "_retry", _condition(on))
        set_(self, "_stop", _instance("stop", stop, stop_base) or tenacity.stop_after_attempt(tries))
        set_(self, "_wait", _instance("wait", wait, wait_base) or _exponential(first, ceiling))
        set_(self, "_text", _describe(on, tries, first, ceiling, immediate, wait, stop))

    def __repr__(self) -> str:
        return f"<Retry {self._text}>"

    def delay(self, error: BaseException, attempt: int, elapsed: float) -> float | None:
        """Return after how many seconds the next attempt is due, or None when there is none.

        `attempt`: attempts made so far, this failed one included. `elapsed`: seconds since the first failure. 0.0 means
        at once, in the process; anything else is a whole number of seconds for the broker.
        """
        state = _state(error, attempt, elapsed)
        if not self._retry(state) or self._stop(state):
            return None
        if attempt <= self.immediate:
            return 0.0
        state.attempt_number = attempt - self.immediate
        return float(min(max(1, round(self._wait(state))), LONGEST_DELAY))

    def names(self, error: BaseException) -> bool:
        """Say whether `error` is one that this policy would try again, however often it has been tried."""
        return self._retry(_state(error, 1, 0.0))

    def describe(self) -> str:
        """Return the policy in a line of words: "BankUnreachable: 5 attempts, 1s doubling to 5m, jittered"."""
        return self._text


class _Each(retry_base):
    """Says what `condition` says of an exception; of a group, whether it says so of each exception in it.

    Not of the group itself: what names exceptions that are not to be tried again would find none in it. A group whose
    class is one of `types` is meant itself.
    """

    def __init__(self, condition: retry_base, types: tuple[type[BaseException], ...] = ()) -> None:
        self._condition = condition
        self._types = types

    def __call__(self, state: tenacity.RetryCallState) -> bool:
        """Ask."""
        assert state.outcome is not None
        error = state.outcome.exception()
        if not isinstance(error, BaseExceptionGroup) or isinstance(error, self._types):
            return self._condition(state)
        elapsed = state.outcome_timestamp or 0.0
        inside = (_state(each, state.attempt_number, elapsed) for each in leaves(error))
        return all(self._condition(each) for each in inside)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions that a group holds, those of the groups in it among them; else `error` itself."""
    rest = [error]
    while rest:
        each = rest.pop()
        if isinstance(each, BaseExceptionGroup):
            rest.extend(reversed(each.exceptions))
        else:
            yield each


def _condition(on: Exceptions | retry_base) -> retry_base:
    if isinstance(on, retry_base):
        return _Each(on)
    types: tuple[Any, ...] = on if isinstance(on, tuple) else (on,)
    if not types or not all(isinstance(each, type) and issubclass(each, BaseException) for each in types):
        raise DeclarationError(
            f"Retry has on={on!r}",
            "an exception class, a tuple of them, or a tenacity retry object such as retry_if_exception_type(...)",
        )
    return _Each(tenacity.retry_if_exception_type(types), types)


def _instance(name: str, value: Any, kind: type[Any]) -> Any:
    if value is not None and not isinstance(value, kind):
        raise DeclarationError(f"Retry has {name}={value!r}", f"a tenacity {name} object, such as tenacity.{name}_...")
    return value


def _exponential(first: Duration | None, ceiling: Duration | None) -> wait_base:
    start, longest = _bounds(first, ceiling)
    if longest < start:
        raise DeclarationError(
            f"Retry has ceiling={ceiling!r}, below its first delay of {duration.text(start)}",
            "the ceiling is the longest delay",
        )
    return tenacity.wait_exponential_jitter(multiplier=start, max=longest, jitter=start)


def _bounds(first: Duration | None, ceiling: Duration | None) -> tuple[float, float]:
    start = _length("first", first, "1s")
    return start, max(start, _length("ceiling", None, "5m")) if ceiling is None else _length("ceiling", ceiling, "5m")


def _length(name: str, value: Duration | None, default: str) -> float:
    try:
        length = duration.seconds(default if value is None else value)
    except ValueError as error:
        raise DeclarationError(f"Retry has {name}={value!r}", str(error)) from None
    if length > LONGEST_DELAY:
        raise DeclarationError(f"Retry has {name}={value!r}", f"the longest delay is {duration.text(LONGEST_DELAY)}")
    return length


def _describe(
    on: Exceptions | retry_base,
    attempts: int,
    first: Duration | None,
    ceiling: Duration | None,
    immediate: int,
    wait: wait_base | None,
    stop: stop_base | None,
) -> str:
    types = on if isinstance(on, tuple) else (on,)
    names = ", ".join(each.__name__ if isinstance(each, type) else type(each).__name__ for each in types)
    tries = f"{attempts} attempts" if stop is None else type(stop).__name__
    at_once = f", {immediate} at once" if immediate else ""
    if wait is not None:
        return f"{names}: {tries}{at_once}, {type(wait).__name__}"
    start, longest = _bounds(first, ceiling)
    return f"{names}: {tries}{at_once}, {duration.text(start)} doubling to {duration.text(longest)}, jittered"


def _state(error: BaseException, attempt: int, elapsed: float) -> tenacity.RetryCallState:
    """Return the state that tenacity's objects read, as it would be after `attempt` attempts in one process."""
    state = tenacity.RetryCallState(_NOBODY, None, (), {})
    outcome: Future[Any] = tenacity.Future(attempt)
    outcome.set_exception(error)
    state.attempt_number = attempt
    state.outcome = outcome  # type: ignore[assignment]
    state.start_time = 0.0
    state.outcome_timestamp = elapsed
    return state


_NOBODY: Final = tenacity.Retrying()  # tenacity wants the object that runs the attempts; here the broker does
