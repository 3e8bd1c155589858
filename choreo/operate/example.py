"""An example of an event, for somebody who has never published one: the JSON of its required fields."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError
from pydantic.json_schema import GenerateJsonSchema

from choreo.body.keys import DEEP, folded
from choreo.event import Event, codec

_DEPTH: Final = 5
_TRIES: Final = ("a", "1", "AAA", "aaa", "")  # a text may have to be a number, or three letters; "": as little as goes
_GIVEN: Final = ("default", "const")
_PLAIN: Final[dict[Any, Any]] = {"boolean": True, "null": None}
_TEXTS: Final = {
    "date": "2030-01-31",
    "date-time": "2030-01-31T12:00:00Z",
    "duration": "PT1H",
    "email": "ada@example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "time": "12:00:00",
    "uri": "https://example.com",
    "uuid": "3fa85f64-5717-4562-b3fc-2c963f66afa6",
}


def of(kind: type[Event]) -> str | None:
    """Return the JSON of an event of this class; None when its fields want more than their types say."""
    try:
        wire = codec(kind)
        schema = GenerateJsonSchema().generate(wire.schema)
    except Exception:  # noqa: BLE001 - a type of the user's says what its schema is; an example is worth no failure
        return None
    if "$ref" in schema:
        schema |= schema["$defs"][schema["$ref"].rpartition("/")[2]]
    fields = {name: field for name, field in schema.get("properties", {}).items() if name in schema.get("required", ())}
    tried = dict.fromkeys(fields, 0)
    while True:
        known = schema.get("$defs", {})
        body = folded({name: _value(field, known, _TRIES[tried[name]], 0) for name, field in fields.items()})
        try:
            example = json.dumps(body, ensure_ascii=False)
            wire.write(kind.model_validate_json(example))
        except ValidationError as error:
            heads = {name.partition(DEEP)[0]: name for name in tried}
            wrong = {
                heads[str(each["loc"][0])] for each in error.errors() if each["loc"] and str(each["loc"][0]) in heads
            }
            if not wrong or any(tried[name] + 1 == len(_TRIES) for name in wrong):
                return None
            for name in wrong:
                tried[name] += 1
        except Exception:  # noqa: BLE001 - a validator of the user's may raise anything
            return None
        else:
            return example


def _value(schema: Mapping[str, Any], known: Mapping[str, Any], text: str, depth: int) -> Any:
    """Return a value as `schema` has it; `known` are the schemas that it refers to."""
    if depth > _DEPTH:
        return None
    if given := [*schema.get("examples", ()), *schema.get("enum", ()), *(schema[at] for at in _GIVEN if at in schema)]:
        return given[_TRIES.index(text) % len(given)]
    if "$ref" in schema:
        return _value(known.get(schema["$ref"].rpartition("/")[2], {}), known, text, depth + 1)
    if choices := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
        return _choice(schema, choices, known, text, depth)
    kind = schema.get("type")
    if kind == "object":
        return _object(schema, known, text, depth)
    if kind == "array":
        items = schema.get("prefixItems") or [schema.get("items", {})] * schema.get("minItems", 0)
        return [_value(each, known, text, depth + 1) for each in items]
    if kind in ("integer", "number"):
        return max(1, schema.get("minimum", 1), schema.get("exclusiveMinimum", 0) + 1)
    if "contentSchema" in schema:  # JSON in a text
        return json.dumps(_value(schema["contentSchema"], known, text, depth + 1))
    return _PLAIN.get(kind, _TEXTS.get(schema.get("format", ""), text))


def _choice(
    schema: Mapping[str, Any], choices: list[Mapping[str, Any]], known: Mapping[str, Any], text: str, depth: int
) -> Any:
    tags = schema.get("discriminator", {}).get("mapping")
    if tags:
        tag, ref = next(iter(tags.items()))
        chosen = _value({"$ref": ref}, known, text, depth)
        return {schema["discriminator"]["propertyName"]: tag, **chosen} if isinstance(chosen, dict) else chosen
    last = choices[-1]
    return _value(last if last.get("type") == "string" else choices[0], known, text, depth + 1)


def _object(schema: Mapping[str, Any], known: Mapping[str, Any], text: str, depth: int) -> dict[str, Any]:
    fields = {
        name: _value(field, known, text, depth + 1)
        for name, field in schema.get("properties", {}).items()
        if name in schema.get("required", ())
    }
    fields = folded(fields)
    others = schema.get("additionalProperties")
    return fields or ({text: _value(others, known, text, depth + 1)} if isinstance(others, dict) and text else {})
