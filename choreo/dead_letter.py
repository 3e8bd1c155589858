"""Dead letters: what is written on one, and how to read it again. No I/O."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

from choreo import clock
from choreo.censor import begun, censored, ended
from choreo.cloudevents import STRUCTURED, binary, media_type
from choreo.errors import EnvelopeError
from choreo.message import (
    ASIDE,
    ATTEMPT,
    CE,
    CORRELATION,
    DEATHS,
    EXPIRATION,
    FIRST_FAILURE,
    MAX_HEADER_BYTES,
    MAX_HEADER_DEPTH,
    NOTE,
    ORDER,
    TOPIC,
    Message,
    Reason,
    identity,
    measure,
)
from choreo.retry import leaves
from choreo.topology import topic_in

MAX_ERROR: Final = 2_000  # characters of the exception's text
MAX_TRACEBACK: Final = 8_000  # characters, the end of it, where the error is
_CUT: Final = "[…]\n"  # where a traceback has lost its beginning
_MOST_NAMED: Final = 10  # exceptions of a group
_SHORT_ERROR: Final = 200  # characters, where a frame has no room for more
_UNREAD: Final = NOTE + "headers"  # the bytes of headers that cannot be read
_DROPPED: Final = NOTE + "dropped-headers"  # the names of headers that are not on the letter
_KEPT: Final = (_UNREAD, _DROPPED)  # also on a replay: they are all that is left of what they tell of
_NEEDED: Final = (TOPIC, FIRST_FAILURE, CE + "id", ASIDE, ORDER)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Why a message died. Times are in UTC; `attempts` counts all of them; `reaction` is None when none was reached."""

    id: str | None
    topic: str
    agent: str
    reason: str
    error_type: str | None
    error: str | None
    traceback: str | None
    reaction: str | None
    attempts: int
    first_failure: datetime | None
    last_failure: datetime | None
    code_version: str | None
    correlation_id: str | None
    body: bytes


def write(
    message: Message,
    *,
    topic: str,
    agent: str,
    reason: str,
    error: BaseException,
    reaction: str | None,
    attempts: int,
    first_failure: datetime | None,
    code_version: str | None,
) -> Message:
    """Return `message`, bytes untouched, with everything that a person wants to know of its death on it."""
    now = clock.now()
    notes = {
        "reason": str(reason),
        "error-type": f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins."),
        "error": _words(error),
        "traceback": _traceback(error),
        "agent": agent,
        "reaction": reaction,
        "attempts": attempts,
        "last-failure": now.isoformat(),
        "code-version": code_version,
    }
    letter = _without_notes(message.forwarded({}, without=(TOPIC,)))
    if message.raw is None:  # else it has room for what came, and what has no room is dropped when that is known
        size, depth = measure(letter.headers)
        if size > MAX_HEADER_BYTES or depth > MAX_HEADER_DEPTH:
            letter.headers, notes["dropped-headers"] = _affordable(letter.headers)
    letter.headers[TOPIC] = topic  # after the dropping: without it a replay would have no topic
    letter.headers[FIRST_FAILURE] = (first_failure or now).isoformat()
    if message.unread is not None:
        letter.unread, letter.headers[_UNREAD] = None, bytearray(message.unread)
    letter.headers.update({NOTE + name: value for name, value in notes.items() if value is not None})
    return letter


def shorten(letter: Message, over: int) -> bool:
    """Take something from `letter`, whose headers have `over` bytes more than a frame holds. False: nothing is left.

    First what a person can do without, the traceback and most of the error. Then headers, the largest first, and last
    of what could not be read: then it cannot be replayed as it was, and says so.
    """
    headers = letter.headers
    if NOTE + "reason" not in headers:
        return False  # a retry: nothing of it can be done without
    if headers.pop(NOTE + "traceback", None) is not None:
        return True
    error = headers.get(NOTE + "error")
    if isinstance(error, str) and len(error) > _SHORT_ERROR:
        headers[NOTE + "error"] = error[: _SHORT_ERROR - 1] + "…"
        return True
    if ORDER not in headers:
        headers[ORDER] = "dropped"
        _drop(headers, "the order of the headers")
        return True
    theirs = [name for name in headers if not name.startswith(NOTE) and name not in _NEEDED]
    if theirs:
        name = max(theirs, key=lambda each: measure({each: headers[each]})[0])
        del headers[name]
        _drop(headers, name)
        return True
    unread = headers.get(_UNREAD)
    if isinstance(unread, bytes | bytearray) and unread:
        headers[_UNREAD] = bytearray(unread[: max(0, len(unread) - over - _SHORT_ERROR)])
        _drop(headers, f"all but {len(headers[_UNREAD])} of {len(unread)} unread bytes")
        return True
    if not isinstance(headers.get(ASIDE), str):
        headers[ASIDE] = "dropped"
        _drop(headers, ASIDE)
        return True
    return False


