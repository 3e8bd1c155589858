"""Events: immutable, versioned facts. Each is a pydantic model with a topic, which is also its routing key."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeVar, dataclass_transform

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from pydantic._internal._model_construction import ModelMetaclass  # there is no public name for the class of classes
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

from choreo import frames
from choreo.body.codec import UNPROVEN, Codec
from choreo.body.keys import Unwritable
from choreo.errors import DeclarationError, EventMutated

TOPIC: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
MAX_TOPIC: Final = (
    180  # bytes; an AMQP short string holds 255, and a scheduled event carries 47 bytes of delay before it
)

Upcast = Callable[[dict[str, Any]], dict[str, Any]]

E = TypeVar("E", bound="Event")

_known: dict[str, type[Event]] = {}


@dataclass(frozen=True, slots=True)
class Declaration:
    """What the class line of an event says of it.

    `terminal`: nobody needs to consume it. `external`: it comes from outside, no agent needs to emit it.
    `upcasts`: schema version → the function that lifts a body of that version to the next one.
    """

    topic: str
    version: int = 1
    terminal: bool = False
    external: bool = False
    upcasts: Mapping[int, Upcast] = field(default_factory=lambda: MappingProxyType({}))

    def lift(self, body: dict[str, Any], version: int) -> dict[str, Any]:
        """Return `body` of schema `version` as one of today's version; versions without an upcast read as they are."""
        for step in range(version, self.version):
            upcast = self.upcasts.get(step)
            if upcast is not None:
                body = upcast(body)
        return body


class _Upcast(staticmethod):  # type: ignore[type-arg]  # the class is not subscriptable at run time
    from_version: int


def upcast(*, from_version: int) -> Callable[[Upcast], Upcast]:
    """Mark a function in an event's class as the one that lifts a body of `from_version` to `from_version + 1`.

    It takes the body as a dict and returns a new one: ``body | {"currency": "EUR"}``.
    """

    def mark(function: Upcast) -> Upcast:
        marked = _Upcast(function)
        marked.from_version = from_version
        return marked

    return mark


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field, PrivateAttr))
class _Declared(ModelMetaclass):
    """The class of event classes: what pydantic cannot make is said as choreo says it, with the line of the class."""

    def __new__(mcs, name: str, bases: tuple[type[Any], ...], namespace: dict[str, Any], **keywords: Any) -> type:
        try:
            return super().__new__(mcs, name, bases, namespace, **keywords)
        except PydanticUndefinedAnnotation:
            raise
        except PydanticUserError as error:  # also what pydantic has no schema for
            where = _where(str(namespace.get("__qualname__", name)), str(namespace.get("__module__")))
            raise DeclarationError(
                f"event {where}: {error.message.partition(chr(10))[0].strip()}",
                "annotate its fields with what JSON can say: str, Decimal, datetime, list[...], another model",
            ) from error


class Event(BaseModel, metaclass=_Declared):
    """Base of all events: ``class OrderPlaced(Event, topic="order.placed", version=2): ...``.

    Class keywords: `topic` (dot-separated words of letters, digits, `_` and `-`), `version` of the schema (from 1),
    `terminal=True` when nobody needs to consume it, `external=True` when it comes from outside. A class without a topic
    is an abstract base for others. Unknown fields in a body are ignored, so that a publisher may add some.
    Raises DeclarationError when the class is made: bad or duplicate topic, bad version, upcasts that fit no version, a
    field that no reader would read back.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    __choreo__: ClassVar[Declaration | None] = None
    __choreo_codec__: ClassVar[Codec[Any] | None] = None

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Take choreo's keywords away from pydantic, which has no use for them."""
        super().__init_subclass__()

    @classmethod
    def __pydantic_init_subclass__(
        cls,
        topic: str | None = None,
        version: int = 1,
        *,
        terminal: bool = False,
        external: bool = False,
        **unknown: Any,
    ) -> None:
        cls.__choreo_codec__ = None
        where = f"event {_where(cls.__qualname__, cls.__module__)}"
        if unknown:
            raise DeclarationError(
                f"{where} has the unknown class keyword {next(iter(unknown))!r}",
                "allowed: topic, version, terminal, external",
            )
        if not cls.model_config.get("frozen"):
            raise DeclarationError(f"{where} is not frozen", "an event is a fact: remove frozen=False")
        cls.__choreo__ = None
        if topic is None:
            return
        _check_topic(topic, where)
        if type(version) is not int or version < 1:
            raise DeclarationError(f"{where} has version={version!r}", "a version is a whole number from 1")
        cls.__choreo__ = Declaration(topic, version, terminal, external, _upcasts(cls, version, where))
        if cls.__pydantic_complete__:  # else an annotation names what is defined later
            cls.__choreo_codec__ = _codec(cls, where)
        _register(cls, topic, where)

    if not TYPE_CHECKING:  # checkers know the signature of each class, and that nothing in it may be assigned

        @classmethod
        def model_construct(cls, _fields_set: set[str] | None = None, **values: Any) -> Self:
            """Make an event without validation, as pydantic does. Before it is published it is looked at."""
            made = super().model_construct(_fields_set, **values)
            made.__dict__[UNPROVEN] = True
            return made

        def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
            """Copy the event, as pydantic does. Before one with an `update` is published it is looked at."""
            made = super().model_copy(update=update, deep=deep)
            if update:
                made.__dict__[UNPROVEN] = True
            return made

        def __setattr__(self, name: str, value: Any) -> None:
            """Refuse, with a hint: an event that has happened does not change."""
            if name.startswith("_"):
                super().__setattr__(name, value)
                return
            raise self._mutated(name, "assigned")

        def __delattr__(self, name: str) -> None:
            """Refuse, as for an assignment."""
            if name.startswith("_"):
                super().__delattr__(name)
                return
            raise self._mutated(name, "deleted")

    def _mutated(self, name: str, how: str) -> EventMutated:
        return EventMutated(
            f"{type(self).__name__}.{name} was {how}, but an event is a fact and does not change",
            f"make a new one: event.model_copy(update={{{name!r}: ...}})",
        )


