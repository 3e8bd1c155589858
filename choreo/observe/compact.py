"""Log lines for somebody who develops: a delivery is one short line, and so is everything else.

    12:03:04 handled  b36414f8  greeter.greet  visitor.arrived -> visitor.greeted  0.4 ms
    12:03:05 failed   b36414f8  greeter.greet  visitor.arrived  retry in 2 s: OSError('door stuck')
    12:03:07 dead     order-17  greeter.greet  visitor.arrived  ValueError('no name')
    12:03:07 info     b36414f8  greeter.greet  what the reaction logs itself  name=Ada

Behind the outcome stands the transaction that it belongs to: the correlation id, of a random one as much as tells it
from others. Ids and times in full are what the other formats are for; `choreo dlq show` has everything about a dead
letter. On a terminal a line that is too long for it goes on below, from a whole word on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from structlog.typing import EventDict

from choreo.printable import folded

_DELIVERY: Final = ("agent", "reaction", "topic", "event_id", "correlation_id")  # what all lines about a delivery carry
_OUTCOMES: Final = {"dead letter": "dead"}  # where the column is too narrow for the word
_COLOURS: Final = {
    "handled": "\x1b[32m",
    "failed": "\x1b[33m",
    "dead": "\x1b[31m",
    "warning": "\x1b[33m",
    "error": "\x1b[31m",
    "critical": "\x1b[31m",
}
_DIM, _BOLD, _PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[0m"
_WIDEST: Final = 300  # characters of an error
_RANDOM: Final = re.compile(r"[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}")  # a UUID, with or without dashes
_OF_RANDOM: Final = 8  # characters of one
_OF_OTHERS: Final = 24
_INDENT: Final = 9  # behind the time


class Compact:
    """The last step of a chain of processors: an event dictionary becomes its line."""

    def __init__(self, *, colours: bool, width: Callable[[], int | None] = lambda: None) -> None:
        self._colours = colours
        self._width = width  # of the terminal in characters, None where there is none

    def __call__(self, _logger: Any, method: str, line: EventDict) -> str:
        """Return `line` as text."""
        time, level, event = line.pop("timestamp", ""), line.pop("level", method), str(line.pop("event", ""))
        exception = line.pop("exception", None)
        about = {key: line.pop(key, None) for key in _DELIVERY} if all(key in line for key in _DELIVERY) else {}
        tried = line.pop("attempt", None) if about else None
        where = ".".join(str(about[key]) for key in ("agent", "reaction") if about[key]) if about else ""
        if tried is None:  # of the reaction's own, or of nobody's
            word = str(level)
            words = [self._transaction(about), self._in(where, _BOLD), event]
        else:
            word = _OUTCOMES.get(event, event)
            words = [self._transaction(about), self._in(where, _BOLD), self._outcome(str(about["topic"] or "?"), line)]
        words += [f"{self._in(f'{key}=', _DIM)}{_value(value)}" for key, value in line.items()]
        head = f"{self._in(str(time), _DIM)} {self._in(f'{word:<8}', _COLOURS.get(word, ''))}"
        text = folded(" ".join([head, "  ".join(filter(None, words))]), self._width(), _INDENT)
        return text if exception is None else f"{text}\n{exception}"

    def _transaction(self, about: EventDict) -> str:
        """Return as much of the correlation id as tells transactions apart."""
        name = str(about.get("correlation_id") or "")
        if _RANDOM.fullmatch(name):
            return self._in(name[:_OF_RANDOM], _DIM)
        return self._in(name if len(name) <= _OF_OTHERS else f"{name[:_OF_OTHERS]}…", _DIM)

    def _outcome(self, topic: str, line: EventDict) -> str:
        """Say what became of a delivery of `topic`, from what `line` tells of it, which is taken out."""
        emitted, seconds = line.pop("emitted", ()), line.pop("seconds", None)
        then, error = line.pop("next", None), line.pop("error", None)
        if line.get("reason") == "failed":  # the error says so
            del line["reason"]
        said = f"{topic} -> {', '.join(map(str, emitted))}" if emitted else topic
        if seconds is not None:
            said += self._in(f"  {seconds * 1000:.1f} ms", _DIM)
        why = ": ".join(str(each) for each in (then, error) if each is not None).replace("\n", "\\n")
        why = why if len(why) <= _WIDEST else f"{why[:_WIDEST]}…"
        return f"{said}  {why}" if why else said

    def _in(self, text: str, colour: str) -> str:
        return f"{colour}{text}{_PLAIN}" if self._colours and colour and text else text


def _value(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return repr(text) if isinstance(value, str) and (not text or any(map(str.isspace, text))) else text
