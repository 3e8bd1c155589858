"""Where bodies come from: the command line, a file or a stream. All are checked before the first one is published."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from tempfile import SpooledTemporaryFile, gettempdir
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

from choreo.errors import ChoreoError, PayloadError, UsageError
from choreo.operate.payload import Form, too_large

_PATH: Final = re.compile(r"[\w.~/-]+")  # what somebody types who means a file
_FIELD: Final = re.compile(r"[A-Za-z_][\w.]*=")  # and who means a field
_IN_MEMORY: Final = 8 * 2**20  # bytes of checked bodies; more of them wait on disk


class Batch:
    """Checked bodies, as many as fit on disk. A context manager; iterate over it for pairs of line number and body.

    The number is None for a body that is not one of many lines. What was checked is what is sent: the bodies are kept
    as they will go out, so a file that changes meanwhile, or a stream that can be read only once, does no harm.
    """

    def __init__(self) -> None:
        self.total = 0
        self._by_line = False
        self._spool: SpooledTemporaryFile[bytes] = SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115

    @classmethod
    def of_one(cls, form: Form, source: BinaryIO, name: str) -> Self:
        """Read one body from `source`, which messages call `name`. Raises PayloadError."""
        data = _reading(lambda: source.read(form.max_body + 1), name)
        if len(data) > form.max_body:
            raise too_large(name, form.max_body)
        if not data.strip():
            raise PayloadError(f"{name} is empty", "nothing was sent; an event without fields is {}")
        batch = cls()
        batch._add(form.body(data))
        return batch

    @classmethod
    def of_lines(cls, form: Form, source: BinaryIO, name: str, on_checked: Callable[[], None] | None = None) -> Self:
        """Read one body per line of `source`; blank lines are passed over. Raises PayloadError that names the line."""
        batch = cls()
        batch._by_line = True
        try:
            batch._fill(form, source, name, on_checked or _nothing)
        except BaseException:
            batch.close()
            raise
        return batch

    def __iter__(self) -> Iterator[tuple[int | None, bytes]]:
        self._spool.seek(0)
        if not self._by_line:
            yield None, self._spool.read()
            return
        for number, line in enumerate(self._spool, start=1):
            if line != b"\n":
                yield number, line[:-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the memory and the disk."""
        self._spool.close()

    def _fill(self, form: Form, source: BinaryIO, name: str, on_checked: Callable[[], None]) -> None:
        number = 0
        while line := _reading(lambda: source.readline(form.max_body + len(b"\r\n")), name):
            number += 1
            if len(line.rstrip(b"\r\n")) > form.max_body:
                raise too_large(f"line {number} of {name}", form.max_body)
            if not line.strip():
                self._keep(b"\n")
                continue
            try:
                self._add(form.body(line.strip()))
            except PayloadError as error:
                raise PayloadError(f"line {number} of {name}: {error.message}", error.way_out) from None
            on_checked()
        if not self.total:
            raise PayloadError(f"{name} is empty", "nothing was sent; --lines reads one JSON object per line")
        self._keep(b"")  # whatever is still in a buffer finds room on disk now, or never

    def _add(self, body: bytes) -> None:
        self._keep(body + b"\n" if self._by_line else body)
        self.total += 1

    def _keep(self, line: bytes) -> None:
        try:
            self._spool.write(line)
            if not line:
                self._spool.flush()
        except OSError as error:
            raise ChoreoError(
                f"checked events cannot be kept in {gettempdir()}: {error.strerror}",
                "nothing was sent; name a folder with more room in TMPDIR",
            ) from error


def _nothing() -> None: ...


def opened(data: str | None, stdin: BinaryIO | None) -> AbstractContextManager[tuple[BinaryIO, str]]:
    """Return what `data` stands for, and what messages call it.

    None is an event without fields, ``-`` is `stdin`, ``@path`` a file, anything else the JSON itself. Raises
    UsageError when it cannot be opened.
    """
    if data is None:
        return nullcontext((BytesIO(b"{}"), "the event"))
    if data == "-":
        if stdin is None:
            raise UsageError("stdin is closed", "give the event as text, or as @file")
        return nullcontext((stdin, "stdin"))
    if data.startswith("@"):
        return _file(data[1:])
    if _FIELD.match(data):
        raise UsageError(f"{data!r:.80} is not JSON", f"nothing was sent; set a field with --set {data:.80}")
    if _PATH.fullmatch(data) and not _is_json(data):
        what = "is a file, not JSON" if Path(data).is_file() else "is neither JSON nor a file"
        raise UsageError(f"{data!r:.80} {what}", f"nothing was sent; name a file with @: @{data:.80}; stdin is -")
    return nullcontext((BytesIO(os.fsencode(data)), "the event"))


def _is_json(data: str) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


@contextmanager
def _file(path: str) -> Iterator[tuple[BinaryIO, str]]:
    if not path:
        raise UsageError("@ names no file", "such as @order.json")
    file = _reading(lambda: open(path, "rb"), path)  # noqa: SIM115, PTH123
    with file:
        yield file, path


def _reading(read: Callable[[], Any], name: str) -> Any:
    try:
        return read()
    except OSError as error:
        raise UsageError(f"{name!r} cannot be read: {error.strerror}", "nothing was sent") from error
