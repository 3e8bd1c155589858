"""What a reaction may say that it emits, and what it may return: one rule at import, when it runs, and rehearsed."""

from __future__ import annotations

import asyncio
import collections
import typing
from collections import abc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, NewType, Optional, TypeVar, Union

import pytest
from typing_extensions import TypeAliasType

from choreo import Agent, Context, Event
from choreo.envelope import open_envelope
from choreo.errors import DeclarationError
from choreo.message import Message
from choreo.reaction import Reaction
from choreo.runtime.calling import call
from choreo.testing import Rehearsal

T = TypeVar("T")


class Asked(Event, topic="test-annotations.asked", external=True):
    pass


class A(Event, topic="test-annotations.a", terminal=True):
    n: int = 0


class B(Event, topic="test-annotations.b", terminal=True):
    n: int = 0


AB = TypeAliasType("AB", A | B)
Many = TypeAliasType("Many", list[T], type_params=(T,))
Named = NewType("Named", A)
ONE, TWO, THREE = A(n=1), A(n=2), B(n=3)


class Lazy:
    """Something to iterate over that is not a collection."""

    def __iter__(self) -> Iterator[A]:
        return iter([ONE, TWO])


async def later(*events: Any) -> AsyncIterator[Any]:
    for each in events:
        await asyncio.sleep(0)
        yield each


ONE_EVENT: list[Any] = [A, "A", A | B, Union[A, B], A | None, Optional[A], AB, Named, Annotated[A, "note"], AB | None]  # noqa: UP007, UP045
SEVERAL: list[Any] = [
    list[A],
    list[A | B],
    list[A | None],
    list["A"],
    typing.List[A],  # noqa: UP006
    tuple[A, ...],
    tuple[A, A],
    A | list[A],
    list[A] | None,
    abc.Sequence[A],
    abc.Iterable[A],
    abc.Iterator[A],
    abc.Collection[A],
    abc.Generator[A, None, None],
    abc.ValuesView[A],
    collections.deque[A],
    set[A],
    frozenset[A],
    Many[A],
    list[AB],
    list[Named],
    Annotated[list[A], "note"],
    typing.Iterable[A],
    abc.AsyncIterator[A],
    abc.AsyncIterable[A],
]
RETURNED: list[tuple[str, Callable[[], Any], list[Event]]] = [
    ("nothing", lambda: None, []),
    ("one", lambda: ONE, [ONE]),
    ("list", lambda: [ONE, TWO], [ONE, TWO]),
    ("with None", lambda: [ONE, None, TWO], [ONE, TWO]),
    ("empty", list, []),
    ("tuple", lambda: (ONE, TWO), [ONE, TWO]),
    ("generator", lambda: (each for each in (ONE, TWO)), [ONE, TWO]),
    ("iterator", lambda: iter([ONE, TWO]), [ONE, TWO]),
    ("map", lambda: map({1: ONE, 2: TWO}.get, [1, 2]), [ONE, TWO]),
    ("deque", lambda: collections.deque([ONE, TWO]), [ONE, TWO]),
    ("dict view", {"a": ONE, "b": TWO}.values, [ONE, TWO]),
    ("keys", {ONE: 1, TWO: 2}.keys, [ONE, TWO]),
    ("set", lambda: {TWO, ONE}, [ONE, TWO]),
    ("frozenset", lambda: frozenset((TWO, ONE)), [ONE, TWO]),
    ("iterable", Lazy, [ONE, TWO]),
    ("async generator", lambda: later(ONE, TWO), [ONE, TWO]),
]
REFUSED: list[Any] = [
    int,
    dict[str, A],
    abc.Mapping[str, A],
    list[list[A]],
    tuple[A, list[B]],
    list[int],
    list,
    A | int,
    Coroutine[Any, Any, A],
    Awaitable[A],
    T,
    Event,
    Any,
    TypeAliasType("Wrong", int),
]


