"""Agents: named participants. Each owns one queue, one dead-letter queue and any number of reactions."""

from __future__ import annotations

import copy
import inspect
import re
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, TypeVar, overload

from choreo import duration, pattern
from choreo.duration import Duration
from choreo.errors import DeclarationError
from choreo.event import MAX_TOPIC, Event, declaration
from choreo.reaction import (
    Context,
    Declare,
    Given,
    Reaction,
    Resources,
    Taken,
    place,
    read_contract,
    read_otherwise,
    relative,
)
from choreo.retry import Retry

NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
RESERVED: Final = frozenset(("journal", "unclaimed"))  # queues of choreo's own would have these names
DEFAULT_TIMEOUT: Final = 30.0  # seconds
# A broker closes the channel of a consumer that holds a delivery longer than its consumer_timeout, 30 minutes unless
# set otherwise; the deadline of a reaction stays well below.
LONGEST_TIMEOUT: Final = 20 * 60.0  # seconds
DEFAULT_MAX_HOPS: Final = 64
DEFAULT_MAX_TREE: Final = 100_000
DEFAULT_MAX_RETURNS: Final = 100_000

Failure = TypeVar("Failure", bound=BaseException)
Lifespan = Callable[[], AbstractAsyncContextManager[Any]]


class Agent:
    """A participant of the choreography: ``agent = Agent("payment")``.

    `retry`: the policy of reactions that name none; without one, a failure is final. `timeout`: how long a reaction may
    run, at most 20 minutes. `lifespan`: a function that returns an async context manager, entered once per process;
    what it yields is `Context.resources`. `max_hops`: an event further than this from the one that began its
    transaction is dead-lettered as a loop. `max_tree`: so many events may follow from one at the same distance; a
    reaction that would emit more is dead-lettered as an event cycle that multiplies its events. `max_returns`: so many
    events of one correlation that came without hops, as from participants that keep no headers, may be followed by
    others within an hour in one process; the next one is dead-lettered as a loop. Raises DeclarationError.
    """

    def __init__(
        self,
        name: str,
        *,
        retry: Retry | None = None,
        timeout: Duration = DEFAULT_TIMEOUT,
        lifespan: Lifespan | None = None,
        max_hops: int = DEFAULT_MAX_HOPS,
        max_tree: int = DEFAULT_MAX_TREE,
        max_returns: int = DEFAULT_MAX_RETURNS,
    ) -> None:
        if not NAME.fullmatch(str(name)) or name in RESERVED:
            raise DeclarationError(
                f"an agent is named {name!r}",
                'a name begins with a lower-case letter and has up to 63 of a-z, 0-9, "_" and "-"; '
                f"{' and '.join(sorted(RESERVED))} are choreo's own",
            )
        caller = sys._getframe(1)  # noqa: SLF001 - where the agent is declared is part of what it is
        self.name = name
        self.retry = _policy(retry, f"agent {name}")
        self.timeout = _deadline(timeout, f"agent {name}")
        self.max_hops = _bound("max_hops", max_hops, 1_000_000, f"agent {name}")
        self.max_tree = _bound("max_tree", max_tree, 1_000_000_000, f"agent {name}")
        self.max_returns = _bound("max_returns", max_returns, 1_000_000_000, f"agent {name}")
        self.lifespan = None if lifespan is None else usable(lifespan, f"agent {name}")
        self.description = (caller.f_globals.get("__doc__") or "").strip().partition("\n")[0]
        self.where = f"{relative(caller.f_code.co_filename)}:{caller.f_lineno}"
        self._reactions: dict[str, Reaction] = {}
        self._by_topic: dict[str, Reaction] = {}

    def __repr__(self) -> str:
        return f"<Agent {self.name}: {', '.join(self._reactions) or 'no reactions'}>"

    @property
    def reactions(self) -> tuple[Reaction, ...]:
        """All reactions, in the order of their declaration."""
        return tuple(self._reactions.values())

    @property
    def patterns(self) -> tuple[str, ...]:
        """The binding keys of this agent's queue, sorted."""
        return tuple(sorted({each for reaction in self.reactions for each in reaction.patterns}))

    def reaction_to(self, topic: str) -> Reaction | None:
        """Return the one reaction to an event with `topic`, or None when the agent has none."""
        found = self._by_topic.get(topic)
        if found is not None:
            return found
        for reaction in self._reactions.values():
            if any(pattern.is_wildcard(each) and pattern.matches(each, topic) for each in reaction.patterns):
                return reaction
        return None

    def rewired(self, change: Callable[[Reaction], Reaction], lifespan: Lifespan | None) -> Agent:
        """Return this agent, with `lifespan` and with each reaction as `change` makes it. This one stays as it is.

        Whoever watches what an agent does, or replaces what it works with, needs no more than that.
        """
        other = copy.copy(self)
        other.lifespan = lifespan
        other._reactions = {reaction.name: change(reaction) for reaction in self.reactions}  # noqa: SLF001 - our own kind
        other._by_topic = {topic: other._reactions[each.name] for topic, each in self._by_topic.items()}  # noqa: SLF001
        return other

    @overload
    def on(self, function: Callable[[Taken], Given], /) -> Callable[[Taken], Given]: ...

    @overload
    def on(
        self, function: Callable[[Taken, Context[Resources]], Given], /
    ) -> Callable[[Taken, Context[Resources]], Given]: ...

    @overload
    def on(
        self,
        subscription: str | None = None,
        /,
        *,
        retry: Retry | None = None,
        otherwise: Callable[[Taken, Failure], Given] | None = None,
        compensates: Callable[..., Any] | str | None = None,
        timeout: Duration | None = None,
        max_hops: int | None = None,
        max_tree: int | None = None,
    ) -> Declare: ...

    def on(
        self,
        target: Callable[..., Any] | str | None = None,
        /,
        *,
        retry: Retry | None = None,
        otherwise: Callable[..., Any] | None = None,
        compensates: Callable[..., Any] | str | None = None,
        timeout: Duration | None = None,
        max_hops: int | None = None,
        max_tree: int | None = None,
    ) -> Any:
        """Declare a reaction; the decorated function is returned unchanged.

        `@agent.on`, or `@agent.on(...)` with options: `retry` in place of the agent's policy; `otherwise`, a function
        of the event and the exception whose event is emitted when all attempts have failed, in place of a dead letter;
        `compensates`, the reaction of this agent whose effect this one undoes; `timeout`; `max_hops`, the bound of a
        loop that goes through this reaction on purpose, and `max_tree`, that of the events that fan out of it.
        `@agent.on("order.#")` subscribes to a pattern; the parameter is then an Envelope, or a union of events. Raises
        DeclarationError that names the function and says how to fix it.
        """
        names = sys._getframe(1).f_locals  # noqa: SLF001 - annotations may name events of the surrounding function

        def declare(function: Callable[..., Any]) -> Callable[..., Any]:
            what = f"reaction {getattr(function, '__name__', function)!r} of agent {self.name}"
            contract = read_contract(function, what, names)
            policy = _policy(retry, what) or self.retry
            if otherwise is not None and policy is None:
                raise DeclarationError(
                    f"{what} has otherwise= but no retry policy, so it would never be called",
                    "say which exceptions it is for: retry=Retry(on=SomeError, attempts=1)",
                )
            reaction = Reaction(
                agent=self.name,
                name=function.__name__,
                function=function,
                consumes={declaration(each).topic: each for each in contract.consumes},
                patterns=_subscriptions(target if isinstance(target, str) else None, contract.consumes, what),
                emits=contract.emits,
                takes_context=contract.takes_context,
                in_thread=contract.in_thread,
                retry=policy,
                otherwise=otherwise,
                otherwise_emits=read_otherwise(otherwise, contract.consumes, what, names) if otherwise else (),
                compensates=self._compensated(compensates, what),
                timeout=self.timeout if timeout is None else _deadline(timeout, what),
                max_hops=None if max_hops is None else _bound("max_hops", max_hops, 1_000_000, what),
                max_tree=None if max_tree is None else _bound("max_tree", max_tree, 1_000_000_000, what),
                where=place(function),
            )
            self._add(reaction, what)
            return function

        if target is None or isinstance(target, str):
            return declare
        return declare(target)

    def _add(self, reaction: Reaction, what: str) -> None:
        if reaction.name in self._reactions:
            other = self._reactions[reaction.name]
            raise DeclarationError(
                f"{what} at {reaction.where} has the name of the one at {other.where}",
                "give it another name: ids of emitted events are derived from it",
            )
        for other in self._reactions.values():
            for mine in reaction.patterns:
                for theirs in other.patterns:
                    if pattern.overlap(mine, theirs):
                        raise DeclarationError(
                            f"{what} takes {mine}, which {other.name!r} ({other.where}) takes already as {theirs}",
                            "one agent reacts once to one event: put both into one function, or use two agents",
                        )
        self._reactions[reaction.name] = reaction
        self._by_topic.update(
            dict.fromkeys((each for each in reaction.patterns if not pattern.is_wildcard(each)), reaction)
        )

    def _compensated(self, target: Callable[..., Any] | str | None, what: str) -> str | None:
        if target is None:
            return None
        name = target if isinstance(target, str) else getattr(target, "__name__", repr(target))
        if name not in self._reactions:
            raise DeclarationError(
                f"{what} compensates {name!r}, which is not a reaction of this agent declared above it",
                f"one of: {', '.join(self._reactions) or 'none so far'}",
            )
        return name