def _drop(headers: dict[str, Any], what: str) -> None:
    """Note that something of the original is not on the letter."""
    before = headers.get(_DROPPED)
    dropped = f"{before}, {what}" if isinstance(before, str) else what
    headers[_DROPPED] = dropped if len(dropped) <= _SHORT_ERROR else dropped[: _SHORT_ERROR - 1] + "…"


def missing(message: Message) -> str:
    """Return what a replay of this letter could not send as it was, in words; nothing when it is whole."""
    if message.headers.get(_DROPPED) is not None:
        return "some of its headers are not on the dead letter, which had no room for them"
    if message.headers.get(_UNREAD) is not None:
        return f"its headers cannot be read; their bytes are in {_UNREAD}"
    return ""


def read(message: Message, *, agent: str) -> DeadLetter:
    """Return what is known of a message found in the dead-letter queue of `agent`.

    One that choreo wrote tells all; one that the broker put there itself (delivery limit, time to live) tells what
    `x-death` says, and has the id under which the reaction knew it.
    Never raises: whatever cannot be read is None.
    """
    headers = message.headers
    death = _broker_death(headers)
    reason, error = headers.get(NOTE + "reason"), _said(headers.get(NOTE + "error"))
    if reason is None:
        reason, told = _brokers_reason(death, agent)
        error = error or told
    topic = _text(headers.get(TOPIC)) or _original_key(death) or _text(message.type) or ""
    return DeadLetter(
        id=_text(headers.get(CE + "id")) or _text(message.message_id) or _derived(message, topic),
        topic=topic,
        agent=_text(headers.get(NOTE + "agent")) or agent,
        reason=str(reason),
        error_type=_text(headers.get(NOTE + "error-type")),
        error=error,
        traceback=_said(headers.get(NOTE + "traceback")),
        reaction=_text(headers.get(NOTE + "reaction")),
        attempts=_number(headers.get(NOTE + "attempts")),
        first_failure=_time(headers.get(FIRST_FAILURE)),
        last_failure=_time(headers.get(NOTE + "last-failure")) or _time(death.get("time")),
        code_version=_text(headers.get(NOTE + "code-version")),
        correlation_id=_text(headers.get(CORRELATION)) or _text(message.correlation_id),
        body=message.body,
    )


def aside(message: Message) -> list[str]:
    """Return the names of what stands aside on this letter, since the broker would act upon it once more."""
    found = message.headers.get(ASIDE)
    names = list(found) if isinstance(found, dict) else []
    return [*names, EXPIRATION] if EXPIRATION not in names and _expiration(message) is not None else names


def _expiration(message: Message) -> str | None:
    """Return the time to live with which a message was published: as it stands aside, or as the broker has noted it."""
    found = message.headers.get(ASIDE)
    given = found.get(EXPIRATION) if isinstance(found, dict) else None
    given = given or _broker_death(message.headers).get("original-expiration")
    return given if isinstance(given, str) and re.fullmatch(r"[0-9]{1,10}", given) else None


def revived(message: Message, letter: DeadLetter, *, expiring: bool = False) -> Message:
    """Return `message` as it was before it died, to be delivered again to the agent that failed, as its first attempt.

    What its publisher wrote is there, byte for byte where it came over a wire; for what broker and choreo would act
    upon see `amqp.rewrite`. What could not be read stays on it as it is kept on the letter; see `missing`. `expiring`:
    with the time to live that it was published with, which starts again.
    """
    topic = {} if TOPIC in message.headers else {TOPIC: letter.topic}  # what it says may be no text
    again = message.forwarded(topic, without=(ATTEMPT, FIRST_FAILURE))
    again.expiration = _expiration(message) if expiring else None
    return _without_notes(again)


