"""Reactions: one function of an agent. Its signature is the contract, read once when it is declared."""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, overload

import structlog
from typing_extensions import TypeVar  # with a default before Python 3.13

from choreo.envelope import Envelope
from choreo.errors import DeclarationError
from choreo.event import Event, codec, declaration
from choreo.logger import guarded
from choreo.retry import Retry

_RETURNS = "A, A | B, A | None, list[A], Iterable[A], AsyncIterator[A] or None, of event classes"
_GENERATORS = (
    collections.abc.Generator,
    collections.abc.AsyncGenerator,
)  # of A, what is sent to them, what they return


Resources = TypeVar("Resources", default=Any)


@dataclass(frozen=True, slots=True)
class Context(Generic[Resources]):
    """What a reaction may want to know besides its event; ask for it with a second parameter ``ctx: Context``.

    `attempt` counts from 1. `resources` is what the agent's lifespan yielded; with ``ctx: Context[Bank]`` type checkers
    know it as a Bank. `key` is the same on every attempt and redelivery of one event to one reaction: use it as the
    idempotency key of an outside effect.
    """

    event_id: str
    topic: str
    correlation_id: str
    causation_id: str | None
    attempt: int
    hops: int
    agent: str
    reaction: str
    resources: Resources = None  # type: ignore[assignment]  # of an agent without a lifespan
    headers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The idempotency key of this event in this reaction."""
        return f"{self.event_id}:{self.agent}.{self.reaction}"

    @property
    def log(self) -> structlog.typing.FilteringBoundLogger:
        """A logger that carries agent, reaction, event id and correlation id. It never raises."""
        logger = structlog.get_logger(
            agent=self.agent,
            reaction=self.reaction,
            topic=self.topic,
            event_id=self.event_id,
            correlation_id=self.correlation_id,
        )
        return guarded(logger, awaited=True)


# What type checkers know of a reaction's signature; the rest of the rules are `read_contract`'s, at import.
_Some = Event | Iterable[Event | None] | AsyncIterable[Event | None] | None
Taken = TypeVar("Taken", bound=Event | Envelope)
Given = TypeVar("Given", bound=_Some | Awaitable[_Some])


class Declare(Protocol):
    """What ``@agent.on(...)`` decorates with: a function of an event, or of an event and its Context."""

    @overload
    def __call__(self, function: Callable[[Taken], Given], /) -> Callable[[Taken], Given]: ...

    @overload
    def __call__(
        self, function: Callable[[Taken, Context[Resources]], Given], /
    ) -> Callable[[Taken, Context[Resources]], Given]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Reaction:
    """What an agent does about an event, as declared; nothing in it changes after that.

    `consumes`: event classes by topic, none when it takes an Envelope. `patterns`: the binding keys. `emits`: what the
    function may return, `otherwise_emits` what is emitted instead when all attempts have failed. `in_thread`: a plain
    `def`, which runs in a thread. `timeout` in seconds. `max_hops`: the declared bound of a loop through this reaction,
    `max_tree`: that of its fan-out; None when the agent's own bound is all there is. `where`: file and line.
    """

    agent: str
    name: str
    function: Callable[..., Any]
    consumes: Mapping[str, type[Event]]
    patterns: tuple[str, ...]
    emits: tuple[type[Event], ...]
    takes_context: bool
    in_thread: bool
    retry: Retry | None
    otherwise: Callable[..., Any] | None
    otherwise_emits: tuple[type[Event], ...]
    compensates: str | None
    timeout: float
    max_hops: int | None
    max_tree: int | None
    where: str


@dataclass(frozen=True, slots=True)
class Contract:
    """What a function's annotations promise: the events it takes (none: it takes an Envelope) and may return."""

    consumes: tuple[type[Event], ...]
    emits: tuple[type[Event], ...]
    takes_context: bool
    in_thread: bool


def place(function: Callable[..., Any]) -> str:
    """Return where a function is written, as "agents/payment.py:12", relative to the working folder where possible."""
    code = inspect.unwrap(function).__code__
    return f"{relative(code.co_filename)}:{code.co_firstlineno}"


def relative(file: str) -> str:
    """Return `file` relative to the working folder where it lies below it."""
    path = Path(file)
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return file


def read_contract(function: Callable[..., Any], what: str, names: Mapping[str, Any]) -> Contract:
    """Read the contract of a reaction. `names` are the local names where it was declared.

    Raises DeclarationError that names the function (`what`) and says how to fix it.
    """
    if not inspect.isfunction(function):
        raise DeclarationError(
            f"{what} is not a function",
            "decorate a function, def or async def; to react with a method, a partial or an object, one that calls it",
        )
    hints = _hints(function, what, names)
    parameters = _parameters(function, what, allowed=2)
    first = parameters[0].name
    consumes = _consumed(hints.get(first), first, what)
    if len(parameters) == 2 and not _is_context(hints.get(parameters[1].name)):
        second = parameters[1].name
        raise DeclarationError(
            f"{what}: its second parameter {second!r} is {_shown(hints.get(second))}",
            f"write {second}: Context, or leave it out",
        )
    on_loop = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    return Contract(consumes, _returned(hints, what), takes_context=len(parameters) == 2, in_thread=not on_loop)


