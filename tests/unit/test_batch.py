"""Where bodies come from: read once, checked all, sent as they were checked."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from choreo.errors import PayloadError, UsageError
from choreo.operate import batch as room
from choreo.operate.batch import Batch, opened
from choreo.operate.payload import Form

FORM = Form("any.thing", None, (), 20)


def lines(data: bytes) -> list[tuple[int | None, bytes]]:
    with Batch.of_lines(FORM, BytesIO(data), "stdin") as batch:
        found = list(batch)
        assert batch.total == len(found)
        assert list(batch) == found
        return found


def test_lines_keep_their_numbers():
    """Blank lines count, so that a person finds the line; CRLF and a missing last line break do no harm."""
    assert lines(b'1\r\n\n  \n {"a": 2} \n"x"') == [(1, b"1"), (4, b'{"a": 2}'), (5, b'"x"')]


def test_more_than_memory_waits_on_disk(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(room, "_IN_MEMORY", 100)
    assert lines(b"".join(b"%d\n" % number for number in range(1000))) == [
        (number + 1, b"%d" % number) for number in range(1000)
    ]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_limit_is_for_a_line_without_its_end(end: bytes):
    assert lines(b'"' + b"x" * 18 + b'"' + end) == [(1, b'"' + b"x" * 18 + b'"')]
    for more in (b"x", b"x" * 5, b"x" * 5000):
        with pytest.raises(PayloadError, match="line 2 of stdin has more than 20 bytes"):
            lines(b"1\n" + b"x" * 20 + more + end)


def test_bad_line_is_named():
    with pytest.raises(PayloadError, match="line 3 of stdin: the body is not JSON"):
        lines(b"1\n\n{\n")


@pytest.mark.parametrize("data", [b"", b"\n", b" \n\r\n"])
def test_nothing_to_send(data: bytes):
    with pytest.raises(PayloadError, match="stdin is empty"):
        lines(data)
    with pytest.raises(PayloadError, match="a file is empty"):
        Batch.of_one(FORM, BytesIO(data), "a file")


def test_one_body():
    """Line breaks are its own."""
    with Batch.of_one(FORM, BytesIO(b'\n{"a":\n1}\n'), "it") as batch:
        assert (list(batch), batch.total) == ([(None, b'{"a":\n1}')], 1)
    with pytest.raises(PayloadError, match="it has more than 20 bytes"):
        Batch.of_one(FORM, BytesIO(b"x" * 21), "it")


def test_unreadable_things(tmp_path: Path):
    """Nothing of the operating system's own comes through."""
    for path, reason in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UsageError, match=f"cannot be read: {reason}"), opened(f"@{path}", None):
            pass
    with pytest.raises(UsageError, match="stdin is closed"):
        opened("-", None)
    with pytest.raises(UsageError, match="names no file"), opened("@", None):
        pass

    class Broken:
        def readline(self, size: int) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(UsageError, match="'disk' cannot be read: Input/output error"):
        Batch.of_lines(FORM, cast("BinaryIO", Broken()), "disk")


def test_data_is_text_stdin_or_a_file(tmp_path: Path):
    (tmp_path / "a.json").write_bytes(b"[1]")
    stdin = BytesIO(b"[2]")
    for data, expected in ((None, b"{}"), ("[0]", b"[0]"), (f"@{tmp_path}/a.json", b"[1]"), ("-", b"[2]")):
        with opened(data, stdin) as (source, _):
            assert source.read() == expected
    assert not stdin.closed
    with opened(os.fsdecode(b"\xff"), None) as (source, _):
        assert source.read() == b"\xff"
