"""How a class is written so that its readers read it back: pydantic's own schema, with what stands in the way changed.

pydantic writes for people to look at: a secret as asterisks, a field under a name that its class may not read. An event
is written for its readers. So each field goes under a key that its class reads, and a secret with its value. What can
never come back is refused, with the field and a hint. Where only a value decides, the schema says so, and whoever
writes looks (`checked`); for most classes nobody has to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, cast

import pydantic_core
from pydantic import Secret, SecretBytes, SecretStr, TypeAdapter
from pydantic_core import SchemaError, SchemaSerializer, SchemaValidator

from choreo.body.keys import DEEP, Keys, Schema, Unwritable, folded

_ALL: Final = "*"
_SCALARS: Final = frozenset(("none", "bool", "int", "decimal", "str", "bytes", "date", "time", "datetime", "uuid"))
# Children by the type of a schema: keys of one schema, of a list of them, of a mapping to them.
_INSIDE: Final[dict[str, tuple[str, ...]]] = {
    "chain": ("steps",),
    "custom-error": ("schema",),
    "deque": ("items_schema",),
    "dict": ("keys_schema", "values_schema"),
    "frozenset": ("items_schema",),
    "function-after": ("schema",),
    "function-before": ("schema",),
    "function-wrap": ("schema",),
    "json-or-python": ("json_schema", "python_schema"),
    "lax-or-strict": ("lax_schema", "strict_schema"),
    "list": ("items_schema",),
    "nullable": ("schema",),
    "set": ("items_schema",),
    "tagged-union": ("choices",),
    "tuple": ("items_schema",),
    "union": ("choices",),
}
_PLAIN: Final = frozenset(("nullable", "list", "set", "frozenset", "tuple"))  # as safe as what is inside them
_UNREADABLE: Final = {
    "callable": "a function",
    "is-instance": "an object that JSON has no form for",
    "is-subclass": "a class",
    "generator": "an iterator, which is read once",
}
_JSON_KINDS: Final = {
    **dict.fromkeys(("decimal", "str", "bytes", "date", "time", "datetime", "timedelta", "uuid", "url"), "string"),
    **dict.fromkeys(("list", "tuple", "set", "frozenset", "deque"), "array"),
    **dict.fromkeys(("model", "dataclass", "typed-dict", "dict"), "object"),
    **dict.fromkeys(("none", "bool", "int", "float"), ""),
}
_KEYS: Final = frozenset(("str", "int", "uuid", "decimal", "date"))  # types of keys that come back from an object's
_CONSTRAINTS: Final = frozenset(
    ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length", "pattern", "max_digits", "decimal_places")
)
_FIELDS: Final = frozenset(("model-fields", "dataclass-args", "typed-dict"))


class Wire(NamedTuple):
    """What is known of a class. `write` serializes it, as pydantic's SchemaSerializer.to_json does.

    `schema` has for each field the one key that it is written under, DEEP where that leads inwards. `checked`: only a
    value decides whether it comes back. `loose`: a value may have got in that pydantic has not looked at, and it is to
    complain. `nested`: classes whose subclasses would lose what they add. `floats`: a number
    may be none that JSON has. `sequences`: a field is a Sequence, of which a list comes back. `secrets`: the keys
    of secret values, at any depth; "*" for the whole body. `foreign`: fields with a type that pydantic does not know.
    """

    schema: Schema
    write: Callable[..., bytes]
    checked: bool
    loose: bool
    nested: tuple[type, ...]
    floats: bool
    sequences: bool
    secrets: frozenset[str]
    foreign: tuple[str, ...]


def of(core: Any, own: Callable[..., bytes]) -> Wire:
    """Return how what `core`, the schema of a pydantic class, describes is written. `own`: as pydantic writes it.

    Raises Unwritable.
    """
    walk = _Walk()
    schema = walk.through(core, _Place("the body", "", {}, _ALL))
    write = _serializer(schema).to_json if walk.changed else own
    return Wire(
        schema,
        write,
        walk.checked,
        walk.loose or len(walk.nested) > 1,
        tuple(walk.nested[1:]),  # the first is the class itself
        walk.floats,
        walk.sequences,
        frozenset(walk.secrets),
        tuple(walk.foreign),
    )


class _Place(NamedTuple):
    """Where in a schema: the field, for messages, the class that it belongs to, pydantic's configuration there.

    `secret_key`: the key of the body under which a secret here stands. `converted`: a function of the user's comes
    before it, which may make of JSON whatever is wanted.
    """

    field: str
    owner: str
    config: Mapping[str, Any]
    secret_key: str
    converted: bool = False


class _Walk:
    """One way through a schema: what it says, and what has to be said otherwise."""

    def __init__(self) -> None:
        self.changed = False
        self.checked = False
        self.loose = False
        self.floats = False
        self.sequences = False
        self.nested: list[type] = []
        self.secrets: set[str] = set()
        self.foreign: list[str] = []

    def through(self, schema: Schema, at: _Place) -> Schema:
        """Return `schema` as it is written."""
        kind = schema["type"]
        written = schema.get("serialization")
        if written is not None and written.get("function") in _SECRETS:  # which writes asterisks
            self.changed = True
            self.secrets.add(at.secret_key)
            # As what is inside is written elsewhere: bytes have more than one form.
            inside = self.through(schema["json_schema"]["schema"], at)
            shown = _function("function-plain", _revealed, when_used="unless-none", return_schema=inside)
            return schema | {"serialization": shown}
        if kind == "json-or-python" and _is_sequence(schema):
            self.sequences = True
            inner = self.through(schema["json_schema"], at)
            self.checked = True  # a tuple is written as well as a list, and so may be whatever else is a Sequence
            return schema if inner is schema["json_schema"] else schema | {"json_schema": inner}
        if written is not None:
            self.checked = True
        if kind == "definitions":
            return schema | {
                "schema": self.through(schema["schema"], at),
                "definitions": [self.through(each, at._replace(converted=False)) for each in schema["definitions"]],
            }
        ways = {"model": self._class, "dataclass": self._class, "default": self._default, "json": self._embedded}
        way = ways.get(kind) or (self._fields if kind in _FIELDS else self._inside if kind in _INSIDE else self._leaf)
        return way(schema, at)

    def _leaf(self, schema: Schema, at: _Place) -> Schema:
        """Note whether every value of this kind comes back."""
        kind, config = schema["type"], at.config
        if kind in _UNREADABLE and not at.converted:
            raise Unwritable(
                at.field,
                f"is {_UNREADABLE[kind]}",
                "annotate it with what JSON can say: a model, list[...], a type with a validator and a serializer",
            )
        if kind == "float":
            self.floats = self.floats or schema.get("allow_inf_nan", config.get("allow_inf_nan", True))
        elif kind == "bytes":
            told, read = config.get("ser_json_bytes", "utf8"), config.get("val_json_bytes", "utf8")
            if told != read:
                raise Unwritable(
                    at.field,
                    f"is written as {told} and read as {read}",
                    f"in the model_config of {at.owner}: val_json_bytes={told!r} besides ser_json_bytes",
                )
        elif kind in ("date", "time", "datetime", "timedelta"):
            self.checked = self.checked or any(
                config.get(each, "iso8601") != "iso8601" for each in ("ser_json_temporal", "ser_json_timedelta")
            )
        elif kind in ("enum", "literal"):
            values = schema["members"] if kind == "enum" else schema["expected"]
            coming = sum(_comes_back(schema, each) for each in values)
            if not coming and not at.converted:
                raise Unwritable(
                    at.field,
                    f"is one of {values!r:.80}, and none of them is read from JSON",
                    "use texts or numbers as values, or a StrEnum",
                )
            self.checked = self.checked or coming < len(values)
        elif kind not in _SCALARS and kind != "definition-ref":
            self.checked = True
            self.floats = self.floats or kind == "any"
            if kind.startswith("function-"):
                self.foreign.append(at.field)
        return schema

    def _inside(self, schema: Schema, at: _Place) -> Schema:
        """Go through all that `schema` is made of."""
        kind = schema["type"]
        if kind in ("union", "tagged-union"):
            self._choose(kind, schema)
            at = at._replace(converted=True)  # another choice may be what JSON has a form for
        elif kind == "dict":
            keys = schema.get("keys_schema", {"type": "any"})["type"]
            self.checked = self.checked or keys not in _KEYS or at.config.get("strict", False)
        elif kind.startswith("function-"):
            self.checked = True
            at = at._replace(converted=at.converted or kind != "function-after")
        elif kind not in _PLAIN and kind != "lax-or-strict":
            self.checked = True
        self.loose = self.loose or kind != "nullable"
        changes: Schema = {}
        for key in _INSIDE[kind]:
            if key not in schema or (key == "python_schema" and "json_schema" in schema):
                continue  # from Python's own values nothing is read
            inner = self._each(schema[key], at)
            if inner is not schema[key]:
                changes[key] = inner
        return schema | changes if changes else schema

    def _each(self, inside: Any, at: _Place) -> Any:
        if isinstance(inside, list):
            found: list[Any] = [
                (self.through(each[0], at), each[1]) if isinstance(each, tuple) else self.through(each, at)
                for each in inside
            ]
            return inside if all(a is b for a, b in zip(found, inside, strict=True)) else found
        if isinstance(inside, dict) and isinstance(inside.get("type"), str):
            return self.through(inside, at)
        if isinstance(inside, dict):  # the choices of a tagged union; one may stand for another by its name
            made = {key: self.through(each, at) if isinstance(each, dict) else each for key, each in inside.items()}
            return inside if all(made[key] is inside[key] for key in inside) else made
        return inside

    def _choose(self, kind: str, schema: Schema) -> None:
        """Note whether the reader always chooses what was written."""
        choices = [each[0] if isinstance(each, tuple) else each for each in schema["choices"]]
        kinds = [_JSON_KINDS.get(each["type"]) for each in choices if not isinstance(each, str)]
        names = [found or each["type"] for found, each in zip(kinds, choices, strict=False)]
        apart = None not in kinds and len(set(names)) == len(names)
        self.checked = self.checked or kind != "union" or not apart or schema.get("mode", "smart") != "smart"

    def _default(self, schema: Schema, at: _Place) -> Schema:
        inner = self.through(schema["schema"], at)
        self.loose = self.loose or "default" not in schema
        if not schema.get("validate_default") and not self.checked:
            self.checked = not _holds(schema)
        return schema if inner is schema["schema"] else schema | {"schema": inner}

    def _embedded(self, schema: Schema, at: _Place) -> Schema:
        """JSON in a text of JSON: pydantic reads the text and writes what it holds."""
        self.changed = self.checked = True
        inner = self.through(schema.get("schema", {"type": "any"}), at)
        return schema | {"schema": inner, "serialization": _function("function-wrap", _as_text, schema=inner)}

    def _class(self, schema: Schema, at: _Place) -> Schema:
        cls = schema["cls"]
        self.nested.append(cls)
        config = schema.get("config", {})
        inner = self.through(schema["schema"], _Place(at.field, cls.__name__, config, at.secret_key))
        schema = schema if inner is schema["schema"] else schema | {"schema": inner}
        if self.floats and config.get("ser_json_inf_nan", "null") == "null":
            # Written as what they are, they are found in the body; as null, they would be a value that nobody gave.
            self.changed = True
            schema = schema | {"config": config | {"ser_json_inf_nan": "constants"}}
        if "serialization" not in schema and any(DEEP in key for key in _written_keys(inner)):
            self.checked = True
            schema = schema | {"serialization": _function("function-wrap", _folded)}
        return schema

    def _fields(self, schema: Schema, at: _Place) -> Schema:
        given = schema["fields"]
        named: list[tuple[str, Schema]] = (
            list(given.items()) if isinstance(given, dict) else [(each["name"], each) for each in given]
        )
        keys = Keys(named, schema, at.owner, at.config)
        made = {name: self._field(name, field, keys, at) for name, field in named}
        fields = made if isinstance(given, dict) else list(made.values())
        if any(made[name] is not field for name, field in named):
            schema = schema | {"fields": fields}
        computed = schema.get("computed_fields") or []
        if computed and keys.extra != "ignore":
            # Their own readers would refuse them, or take them for fields that were given.
            self.changed = True
            schema = schema | {"computed_fields": []}
        if schema.get("extras_schema") is not None or keys.extra == "allow":
            self.checked = True
        return schema

    def _field(self, name: str, field: Schema, keys: Keys, at: _Place) -> Schema:
        where = f"{at.owner}.{name}"
        if field.get("serialization_exclude"):
            raise Unwritable(
                where,
                "has exclude=True, so that no reader would get it",
                "leave exclude out; what is not part of the fact is a private attribute (_name), and what nobody"
                " may see is a SecretStr",
            )
        if field.get("init_only"):
            raise Unwritable(where, "is for __init__ only, and is not written", "make it a field")
        if field.get("init") is False or field.get("serialization_exclude_if") is not None:
            self.checked = True
        key = keys.written[name]
        inner = self.through(field["schema"], _Place(where, at.owner, at.config, key.split(DEEP)[0]))
        self.changed = self.changed or key != field.get("serialization_alias", name)
        return field | {"schema": inner, "serialization_alias": key, "validation_alias": key}


def _written_keys(schema: Schema) -> list[str]:
    while schema["type"].startswith("function-") and "schema" in schema:
        schema = schema["schema"]
    if schema["type"] not in _FIELDS:
        return []
    fields = schema["fields"]
    each = fields.values() if isinstance(fields, dict) else fields
    return [str(field.get("serialization_alias", "")) for field in each]


def _holds(schema: Schema) -> bool:
    """Say whether a default, which pydantic takes as it is, is what its own field would read."""
    inner = schema["schema"]
    while inner["type"] == "nullable":
        inner = inner["schema"]
    if "default" not in schema or inner["type"] not in (*_SCALARS, "float"):
        # One of another type is seen when it is written; one that is too short, for example, only when it is read.
        return not inner.keys() & _CONSTRAINTS
    try:
        default = schema["default"]
        return bool(SchemaValidator(schema["schema"]).validate_python(default) == default)
    except Exception:  # noqa: BLE001 - whatever it is, the value that is written decides
        return False


def _comes_back(schema: Schema, value: Any) -> bool:
    try:
        back = SchemaValidator(schema).validate_json(SchemaSerializer(schema).to_json(value))
    except Exception:  # noqa: BLE001 - an enumeration may have a _missing_ of the user's
        return False
    return type(back) is type(value) and bool(back == value)


def _is_sequence(schema: Schema) -> bool:
    return (
        schema["json_schema"]["type"] == "list"
        and getattr(schema.get("serialization", {}).get("function"), "__name__", "") == "serialize_sequence_via_list"
    )


def _revealed(value: Any) -> Any:
    return value.get_secret_value()


def _function(kind: str, function: Callable[..., Any], **more: Any) -> Schema:
    return {"type": kind, "function": function, **more}


def _serializations(schema: Any) -> Iterator[Any]:
    if isinstance(schema, dict):
        if isinstance(each := schema.get("serialization"), dict) and "function" in each:
            yield each["function"]
        for value in schema.values():
            yield from _serializations(value)


_SECRETS: Final = frozenset(
    function
    for each in (SecretStr, SecretBytes, Secret[int])
    for function in _serializations(TypeAdapter(each).core_schema)
)


def _as_text(value: Any, handler: Callable[[Any], Any]) -> str:
    return pydantic_core.to_json(handler(value)).decode()


def _folded(value: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    return folded(handler(value))


def _serializer(schema: Schema) -> SchemaSerializer:
    made: Any = SchemaSerializer
    try:
        return cast("SchemaSerializer", made(schema, None, _use_prebuilt=False))  # without the classes' own serializers
    except (TypeError, SchemaError):
        return cast("SchemaSerializer", made(schema))  # pydantic_core before 2.33 knows no others
