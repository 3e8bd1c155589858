"""How a connection begins: what the broker says of itself, who is let in, and what the two sides agree on."""

from __future__ import annotations

import sys
from typing import Final

from pamqp import commands, decode

from choreo.amqp import frames
from choreo.broker.core import AmqpError
from choreo.broker.server import wire

CHANNEL_MAX: Final = 2047
FRAME_MAX: Final = 131_072  # bytes
FIRST_FRAME: Final = 8192  # bytes, until both sides have agreed
HEARTBEAT: Final = 60  # seconds
_LEAST_FRAME: Final = 4096

_CAPABILITIES: Final = {
    "publisher_confirms": True,
    "exchange_exchange_bindings": True,
    "basic.nack": True,
    "consumer_cancel_notify": True,
    "connection.blocked": False,  # there is no alarm here that blocks anybody
    "consumer_priorities": True,
    "authentication_failure_close": True,
    "per_consumer_qos": True,
    "direct_reply_to": True,
}


def start(version: str) -> commands.Connection.Start:
    """Return connection.start."""
    return commands.Connection.Start(
        0,
        9,
        {
            "capabilities": dict(_CAPABILITIES),
            "product": "choreo embedded",
            "version": version,
            "platform": f"Python {sys.version_info.major}.{sys.version_info.minor}",
            "information": "for development and tests; it speaks AMQP 0-9-1 as RabbitMQ 4.3 does",
            "cluster_name": "choreo",
        },
        "AMQPLAIN PLAIN",
        "en_US",
    )


def login(answer: commands.Connection.StartOk) -> tuple[str, str]:
    """Return user and password of connection.start-ok. Raises AmqpError 403 and 501."""
    response: str | bytes = answer.response  # bytes when it is not UTF-8
    given = response.encode() if isinstance(response, str) else response
    try:
        if answer.mechanism == "PLAIN":
            _, user, password = given.split(b"\0")
            return user.decode(), password.decode()
        if answer.mechanism == "AMQPLAIN":
            table = decode.field_table(len(given).to_bytes(4) + given)[1]
            return str(table["LOGIN"]), str(table["PASSWORD"])
    except (ValueError, KeyError):
        raise AmqpError(501, f"invalid {answer.mechanism} response", (10, 11)) from None
    raise AmqpError(504 if not answer.mechanism else 503, f"unknown authentication mechanism '{answer.mechanism}'")


def refused(mechanism: str) -> AmqpError:
    """Return the error for a user or a password that is not let in."""
    words = (
        f"Login was refused using authentication mechanism {mechanism}. The embedded broker knows guest/guest alone."
    )
    return AmqpError(403, words)


def able(answer: commands.Connection.StartOk, what: str) -> bool:
    """Say whether the client says of itself that it is able to do `what`."""
    capabilities = (answer.client_properties or {}).get("capabilities")
    return isinstance(capabilities, dict) and capabilities.get(what) is True


def negotiated(answer: commands.Connection.TuneOk) -> tuple[int, int, int]:
    """Return channel_max, frame_max in bytes and heartbeat in seconds. Raises AmqpError 530."""
    channel_max, frame_max = answer.channel_max or 0, answer.frame_max or 0
    for name, value, least, most in (
        ("frame_max", frame_max, _LEAST_FRAME, FRAME_MAX),
        ("channel_max", channel_max, 1, CHANNEL_MAX),
    ):
        if value == 0 or value > most:
            none = " (no limit)" if value == 0 and name == "channel_max" else ""
            wrong = f"higher than the maximum allowed value ({most})"
        elif value < least:
            none, wrong = "", f"lower than the minimum allowed value ({least})"
        else:
            continue
        raise AmqpError(530, f"negotiated {name} = {value}{none} is {wrong}", (10, 30))
    return channel_max, frame_max, answer.heartbeat or 0


def bad_frame(kind: int, payload: bytes, why: str) -> AmqpError:
    """Return the error for bytes that are no frame."""
    return AmqpError(501, f"type {kind}, {wire.snippet(payload)}: {why}")


def unexpected(kind: int, payload: bytes) -> AmqpError:
    """Return the error for a frame that has no place here."""
    if kind not in (frames.METHOD, frames.HEADER, frames.BODY, frames.HEARTBEAT):
        return bad_frame(kind, payload, "unknown_frame")
    return AmqpError(505, f"type {kind}, {wire.snippet(payload)}")


def named(start: bytes) -> tuple[int, int]:
    """Return class and method of a method's first bytes, which may be none."""
    return divmod(int.from_bytes(start), 1 << 16) if len(start) == frames.NUMBER.size else (0, 0)