def _affordable(headers: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return as many headers as there is room for, the small ones first, and the names of the others."""
    kept: dict[str, Any] = {}
    room = MAX_HEADER_BYTES
    measured = sorted((*measure({name: value}), name) for name, value in headers.items())
    for size, depth, name in measured:
        room -= size
        if room >= 0 and depth <= MAX_HEADER_DEPTH:
            kept[name] = headers[name]
    dropped = ", ".join(name for name in headers if name not in kept)
    return kept, dropped if len(dropped) <= MAX_ERROR else dropped[: MAX_ERROR - 1] + "…"


def _without_notes(message: Message) -> Message:
    headers = message.headers.items()
    message.headers = {key: value for key, value in headers if not key.startswith(NOTE) or key in _KEPT}
    return message


def _words(error: BaseException) -> str:
    try:
        text = _without_credentials(_text_of(error))
    except BaseException as second:  # noqa: BLE001 - an exception's own __str__ is the user's code too
        text = f"({type(error).__name__} cannot be shown: its __str__ raised {type(second).__name__})"
    return text if len(text) <= MAX_ERROR else text[: MAX_ERROR - 1] + "…"


def _text_of(error: BaseException) -> str:
    """Return the text of an exception; that of a group names what is in it, which is what went wrong."""
    if not isinstance(error, BaseExceptionGroup):
        return str(error)
    named = [f"{type(each).__name__}: {each}" for each in islice(leaves(error), _MOST_NAMED)]
    return f"{error}: {'; '.join(named)}"


def _traceback(error: BaseException) -> str | None:
    try:
        if error.__traceback__ is None:
            return None
        text = _without_credentials("".join(traceback.format_exception(error)))
    except BaseException:  # noqa: BLE001 - notes and attributes of an exception are the user's code too
        return None
    return text if len(text) <= MAX_TRACEBACK else _CUT + text[-MAX_TRACEBACK:]


def _sendable(text: str) -> str:
    """Return `text` without the lone surrogates that UTF-8 has no bytes for."""
    return text.encode(errors="backslashreplace").decode()


def _without_credentials(text: str) -> str:
    """Return `text` as a letter may say it, before it is cut: half a URL is none.

    An exception may give a text of the user's own class, which is asked for nothing.
    """
    return censored(_sendable(str.__str__(text)))


def _said(value: Any) -> str | None:
    """Return what an earlier release may have written as it was."""
    text = _text(value)
    if text is None:
        return None
    if text.startswith(_CUT):
        text = _CUT + begun(text.removeprefix(_CUT))
    if text.endswith("…"):
        text = ended(text[:-1]) + "…"
    return censored(text)


def _derived(message: Message, topic: str) -> str | None:
    """Return the id that a message without one is given where it is opened."""
    try:
        if media_type(message.content_type or "") == STRUCTURED:
            return str(binary(message).headers[CE + "id"])
        return identity(message, topic)
    except (EnvelopeError, ValueError, TypeError, RecursionError, OverflowError):
        return None


def _broker_death(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    deaths = headers.get(DEATHS)
    return deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}


def _brokers_reason(death: Mapping[str, Any], agent: str) -> tuple[str, str | None]:
    """Return why the broker has dead-lettered a message of `agent`, as a reason and in words."""
    reason, queue = str(death.get("reason", "unknown")), _text(death.get("queue")) or ""
    if reason == "delivery_limit":
        return Reason.CRASHED, None
    if reason != "expired":
        return reason, None
    if queue.endswith((f".{agent}", f".{agent}.retry")):
        return Reason.EXPIRED, f"nobody has read it in {queue} before its time to live was over"
    return Reason.UNCLAIMED, f"its time in {queue} was over, and the queue that it was for was gone" if queue else None


def _original_key(death: Mapping[str, Any]) -> str | None:
    keys = death.get("routing-keys")
    key = _text(keys[0]) if isinstance(keys, list) and keys else None
    return key and topic_in(key)


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace") or None
    return _sendable(value) or None if isinstance(value, str) else None


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _time(value: Any) -> datetime | None:
    try:
        time = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