def read_otherwise(
    function: Callable[..., Any], consumes: tuple[type[Event], ...], what: str, names: Mapping[str, Any]
) -> tuple[type[Event], ...]:
    """Return what an `otherwise` function may emit. It takes the reaction's event and the exception."""
    if not inspect.isfunction(function):
        raise DeclarationError(
            f"{what}: otherwise={function!r} is not a function", "give def f(event, error: Exception) -> B"
        )
    what = f"{what}: otherwise={function.__name__}"
    hints = _hints(function, what, names)
    parameters = _parameters(function, what, allowed=2)
    if len(parameters) != 2:
        raise DeclarationError(
            f"{what} takes one parameter", "it takes the event and the exception: (event, error: Exception)"
        )
    taken = _consumed(hints.get(parameters[0].name), parameters[0].name, what)
    if taken and not set(consumes) <= set(taken):
        missing = ", ".join(sorted(each.__name__ for each in set(consumes) - set(taken)))
        raise DeclarationError(
            f"{what} does not take {missing}, which its reaction takes", "widen its first annotation"
        )
    return _returned(hints, what)


def _hints(function: Callable[..., Any], what: str, names: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, localns=dict(names))
    except NameError as error:
        raise DeclarationError(
            f"{what}: its annotations name {error.name!r}, which is not known there",
            "import it in that module, and not under TYPE_CHECKING only: the annotations are the contract",
        ) from None
    except (TypeError, SyntaxError, AttributeError) as error:
        raise DeclarationError(
            f"{what}: its annotations cannot be read: {error}", "annotate with event classes"
        ) from None


def _parameters(function: Callable[..., Any], what: str, allowed: int) -> list[inspect.Parameter]:
    parameters = list(inspect.signature(function).parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    odd = next((each for each in parameters if each.kind not in positional), None)
    if odd is not None or not 1 <= len(parameters) <= allowed:
        raise DeclarationError(
            f"{what} has the parameters {inspect.signature(function)}",
            "a reaction takes one event and, if it wants, a context: (placed: OrderPlaced, ctx: Context)",
        )
    return parameters


def _consumed(annotation: Any, name: str, what: str) -> tuple[type[Event], ...]:
    if annotation is Envelope:
        return ()
    members = _members(annotation)
    if annotation is None or not all(_is_event(each) for each in members):
        raise DeclarationError(
            f"{what}: its parameter {name!r} is {_shown(annotation)}",
            "annotate it with the event it takes (an Event class, a union of them, or Envelope)",
        )
    for each in members:
        _require_usable(each)
    return members


def _returned(hints: Mapping[str, Any], what: str) -> tuple[type[Event], ...]:
    if "return" not in hints:
        raise DeclarationError(f"{what} has no return annotation", f"say what it emits: {_RETURNS}")
    found: list[type[Event]] = []
    for each in _emitted(hints["return"], many=False):
        if not _is_event(each):
            raise DeclarationError(f"{what} returns {_named(each)}", f"a reaction returns {_RETURNS}")
        _require_usable(each)
        if each not in found:
            found.append(each)
    return tuple(found)


def _emitted(annotation: Any, *, many: bool) -> list[Any]:
    """Return the members of unions and of what one can iterate over, without None; `many`: inside the latter.

    What is read here is what `runtime.calling` makes of what a reaction returns.
    """
    annotation = _plain(annotation)
    if annotation is None or annotation is types.NoneType or annotation is Ellipsis:
        return []
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return [each for member in inside for each in _emitted(member, many=many)]
    if not many and _holds_many(origin):
        members = inside[:1] if origin in _GENERATORS else inside
        return [each for member in members for each in _emitted(member, many=True)]
    return [annotation]


def _holds_many(origin: Any) -> bool:
    if not isinstance(origin, type) or issubclass(origin, Mapping | str | bytes):
        return False
    return issubclass(origin, collections.abc.Iterable | collections.abc.AsyncIterable)


def _members(annotation: Any) -> tuple[Any, ...]:
    annotation = _plain(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(each for member in typing.get_args(annotation) for each in _members(member))
    return (annotation,)


def _plain(annotation: Any) -> Any:
    """Return what an annotation comes to without the names that it was given: type X = A, NewType, Annotated."""
    while True:
        origin = typing.get_origin(annotation)
        if hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        elif origin is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        elif origin is not None and hasattr(origin, "__value__"):  # type Many[T] = list[T], of which one is Many[A]
            annotation = origin.__value__[typing.get_args(annotation)]
        elif origin is None and hasattr(annotation, "__value__"):
            annotation = annotation.__value__
        else:
            return annotation


def _is_context(annotation: Any) -> bool:
    annotation = _plain(annotation)
    return annotation is Context or typing.get_origin(annotation) is Context


def _is_event(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Event) and annotation is not Event


def _require_usable(event: type[Event]) -> None:
    """Raise DeclarationError for an event without a topic, or one that nobody could read back."""
    declaration(event)
    codec(event)


def _named(annotation: Any) -> str:
    return str(annotation) if typing.get_origin(annotation) else getattr(annotation, "__qualname__", str(annotation))


def _shown(annotation: Any) -> str:
    if annotation is None:
        return "not annotated"
    return f"annotated {_named(annotation)}"