def reaction(annotation: Any, make: Callable[[], Any], *, on_loop: bool, name: str = "asked") -> Reaction:
    """Return a reaction that says `annotation` and returns what `make` makes."""
    if on_loop:

        async def react(event: Asked) -> Any:
            return make()

    else:

        def react(event: Asked) -> Any:  # type: ignore[misc]
            return make()

    react.__name__ = name
    react.__annotations__ = {"event": Asked, "return": annotation}
    agent = Agent(name)
    agent.on(react)
    return agent.reactions[0]


@pytest.mark.parametrize("on_loop", [True, False])
@pytest.mark.parametrize("annotation", [*ONE_EVENT, *SEVERAL], ids=str)
async def test_what_is_accepted_works(annotation: Any, on_loop: bool) -> None:
    """Whatever can be said at import, every form that fits gives its events, in `def` as in `async def`."""
    event, message = Asked(), open_envelope(Message(b"{}"), "test-annotations.asked")
    assert message.topic == "test-annotations.asked"
    with ThreadPoolExecutor(1) as threads:
        for name, make, events in RETURNED:
            declared = reaction(annotation, make, on_loop=on_loop)
            assert set(declared.emits) <= {A, B}
            assert declared.emits[0] is A
            given = await call(declared, declared.function, (event,), None if on_loop else threads)
            assert given == events, name


@pytest.mark.parametrize("on_loop", [True, False])
@pytest.mark.parametrize("annotation", REFUSED, ids=str)
def test_what_would_not_work_is_refused(annotation: Any, on_loop: bool) -> None:
    """What cannot be returned is refused at import, with the way out."""
    with pytest.raises(DeclarationError, match=r"reaction 'asked' of agent asked returns") as caught:
        reaction(annotation, list, on_loop=on_loop)
    assert caught.value.way_out.startswith("a reaction returns A, A | B, A | None, list[A]")


@pytest.mark.parametrize(
    "annotation", [Asked, "Asked", TypeAliasType("X", Asked), NewType("Y", Asked), Annotated[Asked, 1]]
)
def test_what_is_taken_may_have_a_name_too(annotation: Any) -> None:
    """An alias, a NewType and Annotated are read in a parameter as well."""
    agent = Agent("taker")

    async def take(event: Any, ctx: Context) -> None: ...

    take.__annotations__ = {"event": annotation, "ctx": Context, "return": None}
    agent.on(take)
    assert agent.patterns == ("test-annotations.asked",)


def test_a_rehearsal_agrees() -> None:
    """A rehearsal makes the same of what is returned; a failure in a generator is one of the reaction."""
    made = [
        reaction(abc.Iterable[A], make, on_loop=on_loop, name=f"{'async' if on_loop else 'def'}-{number}")
        for on_loop in (True, False)
        for number, (_, make, _) in enumerate(RETURNED)
    ]

    def failing() -> Iterator[A]:
        yield ONE
        raise OSError("half way")

    async def scenario(rehearsal: Rehearsal) -> None:
        agents = []
        for each in made:
            agent = Agent(each.agent)
            agent.on(each.function)
            agents.append(agent)
        for on_loop in (True, False):
            agent = Agent(f"failing-{on_loop}".lower())
            agent.on(reaction(abc.Iterator[A], failing, on_loop=on_loop).function)
            agents.append(agent)
        await rehearsal.start(*agents)
        await rehearsal.publish(Asked())
        await rehearsal.settled()
        for each, (name, _, events) in zip(made, RETURNED * 2, strict=True):
            assert [one.event for one in rehearsal.emitted() if one.agent == each.agent] == events, name
        assert {letter.agent for letter in rehearsal.dead_letters} == {"failing-true", "failing-false"}
        assert all(isinstance(one.error, OSError) for one in rehearsal.attempts() if one.reaction.startswith("failing"))

    Rehearsal().run(scenario)
