"""An example of an event, for somebody who has never published one: the JSON of its required fields."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from choreo.event import Event

_DEPTH: Final = 5
_TRIES: Final = ("a", "1", "AAA", "aaa")  # a text may have to be a number, or three letters
_GIVEN: Final = ("default", "const")
_PLAIN: Final[dict[Any, Any]] = {"boolean": True, "null": None}
_TEXTS: Final = {
    "date": "2030-01-31",
    "date-time": "2030-01-31T12:00:00Z",
    "duration": "PT1H",
    "email": "ada@example.com",
    "time": "12:00:00",
    "uri": "https://example.com",
    "uuid": "3fa85f64-5717-4562-b3fc-2c963f66afa6",
}


def of(kind: type[Event]) -> str | None:
    """Return the JSON of an event of this class; None when its fields want more than their types say."""
    schema = kind.model_json_schema()
    fields = {name: field for name, field in schema.get("properties", {}).items() if name in schema.get("required", ())}
    tried = dict.fromkeys(fields, 0)
    while True:
        known = schema.get("$defs", {})
        body = {name: _value(field, known, _TRIES[tried[name]], 0) for name, field in fields.items()}
        try:
            kind.model_validate_json(example := json.dumps(body, ensure_ascii=False))
        except ValidationError as error:
            wrong = {str(each["loc"][0]) for each in error.errors() if each["loc"]} & tried.keys()
            if not wrong or any(tried[name] + 1 == len(_TRIES) for name in wrong):
                return None
            for name in wrong:
                tried[name] += 1
        else:
            return example


def _value(schema: Mapping[str, Any], known: Mapping[str, Any], text: str, depth: int) -> Any:
    """Return a value as `schema` has it; `known` are the schemas that it refers to."""
    if depth > _DEPTH:
        return None
    if given := [*schema.get("examples", ()), *schema.get("enum", ()), *(schema[at] for at in _GIVEN if at in schema)]:
        return given[0]
    if "$ref" in schema:
        return _value(known.get(schema["$ref"].rpartition("/")[2], {}), known, text, depth + 1)
    if choices := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
        last = choices[-1]
        return _value(last if last.get("type") == "string" else choices[0], known, text, depth + 1)
    kind = schema.get("type")
    if kind == "object":
        return _object(schema, known, text, depth)
    if kind == "array":
        return [_value(schema.get("items", {}), known, text, depth + 1) for _ in range(schema.get("minItems", 0))]
    if kind in ("integer", "number"):
        return max(1, schema.get("minimum", 1), schema.get("exclusiveMinimum", 0) + 1)
    return _PLAIN.get(kind, _TEXTS.get(schema.get("format", ""), text))


def _object(schema: Mapping[str, Any], known: Mapping[str, Any], text: str, depth: int) -> dict[str, Any]:
    fields = {
        name: _value(field, known, text, depth + 1)
        for name, field in schema.get("properties", {}).items()
        if name in schema.get("required", ())
    }
    others = schema.get("additionalProperties")
    return fields or ({text: _value(others, known, text, depth + 1)} if isinstance(others, dict) else {})