def declaration(event: type[Event] | Event) -> Declaration:
    """Return what the class line of `event` declares. Raises DeclarationError for a class without a topic."""
    declared = event.__choreo__
    if declared is None:
        cls = event if isinstance(event, type) else type(event)
        raise DeclarationError(
            f"event {cls.__qualname__} in {cls.__module__} has no topic",
            f'name one in its class line: class {cls.__name__}(Event, topic="...")',
        )
    return declared


def codec(kind: type[E]) -> Codec[E]:
    """Return what writes and reads events of the class `kind`.

    Raises DeclarationError: an annotation names what is defined nowhere, or a field that no reader would read back.
    """
    found = kind.__choreo_codec__
    if found is None:
        where = f"event {kind.__qualname__} in {kind.__module__}"
        try:
            kind.model_rebuild()
        except PydanticUndefinedAnnotation as error:
            raise DeclarationError(
                f"{where}: its annotations name {error.name!r}, which is not known there",
                "import it in that module, and not under TYPE_CHECKING only",
            ) from None
        found = kind.__choreo_codec__ = _codec(kind, where)
    return found


def known() -> Mapping[str, type[Event]]:
    """Return a live, read-only view of every event class that has been imported, by topic."""
    return MappingProxyType(_known)


def _check_imported_once(cls: type[Event], other: type[Event]) -> None:
    """Raise DeclarationError when both are one class of one file, which was imported under two names."""
    if cls.__qualname__ != other.__qualname__:
        return
    ours, theirs = (getattr(sys.modules.get(each.__module__), "__file__", None) for each in (cls, other))
    if ours is None or theirs is None or os.path.realpath(ours) != os.path.realpath(theirs):
        return
    # choreo imports the agents folder under its own name, which is the shorter one in a src layout.
    name = min(cls.__module__, other.__module__, key=len)
    raise DeclarationError(
        f"{ours} is imported twice, as {other.__module__} and as {cls.__module__}: its events exist twice",
        f"import it by one name everywhere, the one that choreo uses: from {name} import {cls.__name__}",
    )


def _codec(kind: type[E], where: str) -> Codec[E]:
    try:
        return Codec(kind)
    except Unwritable as error:
        raise DeclarationError(f"{where}: {error}", error.way_out) from error.__cause__


def _where(name: str, module: str) -> str:
    """Return what an event class is called, and the file and line where it is being made."""
    frame = sys._getframe(1)  # noqa: SLF001 - pydantic stands in between, at a depth of its own
    while frame.f_back is not None and frame.f_globals.get("__name__") != module:
        frame = frame.f_back
    if frame.f_globals.get("__name__") != module:
        return f"{name} in {module}"
    return f"{name} in {module} ({frames.near(frame.f_code.co_filename)}:{frame.f_lineno})"


def _check_topic(topic: object, where: str) -> None:
    if not isinstance(topic, str) or not TOPIC.fullmatch(topic) or len(topic) > MAX_TOPIC:
        raise DeclarationError(
            f"{where} has the topic {topic!r}",
            f'a topic is dot-separated words of letters, digits, "_" and "-", at most {MAX_TOPIC} bytes: order.placed',
        )


def _upcasts(cls: type[Event], version: int, where: str) -> Mapping[int, Upcast]:
    found: dict[int, Upcast] = {}
    # Those of abstract bases count too; those of another event lift the bodies of that one.
    bases = [base for base in reversed(cls.__mro__) if getattr(base, "__choreo__", None) is None]
    for name, value in (item for base in bases for item in vars(base).items()):
        if not isinstance(value, _Upcast):
            continue
        if not 1 <= value.from_version < version:
            raise DeclarationError(
                f"{where}: upcast {name} is from version {value.from_version}, the event has version {version}",
                f"from_version is between 1 and {version - 1}" if version > 1 else "raise the event's version to 2",
            )
        found[value.from_version] = value.__func__
    return MappingProxyType(found)


def _register(cls: type[Event], topic: str, where: str) -> None:
    other = _known.get(topic)
    # The same class imported anew (a reload) takes its own place.
    if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        _check_imported_once(cls, other)
        raise DeclarationError(
            f"{where} has the topic {topic!r}, which {other.__qualname__} in {other.__module__} declares already",
            "give one of the two another topic, or import the one event in both places",
        )
    _known[topic] = cls
