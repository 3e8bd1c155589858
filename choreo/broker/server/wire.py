"""What only a broker says, as bytes: deliveries, returns, why it closes, and bytes as its errors show them. Pure."""

from __future__ import annotations

import struct
from typing import Final

from pamqp import base

from choreo.amqp import encode, frames

_RETURN: Final = frames.NUMBER.pack(frames.RETURN)
_DELIVER: Final = frames.NUMBER.pack(frames.DELIVER)
_GET_OK: Final = frames.NUMBER.pack(frames.GET_OK)
_DECLARE_OK: Final = frames.NUMBER.pack(frames.DECLARE_OK)
_COUNTS: Final = struct.Struct(">II")
_CAUSE: Final = struct.Struct(">HH")  # class and method of what was refused
_MAX_NAMES: Final = 4096

_shorts: dict[str, bytes] = {}  # names and routing keys repeat from message to message


def short(text: str) -> bytes:
    """Return a short string; one beyond 255 bytes is cut, which only words of ours can be."""
    known = _shorts.get(text)
    if known is None:
        content = text.encode("utf-8", "surrogateescape")
        known = encode.short(text) if len(content) <= 255 else bytes((255,)) + content[:252] + b"..."
        if len(_shorts) >= _MAX_NAMES:
            _shorts.clear()
        _shorts[text] = known
    return known


def method(channel: int, value: base.Frame) -> bytes:
    """Return one of pamqp's methods as a frame."""
    return frames.frame(frames.METHOD, channel, frames.NUMBER.pack(value.index) + value.marshal())


def close(channel: int, code: int, text: str, cause: tuple[int, int]) -> bytes:
    """Return connection.close for channel 0, channel.close for any other."""
    number = frames.NUMBER.pack(frames.CHANNEL_CLOSE if channel else frames.CONNECTION_CLOSE)
    return frames.frame(frames.METHOD, channel, number + code.to_bytes(2) + short(text) + _CAUSE.pack(*cause))


def queue_ok(channel: int, queue: str, messages: int, consumers: int) -> bytes:
    """Return queue.declare-ok, whose name may have letters that pamqp refuses."""
    return frames.frame(frames.METHOD, channel, _DECLARE_OK + short(queue) + _COUNTS.pack(messages, consumers))


def deliver(tag: str, number: int, exchange: str, key: str, *, redelivered: bool) -> bytes:
    """Return the payload of basic.deliver."""
    return b"%b%b%b%b%b" % (_DELIVER, short(tag), frames.TAG.pack(number, redelivered), short(exchange), short(key))


def get_ok(number: int, exchange: str, key: str, messages: int, *, redelivered: bool) -> bytes:
    """Return the payload of basic.get-ok."""
    return _GET_OK + frames.TAG.pack(number, redelivered) + short(exchange) + short(key) + messages.to_bytes(4)


def returned(code: int, text: str, exchange: str, key: str) -> bytes:
    """Return the payload of basic.return."""
    return _RETURN + code.to_bytes(2) + short(text) + short(exchange) + short(key)


def words(value: bytes) -> str:
    """Return bytes as RabbitMQ shows the fields of a method in its errors."""
    return f"<<{','.join(map(str, value))}>>"


def snippet(payload: bytes) -> str:
    """Return the beginning of a frame as RabbitMQ shows it in its errors: as a text, if it is one."""
    start = payload[:16]
    text = all(32 <= each < 127 for each in start) and start
    shown = f'<<"{text.decode()}">>' if text else words(start)
    return f"{'all' if len(payload) <= 16 else 'first 16'} octets = {shown}"