def _subscriptions(subscription: str | None, consumes: tuple[type[Event], ...], what: str) -> tuple[str, ...]:
    topics = tuple(declaration(each).topic for each in consumes)
    if subscription is None:
        if not topics:
            raise DeclarationError(f"{what} takes an Envelope of no named topics", 'name them: @agent.on("order.#")')
        return topics
    if not pattern.PATTERN.fullmatch(subscription) or len(subscription) > MAX_TOPIC:
        raise DeclarationError(
            f"{what} subscribes to {subscription!r}",
            'a pattern is dot-separated words, "*" (one word) or "#" (any words)',
        )
    stray = next((topic for topic in topics if not pattern.matches(subscription, topic)), None)
    if stray is not None:
        raise DeclarationError(f"{what} takes {stray}, which {subscription!r} does not match", "widen the pattern")
    if not topics and not pattern.is_bindable(subscription):
        raise DeclarationError(
            f'{what} subscribes to {subscription!r}, and RabbitMQ takes at most {pattern.MOST_OF_ANY} words "#"',
            'write "*" where exactly one word stands, or subscribe with several reactions',
        )
    # With events named, their own topics are enough: what else the pattern matches would be a dead letter here.
    return topics or (subscription,)


def usable(lifespan: Lifespan, what: str) -> Lifespan:
    """Return `lifespan`. Raises DeclarationError for what is not a function that returns an async context manager."""
    given: Any = lifespan
    inner = inspect.unwrap(given) if callable(given) else given
    where = f" ({place(inner)})" if inspect.isfunction(inner) else ""
    found = f"{what}: its lifespan {getattr(given, '__name__', None) or f'{given!r:.60}'}{where}"
    decorated = "write @asynccontextmanager over it, and yield what the reactions need: async def lifespan(): ... yield"
    if not isinstance(given, type) and hasattr(given, "__aenter__"):
        raise DeclarationError(f"{found} has been called already", "give the function itself, without ()")
    if not callable(given):
        raise DeclarationError(f"{found} is not a function", decorated)
    if inspect.isasyncgenfunction(given):
        raise DeclarationError(f"{found} is an async generator, not a context manager", decorated)
    if inspect.iscoroutinefunction(given):
        raise DeclarationError(f"{found} is a coroutine function, not a context manager", decorated)
    if inspect.isgeneratorfunction(inner) or (isinstance(given, type) and not hasattr(given, "__aenter__")):
        raise DeclarationError(f"{found} is not an asynchronous context manager", decorated)
    try:
        inspect.signature(given).bind()
    except TypeError as error:
        raise DeclarationError(
            f"{found} cannot be called without arguments: {error}",
            "it takes none: what it needs it gets from its module, or by functools.partial",
        ) from None
    except ValueError:
        pass  # of some built-in: it is seen when it is called
    return lifespan


def _policy(retry: Retry | None, what: str) -> Retry | None:
    if retry is not None and not isinstance(retry, Retry):
        raise DeclarationError(f"{what} has retry={retry!r}", "give a Retry: Retry(on=SomeError, attempts=5)")
    return retry


def _deadline(timeout: Duration, what: str) -> float:
    try:
        length = duration.seconds(timeout)
    except ValueError as error:
        raise DeclarationError(f"{what} has timeout={timeout!r}", str(error)) from None
    if not 0 < length <= LONGEST_TIMEOUT:
        raise DeclarationError(
            f"{what} has timeout={timeout!r}",
            f"above 0 and at most {duration.text(LONGEST_TIMEOUT)}: the broker takes back what is held longer",
        )
    return length


def _bound(name: str, value: int, most: int, what: str) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise DeclarationError(f"{what} has {name}={value!r}", f"a whole number from 1 to {most}")
    return value
