"""The keys of a class in JSON: under which one each field is written, so that it is read back and nothing else is.

A field may be read under several keys, and under one that leads inwards; pydantic writes it under one that may be none
of them. It is written as pydantic does where that is read, otherwise under the first key that is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, cast

Schema = dict[str, Any]

DEEP: Final = "\0"  # between the parts of a key that leads inwards: order\0id is {"order": {"id": ...}}


class Unwritable(Exception):
    """Why no event of a class can come back as it was: `field`, the reason and the hint."""

    def __init__(self, field: str, reason: str, way_out: str) -> None:
        super().__init__(f"{field} {reason}")
        self.way_out = way_out


class Keys:
    """The keys of one class: under which each field is written, so that nobody else reads it."""

    def __init__(
        self, named: Iterable[tuple[str, Schema]], schema: Schema, owner: str, config: Mapping[str, Any]
    ) -> None:
        default = config.get("extra_fields_behavior", "ignore")
        self.extra = schema.get("extra_behavior", schema.get("extra_fields_behavior", default))
        self._owner = owner
        by_name = config.get("validate_by_name", config.get("populate_by_name", False))
        by_alias = config.get("validate_by_alias", True)
        self._read = {name: list(_lookups(name, field, by_name=by_name, by_alias=by_alias)) for name, field in named}
        self.written = {name: self._choose(name, field) for name, field in named}
        for each in schema.get("computed_fields") or ():
            self._keep_apart(each.get("alias", each["property_name"]), each["property_name"], computed=True)
        for name, key in self.written.items():
            self._keep_apart(key, name)

    def _choose(self, name: str, field: Schema) -> str:
        ways = [DEEP.join(map(str, way)) for way in self._read[name] if all(isinstance(part, str) for part in way)]
        where, told = f"{self._owner}.{name}", field.get("serialization_alias")
        if told is not None and told not in ways:
            shown = ", ".join(repr(way.replace(DEEP, ".")) for way in ways)
            raise Unwritable(
                where,
                f"is written as {told!r} and read as {shown}, so that nobody reads what is written",
                f"give it one name for both, alias={told!r} (with validate_by_name=True Python may go on saying"
                f" {name!r}), or let it be read too: validation_alias=AliasChoices({told!r}, ...)",
            )
        if not ways:
            raise Unwritable(
                where,
                "is read from a place in a list, which cannot be written",
                'let it be read by a name too: validation_alias=AliasChoices("name", AliasPath(...))',
            )
        if told is not None:
            return cast("str", told)
        if name in ways:
            return name
        return next((way for way in ways if DEEP not in way), ways[0])

    def _keep_apart(self, key: str, name: str, *, computed: bool = False) -> None:
        """Raise if a field reads what stands under the key of another one, `name`."""
        first = key.split(DEEP, maxsplit=1)[0]
        for other, ways in self._read.items():
            if other == name and not computed:
                continue
            for way in ways:
                if DEEP.join(map(str, way)) == self.written[other] and way[0] != first:
                    break  # its own value is found before
                if way[0] == first and (DEEP not in key or len(way) == 1 or key.split(DEEP) == list(way)):
                    raise Unwritable(
                        f"{self._owner}.{other}",
                        f"reads {first!r}, under which {'the computed field ' if computed else ''}{name!r} is written",
                        "give one of the two another name",
                    )


def _lookups(name: str, field: Schema, *, by_name: bool, by_alias: bool) -> Iterator[tuple[str | int, ...]]:
    """Yield the keys under which a field is read, each as a path, the first one first."""
    alias = field.get("validation_alias")
    if alias is not None and by_alias:
        if isinstance(alias, str):
            yield (alias,)
        elif alias and isinstance(alias[0], list | tuple):
            yield from (tuple(each) for each in alias)
        else:
            yield tuple(alias)
    if alias is None or by_name or not by_alias:
        yield (name,)


def folded(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with what has a key that leads inwards in the place where it is read."""
    body: dict[str, Any] = {}
    for key, each in fields.items():
        *outer, last = key.split(DEEP)
        place = body
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = each
    return body
