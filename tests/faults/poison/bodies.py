"""Poison in the body: what is not text, not JSON, not an event, or too much."""

from __future__ import annotations

import gzip
import json
from typing import Final

from choreo.message import MAX_BODY, Reason
from tests.faults.poison.letter import USUAL, Poison

_UNDECODABLE: Final = {
    "empty": b"",
    "only spaces": b" \t\r\n",
    "one zero byte": b"\0",
    "all byte values": bytes(range(256)),
    "truncated UTF-8": b'{"order": 1, "name": "\xe2\x82"}',
    "truncated UTF-8 at the end": b'{"order": 1}\xe2\x82',
    "overlong UTF-8": b'{"order": 1, "name": "\xc0\xaf"}',
    "overlong quotation mark": b'{"order": 1, "name": \xc0\xa2x\xc0\xa2}',
    "surrogate in UTF-8": b'{"order": 1, "name": "\xed\xa0\x80"}',
    "beyond Unicode": b'{"order": 1, "name": "\xf4\x90\x80\x80"}',
    "Latin-1": '{"order": 1, "name": "Käse"}'.encode("latin-1"),
    "UTF-16 with a mark": '{"order": 1}'.encode("utf-16"),
    "UTF-16 without a mark": '{"order": 1}'.encode("utf-16-le"),
    "UTF-32": '{"order": 1}'.encode("utf-32"),
    "byte order mark": b'\xef\xbb\xbf{"order": 1}',
    "truncated JSON": b'{"order": 1, "name": "x',
    "trailing comma": b'{"order": 1,}',
    "single quotation marks": b"{'order': 1}",
    "comment": b'{"order": 1} // one',
    "two documents": b'{"order": 1}{"order": 2}',
    "zero byte behind": b'{"order": 1}\0',
    "control character in a text": b'{"order": 1, "name": "a\nb"}',
    "leading zero": b'{"order": 01}',
    "hexadecimal": b'{"order": 0x1}',
    "bad escape": rb'{"order": 1, "name": "\x41"}',
    "NaN": b'{"order": 1, "price": NaN}',
    "Infinity": b'{"order": 1, "price": Infinity}',
    "negative Infinity": b'{"order": 1, "price": -Infinity}',
    "number too large for a float": b'{"order": 1, "price": 1e999}',
    "number of 5,000 digits": b'{"order": 1' + b"0" * 5_000 + b"}",
    "key twice": b'{"order": 1, "order": 2}',
    "key twice, deep inside": b'{"order": 1, "more": [{"a": {"b": 1, "b": 1}}]}',
    "key twice, once escaped": rb'{"order": 1, "\u006frder": 2}',
    "100,000 arrays": b"[" * 100_000 + b"]" * 100_000,
    "100,000 arrays left open": b"[" * 100_000,
    "100,000 objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "100,000 arrays beside an order": b'{"order": 1, "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "XML": b'<?xml version="1.0"?><order>1</order>',
    "pickle": b"\x80\x04\x95\x0f\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x05order\x94K\x01s.",
    "gzip that does not say so": gzip.compress(b'{"order": 1}', mtime=0),
}

_INVALID: Final = {
    "number": b"17",
    "text": b'"order"',
    "null": b"null",
    "true": b"true",
    "array": b'[{"order": 1}]',
    "empty object": b"{}",
    "field missing": b'{"name": "x"}',
    "field is null": b'{"order": null}',
    "field is an object": b'{"order": {"order": 1}}',
    "word for a number": b'{"order": "one"}',
    "fraction for a whole number": b'{"order": 1.5}',
    "number for a text": b'{"order": 1, "name": 5}',
    "text too long": b'{"order": 1, "name": "' + b"x" * 101 + b'"}',
    "word that is not allowed": b'{"order": 1, "kind": "vase"}',
    "number too small": b'{"order": 1, "price": -0.01}',
    "wrong item in a list": b'{"order": 1, "lines": [1, 2, "three"]}',
    "thousand wrong items": json.dumps({"order": 1, "lines": ["x"] * 1_000}).encode(),
    "half a surrogate pair": rb'{"order": 1, "name": "\ud800"}',
}

_COMPRESSED: Final = gzip.compress(b'{"order": 1, "name": "' + b"x" * 2**24 + b'"}', mtime=0)


def _padded(size: int) -> bytes:
    return b'{"order": 1' + b" " * (size - 12) + b"}"


BODIES: Final = (
    *(Poison(f"body: {name}", Reason.UNDECODABLE, body) for name, body in _UNDECODABLE.items()),
    *(Poison(f"body: {name}", Reason.INVALID, body) for name, body in _INVALID.items()),
    Poison("body: one byte too many", Reason.TOO_LARGE, _padded(MAX_BODY + 1)),
    Poison("body: 16 MiB", Reason.TOO_LARGE, _padded(16 * 2**20)),
    Poison("body: 2 MiB that are no JSON", Reason.TOO_LARGE, b"\xff" * 2 * 2**20),
    Poison("body: gzip bomb", Reason.CONTENT_TYPE, _COMPRESSED, USUAL | {"content_encoding": b"gzip"}),
)
