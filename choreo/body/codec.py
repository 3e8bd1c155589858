"""Bytes and events: how an event is written, and how a body is read. The rule: what is written is read back, equal.

Agents, publishers and commands all write here. What keeps a class from the rule is found when it is made. Where only a
value decides, the event is read back before it is sent.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Generic, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema

from choreo import frames
from choreo.body import schema
from choreo.body.keys import Schema, Unwritable
from choreo.body.strict_json import require_strict
from choreo.errors import EnvelopeError, UnreadableEvent, ValidatorFailed
from choreo.message import HIDDEN, MAX_TEXT, Reason

_MASK: Final = "**********"
UNPROVEN: Final = "_choreo_unproven"  # in the __dict__ of an event that was made without validation

M = TypeVar("M", bound=BaseModel)


class Codec(Generic[M]):
    """Writes and reads events of one class, `kind`. `secrets`: the keys whose values no view may show; "*": all."""

    __slots__ = ("_checked", "_floats", "_nested", "_to_json", "_validate", "_warnings", "_wire", "kind", "secrets")

    def __init__(self, kind: type[M]) -> None:
        """Look at the class, once. Raises Unwritable when none of its events could be read back."""
        own: Callable[..., bytes] = kind.__pydantic_serializer__.to_json
        self.kind = kind
        self._wire = wire = schema.of(kind.__pydantic_core_schema__, own)
        self._to_json = wire.write
        self._validate = kind.__pydantic_validator__.validate_json  # model_validate_json costs a third more
        self._checked = wire.checked
        # pydantic takes 1.4 us more for "error", a text, than for True: for flat classes it is not needed.
        self._warnings: Any = "error" if wire.loose else True
        self._nested = wire.nested
        self._floats = wire.floats
        self.secrets = wire.secrets
        if wire.foreign:
            _require_json_schema(kind, wire.foreign[0])

    @property
    def schema(self) -> Schema:
        """The schema of what is written; see wire_schema.Wire."""
        return self._wire.schema

    @property
    def secret_keys(self) -> str:
        """The keys of secrets as they stand in the header HIDDEN."""
        keys = ",".join(sorted(self.secrets))
        return keys if len(keys) <= MAX_TEXT and not any("," in each for each in self.secrets) else "*"

    def write(self, event: M) -> bytes:
        """Return `event` as the body of a message. Raises UnreadableEvent: its readers would read another one."""
        if UNPROVEN in event.__dict__:
            return self._written_all_the_same(event)
        try:
            body = self._to_json(event, by_alias=True, warnings=self._warnings)
        except Exception:  # noqa: BLE001 - a serializer of the user's may raise anything
            return self._written_all_the_same(event)
        if (
            self._checked
            or (self._floats and (b"NaN" in body or b"Infinity" in body))
            or (self._nested and any(each.__subclasses__() for each in self._nested))
        ):
            self._check(event, body)
        return body

    def read(self, body: bytes, *what: str) -> M:
        """Return the event that `body` is. Raises EnvelopeError: `undecodable`, or `invalid` with the fields.

        `what`: words for the body in that message.
        """
        require_strict(body)
        try:
            event: M = self._validate(body)
        except Exception as error:
            reason = f"{' '.join(what) or 'the body'} is not a valid {self.kind.__name__}: {self.explain(error)}"
            kind = EnvelopeError if isinstance(error, ValidationError) else ValidatorFailed
            raise kind(Reason.INVALID, reason) from error
        return event

    def explain(self, error: Exception) -> str:
        """Return what is wrong with a body, field by field, without its values."""
        if isinstance(error, ValidationError):
            return explain(error)
        where = frames.report_of(error).get("where", "")
        shown = type(error).__name__ if self.secrets else _shown(error)
        return f"a validator raised {shown}{where and f' at {where}'}; what it refuses is a ValueError"

    def _written_all_the_same(self, event: M) -> bytes:
        """Write what pydantic finds odd, or has not looked at. If it is read back equal, nothing is wrong with it."""
        try:
            body = self._to_json(event, by_alias=True, warnings="none")
        except Exception as error:  # noqa: BLE001 - as above
            shown = type(error).__name__ if self.secrets else _shown(error)
            self._refuse(event, f"{self._unwritten(event)} cannot be written as JSON: {shown}", error)
        self._check(event, body)
        return body

    def _unwritten(self, event: M) -> str:
        """Return the name of the first field that cannot be written."""
        for name in self.kind.model_fields:
            try:
                self._to_json(event, by_alias=True, warnings="none", include={name})
            except Exception:  # noqa: BLE001 - that is what is looked for
                return name
        return "it"

    def _check(self, event: M, body: bytes) -> None:
        try:
            back = self.read(body, "what is written")
        except EnvelopeError as error:
            found = _non_finite(event.model_dump()) if error.reason == Reason.UNDECODABLE else ""
            where = f"{found}: " if found else ""
            self._refuse(event, f"{where}{error.message}", error)
        opaque: list[str] = []
        found = difference(event, back, sequences=self._wire.sequences, opaque=opaque)
        if not found and opaque and self._to_json(back, by_alias=True, warnings="none") != body:
            found = f"{opaque[0]} comes back as another one"
        if found:
            self._refuse(event, found, None)

    def _refuse(self, event: M, why: str, error: Exception | None) -> NoReturn:
        raise UnreadableEvent(
            f"this {type(event).__name__} is not what its readers would read: {why}",
            "it is not sent; give the field a value that its annotation can say in JSON, or widen the annotation",
        ) from error


def _require_json_schema(kind: type[BaseModel], field: str) -> None:
    """Raise Unwritable for a type of which nobody can say what it is in JSON."""
    try:
        kind.model_json_schema()
    except PydanticInvalidForJsonSchema as error:
        raise Unwritable(
            field,
            "has no JSON schema, so that nobody can be told what to send",
            "say what it is in JSON: Annotated[..., WithJsonSchema({'type': 'integer'})],"
            " or __get_pydantic_json_schema__ in its class",
        ) from error


def masked(value: Any, headers: Mapping[str, Any]) -> Any:
    """Return a body, as JSON values, as it may be shown: without the values that the header HIDDEN names."""
    named = headers.get(HIDDEN)
    return _masked(value, frozenset(named.split(","))) if isinstance(named, str) else value


def _masked(value: Any, keys: frozenset[str]) -> Any:
    if "*" in keys:
        return _MASK
    if isinstance(value, dict):
        return {key: _MASK if key in keys else _masked(each, keys) for key, each in value.items()}
    return [_masked(each, keys) for each in value] if isinstance(value, list) else value


def difference(sent: Any, read: Any, path: str = "", *, sequences: bool, opaque: list[str]) -> str:
    """Return what is not equal and where, "" when all is. Values are not shown: they may be secret.

    `sequences`: a list may come back of another sequence. `opaque` gets the places of objects that cannot be compared.
    """

    def inside(pairs: Any) -> str:
        return next(
            (
                found
                for key, one, other in pairs
                if (found := difference(one, other, f"{path}.{key}".lstrip("."), sequences=sequences, opaque=opaque))
            ),
            "",
        )

    here = path or "the event"
    made, came = type(sent), type(read)
    if isinstance(sent, BaseModel) and made is came:
        names = {*made.model_fields, *(sent.model_extra or ()), *(read.model_extra or ())}
        gone = next((each for each in sorted(names) if hasattr(sent, each) != hasattr(read, each)), None)
        if gone is not None:
            return f"{here} has {gone!r} on one side only"
        return inside((each, getattr(sent, each), getattr(read, each)) for each in sorted(names))
    if dataclasses.is_dataclass(made) and made is came:
        names = {each.name for each in dataclasses.fields(made)}
        return inside((each, getattr(sent, each, None), getattr(read, each, None)) for each in sorted(names))
    if isinstance(sent, list | tuple) and (made is came or (sequences and isinstance(read, list | tuple))):
        if len(sent) != len(read):
            return f"{here} has {len(sent)} items, and {len(read)} come back"
        return inside((number, *both) for number, both in enumerate(zip(sent, read, strict=True)))
    if isinstance(sent, Mapping) and made is came:
        if sent.keys() != read.keys():
            return f"the keys of {here} come back as others"
        return inside((key, sent[key], read[key]) for key in sent)
    return _unlike(sent, read, here, opaque)


def _unlike(sent: Any, read: Any, here: str, opaque: list[str]) -> str:
    made, came = type(sent), type(read)
    try:
        if bool(sent == read):
            return ""
    except Exception:  # noqa: BLE001 - an array, for example, has no one answer
        opaque.append(here)
        return "" if made is came else f"{here} is {_named(made)}, and {_named(came)} comes back"
    if made is not came:
        return f"{here} is {_named(made)}, and {_named(came)} comes back"
    if getattr(made, "__eq__", None) is object.__eq__:
        opaque.append(here)
        return ""
    return f"{here} comes back as another value"


def _named(kind: type) -> str:
    return f"of type {kind.__name__}"


def explain(error: ValidationError) -> str:
    """Return what is wrong with a body, field by field and without its values."""
    details = error.errors(include_url=False, include_input=False, include_context=False)
    lines = [f"{'.'.join(map(str, each['loc'])) or 'body'}: {each['msg']}" for each in details[:10]]
    if len(details) > len(lines):
        lines.append(f"and {len(details) - len(lines)} more")
    return "; ".join(lines)


def _shown(error: BaseException) -> str:
    try:
        return f"{error!r:.200}"
    except Exception:  # noqa: BLE001 - its __repr__ is the user's code too
        return type(error).__name__


def _non_finite(value: Any, path: str = "") -> str:
    """Return where in plain values a number is that JSON does not have, "" when there is none."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else path or "the value"
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple | set | frozenset):
        items = enumerate(value)
    return next((found for key, each in items if (found := _non_finite(each, f"{path}.{key}".lstrip(".")))), "")
