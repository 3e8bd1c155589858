"""One event to publish: from what a person typed to the body that is sent, checked against the event's class."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from pydantic import AliasChoices, AliasPath, BaseModel, RootModel, ValidationError

from choreo.body.strict_json import strict_json
from choreo.envelope import enclose
from choreo.errors import EnvelopeError, PayloadError, UnknownTopic, UsageError
from choreo.event import MAX_TOPIC, TOPIC, Event, codec, declaration, known
from choreo.message import HIDDEN, Message

SOURCE: Final = "choreo-publish"  # what events published by hand say they come from

_MAX_ID: Final = 255  # bytes of an AMQP short string
_SHOWN: Final = 20  # topics that a message lists


@dataclass(frozen=True, slots=True)
class Change:
    """One ``--set field=value``: a path into the body, the value it gets there, and that value as it was written."""

    path: tuple[str, ...]
    value: Any
    text: str

    @classmethod
    def parse(cls, written: str) -> Self:
        """Read ``address.city=Berlin``. The value is JSON if it reads as JSON, and a text otherwise.

        Raises UsageError for what has no ``=`` or an empty field name.
        """
        field, equals, text = written.partition("=")
        path = tuple(field.split("."))
        if not equals or not all(path):
            raise UsageError(
                f"--set {written!r:.80} is not field=value", "such as --set total=42.00 --set address.city=Berlin"
            )
        try:
            value = json.loads(text.encode(), parse_constant=str)
        except UnicodeEncodeError:
            raise UsageError(f"--set {field}: the value is not UTF-8") from None
        except (ValueError, RecursionError):
            value = text
        return cls(path, value, text)

    @property
    def is_number(self) -> bool:
        """Whether the value was read as a number, and so might be meant as the text that it was written as."""
        return isinstance(self.value, int | float) and not isinstance(self.value, bool)

    def apply(self, body: Any) -> None:
        """Put the value in its place in `body`. Raises PayloadError where there is something else than an object."""
        *outer, last = self.path
        for depth, name in enumerate(["", *outer]):
            if depth:
                body = body.setdefault(name, {})
            if not isinstance(body, dict):
                where = ".".join(self.path[:depth]) or "the body"
                raise PayloadError(
                    f"--set {'.'.join(self.path)}: {where} is not a JSON object", "it has no fields to set"
                )
        body[last] = self.value


@dataclass(frozen=True, slots=True)
class Form:
    """How events of one topic are made. Without a `kind`, any JSON goes. `max_body` is in bytes."""

    topic: str
    kind: type[Event] | None
    changes: tuple[Change, ...] = ()
    max_body: int = 2**20

    @classmethod
    def known(cls, name: str, changes: Sequence[Change], max_body: int) -> Self:
        """Return the form of the event that has `name` as its topic or, if only one has, as its class's name.

        Raises UnknownTopic that names the nearest ones.
        """
        events = known()
        kinds = [events[name]] if name in events else [each for each in events.values() if each.__name__ == name]
        if not kinds:
            raise _unknown_topic(name, events)
        if len(kinds) > 1:
            topics = ", ".join(sorted(declaration(kind).topic for kind in kinds))
            raise UnknownTopic(f"several events are named {name}", f"name one by its topic: {topics}")
        return cls(declaration(kinds[0]).topic, kinds[0], tuple(changes), max_body)

    @classmethod
    def raw(cls, topic: str, changes: Sequence[Change], max_body: int) -> Self:
        """Return a form that takes any JSON. Raises UsageError for what cannot be a topic."""
        if not TOPIC.fullmatch(topic) or len(topic) > MAX_TOPIC:
            raise UsageError(
                f"{topic!r:.80} is not a topic",
                f'a topic is words of letters, digits, "_" and "-" with dots between, at most {MAX_TOPIC} bytes',
            )
        return cls(topic, None, tuple(changes), max_body)

    def body(self, data: bytes) -> bytes:
        """Return `data`, changed as asked and checked, as a body to send. Raises PayloadError that names the field."""
        try:
            if len(data) > self.max_body:
                raise too_large("the body", self.max_body)
            value = strict_json(data)
        except EnvelopeError as error:
            raise PayloadError(error.message, "nothing was sent") from None
        if self.changes:
            for change in self.changes:
                change.apply(value)
            data = _dumped(value)
        body = data.strip() if self.kind is None else self._valid(self.kind, value, data)
        if len(body) > self.max_body:
            raise too_large("the body", self.max_body)
        return body

    def message(self, body: bytes, *, event_id: str | None = None, correlation_id: str | None = None) -> Message:
        """Return a message with `body`, made by this form, to be published now."""
        version = declaration(self.kind).version if self.kind is not None else None
        message = enclose(body, self.topic, version, source=SOURCE, event_id=event_id, correlation_id=correlation_id)
        if self.kind is not None and (keys := codec(self.kind).secret_keys):
            message.headers[HIDDEN] = keys
        return message

    def _valid(self, kind: type[Event], value: Any, data: bytes) -> bytes:
        try:
            try:
                event = kind.model_validate_json(data)
            except ValidationError as error:
                meant = self._numbers_as_texts(value, error)
                if meant is None:
                    raise
                event = kind.model_validate_json(meant)
        except ValidationError as error:
            unknown = [key for key in value if key not in _fields(kind)] if isinstance(value, dict) else []
            reasons = [
                codec(kind).explain(error),
                *(_no_field(key, kind) for key in unknown if kind.model_config.get("extra") == "ignore"),
            ]
            raise self._invalid(kind, reasons) from None
        except Exception as error:
            raise self._invalid(kind, [codec(kind).explain(error)]) from error
        ignored = [_no_field(path, model) for path, model in _ignored(event, value)]
        if ignored:
            raise self._invalid(kind, ignored)
        return codec(kind).write(event)

    def _numbers_as_texts(self, value: Any, error: ValidationError) -> bytes | None:
        """Return the body with numbers of --set as texts where the event has no use for a number; None: nowhere.

        An order's number is a text more often than not, and nobody quotes twice: ``--set order=1001``.
        """
        wrong = {each["loc"] for each in error.errors(include_url=False, include_input=False, include_context=False)}
        texts = [
            Change(each.path, each.text, each.text) for each in self.changes if each.is_number and each.path in wrong
        ]
        for change in texts:
            change.apply(value)
        return _dumped(value) if texts else None

    def _invalid(self, kind: type[Event], reasons: Sequence[str]) -> PayloadError:
        fields = ", ".join(_fields(kind)) or "none"
        return PayloadError(
            f"not a valid {kind.__name__} ({self.topic}): {'; '.join(reasons)}",
            f"nothing was sent; fields of {kind.__name__}: {fields}",
        )


def identifier(option: str, value: str | None) -> str | None:
    """Return `value` if it can be an id. Raises UsageError that names the option."""
    if value is None or (value and value.isprintable() and len(value.encode()) <= _MAX_ID):
        return value
    raise UsageError(f"{option} {value!r:.60} is not an id", f"an id is 1 to {_MAX_ID} bytes of printable characters")


def too_large(what: str, max_body: int) -> PayloadError:
    """Return the error for `what`, which has more than `max_body` bytes."""
    return PayloadError(
        f"{what} has more than {max_body} bytes",
        "nothing was sent; agents read no more than that, and CHOREO_MAX_BODY of all of them has to be raised together",
    )


def _dumped(value: Any) -> bytes:
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        raise PayloadError("the body has a number that is too large, or too many levels", "nothing was sent") from None


def _unknown_topic(name: str, events: Mapping[str, type[Event]]) -> UnknownTopic:
    names = [*events, *(kind.__name__ for kind in events.values())]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    topics = sorted(events)
    if len(topics) > _SHOWN:
        topics = [*difflib.get_close_matches(name, topics, n=_SHOWN, cutoff=0.0), f"and {len(topics) - _SHOWN} more"]
    return UnknownTopic(
        f"no agent's module knows an event with the topic {name!r:.80}",
        f"{hint}known: {', '.join(topics) or 'none'}; --raw publishes it unchecked",
    )


def _no_field(path: str, model: type[BaseModel]) -> str:
    outer, dot, name = path.rpartition(".")
    near = difflib.get_close_matches(name, _fields(model), n=1)
    hint = f", did you mean {outer}{dot}{near[0]}?" if near else ""
    return f"{path!r:.80} is not a field of {model.__name__}{hint}"


def _fields(model: type[BaseModel]) -> dict[str, str]:
    """Return the keys that `model` reads from JSON, each with its field."""
    by_name = model.model_config.get("populate_by_name") or model.model_config.get("validate_by_name")
    keys: dict[str, str] = {}
    for name, field in model.model_fields.items():
        alias = field.validation_alias
        for each in alias.choices if isinstance(alias, AliasChoices) else [alias]:
            first = each.path[0] if isinstance(each, AliasPath) else each
            if isinstance(first, str):
                keys[first] = name
        if alias is None or by_name:
            keys[name] = name
    return keys


def _led_inwards(model: type[BaseModel]) -> set[str | int]:
    """Return the keys of which `model` reads only something inside."""
    aliases = [field.validation_alias for field in model.model_fields.values()]
    ways = [each for alias in aliases for each in (alias.choices if isinstance(alias, AliasChoices) else [alias])]
    return {each.path[0] for each in ways if isinstance(each, AliasPath) and len(each.path) > 1}


def _ignored(event: Event, value: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield what of `value` found no place in `event`, at any depth, and the model that has no such field.

    Receivers ignore such fields, so that publishers may add some. From a person they are slips of the pen.
    """
    waiting: list[tuple[str, Any, Any]] = [("", event, value)]
    while waiting:
        path, made, given = waiting.pop()
        if isinstance(made, RootModel):
            waiting.append((path, made.root, given))
        elif isinstance(made, BaseModel) and isinstance(given, dict):
            fields = _fields(type(made))
            for key, each in given.items():
                if key in fields and key not in _led_inwards(type(made)):
                    waiting.append((f"{path}{key}.", getattr(made, fields[key]), each))
                elif key not in fields and made.model_config.get("extra") != "allow":
                    yield path + key, type(made)
        elif isinstance(made, dict) and isinstance(given, dict):
            waiting += [(f"{path}{key}.", made[key], each) for key, each in given.items() if key in made]
        elif isinstance(made, list | tuple) and isinstance(given, list) and len(made) == len(given):
            waiting += [(f"{path}{number}.", *both) for number, both in enumerate(zip(made, given, strict=True))]
