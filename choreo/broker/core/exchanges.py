"""Exchanges: which bindings a message takes.

One that picks is given its dice: the same calls in the same order lead to the same queues.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from random import Random
from typing import Any, Literal, NamedTuple

from choreo.broker.core.failure import AmqpError, field_type
from choreo.broker.core.message import Message

_MOST_HASHES = 2
_MATCHES = ("all", "any", "all-with-x", "any-with-x")


class Binding(NamedTuple):
    """From an exchange to a queue or another exchange."""

    source: str
    destination: str
    to: Literal["queue", "exchange"]
    key: str
    arguments: Mapping[str, Any]

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """What two bindings that are the same have in common."""
        return self.to, self.destination, self.key, repr(sorted(self.arguments.items()))


class Incoming:
    """Bindings by what they lead to: whatever is deleted finds its own, however many others there are."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], dict[tuple[str, ...], Binding]] = {}

    def add(self, binding: Binding) -> None:
        """Add a binding that its source has taken."""
        self._found.setdefault((binding.to, binding.destination), {})[binding.source, *binding.identity] = binding

    def remove(self, binding: Binding) -> None:
        """Remove a binding that its source has let go."""
        end = (binding.to, binding.destination)
        mine = self._found[end]
        del mine[binding.source, *binding.identity]
        if not mine:
            del self._found[end]

    def of(self, to: Literal["queue", "exchange"], name: str) -> list[Binding]:
        """Return the bindings to a queue or an exchange."""
        return list(self._found.get((to, name), {}).values())


class Exchange:
    """A fanout exchange, and what all exchanges are. `of` makes one of any type."""

    steady = True  # whether the same routing key always leads to the same bindings

    def __init__(
        self,
        name: str,
        type: str,  # noqa: A002
        *,
        durable: bool,
        auto_delete: bool,
        internal: bool,
        arguments: Mapping[str, Any],
    ) -> None:
        self.name = name
        self.type = type
        self.durable = durable
        self.auto_delete = auto_delete
        self.internal = internal
        self.arguments = arguments
        self.alternate: str | None = arguments.get("alternate-exchange")
        self.bindings: dict[tuple[str, str, str, str], Binding] = {}

    @staticmethod
    def of(name: str, type: str, **properties: Any) -> Exchange:  # noqa: A002
        """Return a new exchange. Raises AmqpError 406 for a type that there is none of."""
        if type not in _TYPES:
            raise AmqpError(406, f"unknown exchange type '{type}'")
        return _TYPES[type](name, type, **properties)

    def add(self, binding: Binding) -> bool:
        """Add a binding; False when it is there already. Raises AmqpError 406 for arguments that mean nothing."""
        if binding.identity in self.bindings:
            return False
        self.bindings[binding.identity] = binding
        return True

    def remove(self, binding: Binding) -> bool:
        """Remove a binding; False when there is none."""
        return self.bindings.pop(binding.identity, None) is not None

    def route(self, message: Message) -> list[Binding]:
        """Return the bindings that `message` takes, one several times if several of its keys lead there."""
        return [binding for key in message.keys for binding in self.find(key, message)]

    def find(self, key: str, message: Message) -> Iterable[Binding]:
        """Return the bindings that `message` takes with the routing key `key`."""
        return self.bindings.values()


class DirectExchange(Exchange):
    """The routing key is the binding's key."""

    def find(self, key: str, message: Message) -> Iterable[Binding]:
        """See Exchange."""
        return [binding for binding in self.bindings.values() if binding.key == key]


class TopicExchange(Exchange):
    """The binding's key is a pattern: `*` for one word, `#` for any number. Kept as a tree of words."""

    def __init__(self, name: str, type: str, **properties: Any) -> None:  # noqa: A002
        super().__init__(name, type, **properties)
        self._tree: dict[str, Any] = {}

    def add(self, binding: Binding) -> bool:
        """See Exchange."""
        words = _words(binding.key)
        if words.count(".#") > _MOST_HASHES:
            said = f"uses {words.count('.#')} '#' wildcards, at most {_MOST_HASHES} are allowed"
            raise AmqpError(406, f"Topic binding key '{binding.key}' {said}")
        if not super().add(binding):
            return False
        node = self._tree
        for word in words:
            node = node.setdefault(word, {})
        node.setdefault("", {})[binding.identity] = binding
        return True

    def remove(self, binding: Binding) -> bool:
        """See Exchange."""
        if not super().remove(binding):
            return False
        _prune(self._tree, _words(binding.key), binding)
        return True

    def find(self, key: str, message: Message) -> Iterable[Binding]:
        """See Exchange."""
        found: dict[tuple[str, str, str, str], Binding] = {}
        _collect(self._tree, _words(key), 0, found, set())
        return found.values()


class HeadersExchange(Exchange):
    """The binding's arguments are headers, of which x-match says how many a message must have."""

    steady = False

    def add(self, binding: Binding) -> bool:
        """See Exchange."""
        match = binding.arguments.get("x-match", "all")
        if not isinstance(match, str):
            words = f"Invalid x-match field type {field_type(match)} (value {match}); expected longstr"
            raise AmqpError(406, words)
        if match not in _MATCHES:
            words = f'Invalid x-match field value <<"{match}">>; expected all, any, all-with-x, or any-with-x'
            raise AmqpError(406, words)
        return super().add(binding)

    def find(self, key: str, message: Message) -> Iterable[Binding]:
        """See Exchange."""
        headers = message.properties.headers or {}
        return [binding for binding in self.bindings.values() if _fits(binding.arguments, headers)]


class LocalRandomExchange(Exchange):
    """One of the bindings, whatever the key: https://www.rabbitmq.com/docs/local-random-exchange."""

    steady = False

    def __init__(self, name: str, type: str, **properties: Any) -> None:  # noqa: A002
        super().__init__(name, type, **properties)
        self._dice = Random(name)  # noqa: S311 - so that the same calls lead to the same queues

    def route(self, message: Message) -> list[Binding]:
        """See Exchange."""
        return [self._dice.choice(tuple(self.bindings.values()))] if self.bindings else []


class ModulusHashExchange(Exchange):
    """One of the bindings, for each routing key always the same as long as no binding comes or goes.

    https://github.com/rabbitmq/rabbitmq-server/tree/main/deps/rabbitmq_sharding
    """

    def route(self, message: Message) -> list[Binding]:
        """See Exchange."""
        ordered = sorted(self.bindings.values(), key=lambda binding: (binding.to, binding.destination))
        drawn = zlib.crc32("\0".join(message.keys).encode(errors="replace"))
        return [ordered[drawn % len(ordered)]] if ordered else []


_TYPES = {
    "direct": DirectExchange,
    "fanout": Exchange,
    "topic": TopicExchange,
    "headers": HeadersExchange,
    "x-local-random": LocalRandomExchange,
    "x-modulus-hash": ModulusHashExchange,
}


def _words(key: str) -> list[str]:
    # A word may be empty, and the tree keeps bindings under the empty word: so each word gets a mark.
    return [f".{word}" for word in key.split(".")] if key else []


def _collect(node: dict[str, Any], words: list[str], at: int, found: dict[Any, Binding], seen: set[Any]) -> None:
    """Gather what `words`, from the one at `at` on, lead to. `seen`: several `#` come to the same places."""
    if (id(node), at) in seen:
        return
    seen.add((id(node), at))
    many = node.get(".#")
    if many is not None:
        for further in range(at, len(words) + 1):
            _collect(many, words, further, found, seen)
    if at == len(words):
        found.update(node.get("", ()))
        return
    for word in (words[at], ".*"):
        if word in node:
            _collect(node[word], words, at + 1, found, seen)


def _prune(node: dict[str, Any], words: list[str], binding: Binding) -> None:
    inner = node[words[0]] if words else node[""]
    if words:
        _prune(inner, words[1:], binding)
    else:
        del inner[binding.identity]
    if not inner:
        del node[words[0] if words else ""]


def _fits(wanted: Mapping[str, Any], headers: Mapping[str, Any]) -> bool:
    match = wanted.get("x-match", "all")
    with_x = match.endswith("-with-x")
    tests = (
        name in headers and (value is None or (headers[name] == value and type(headers[name]) is type(value)))
        for name, value in wanted.items()
        if name != "x-match" and (with_x or not name.startswith("x-"))
    )
    return any(tests) if match.startswith("any") else all(tests)
