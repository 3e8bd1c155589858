"""The file by which the commands of a project find the broker of its `choreo dev`: `.choreo/dev.json`.

Who lit it holds a lock on it for as long as it lives, however it ends; a file that nobody holds is a leftover.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from choreo.errors import ConfigurationError

FOLDER: Final = ".choreo"
_FILE: Final = "dev.json"
_PATIENCE: Final = 0.5  # seconds: somebody who only looks holds the lock for a moment


@dataclass(frozen=True, slots=True)
class Found:
    """The broker of a `choreo dev` that is running: its URL, what kind of broker it is, and the process."""

    url: str
    kind: str
    pid: int

    @property
    def text(self) -> str:
        """One line that says what it is."""
        return f"{self.url}, the {self.kind} broker of `choreo dev` (process {self.pid})"


def find(root: Path) -> Found | None:
    """Return the broker of the `choreo dev` that runs in the project `root`; None when none does."""
    try:
        with (root / FOLDER / _FILE).open(encoding="utf-8") as file:
            if not _is_held(file):
                return None
            content = json.load(file)
        return Found(str(content["url"]), str(content["kind"]), int(content["pid"]))
    except (OSError, ValueError, KeyError, TypeError):  # not there, or just being written
        return None


class Beacon:
    """The file, held by this process."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def shine(self, url: str, kind: str) -> None:
        """Let the commands of the project find the broker at `url`, which holds no password but guest's."""
        self._write({"url": url, "kind": kind, "pid": os.getpid()})

    def _write(self, content: dict[str, Any]) -> None:
        self._file.seek(0)
        self._file.truncate()
        json.dump(content, self._file)
        self._file.flush()


@contextmanager
def light(root: Path) -> Iterator[Beacon]:
    """Hold the file of the project `root`; nobody finds a broker by it until it shines. It is gone at the end.

    Raises ConfigurationError when another `choreo dev` runs there, or the file cannot be written.
    """
    folder = root / FOLDER
    path = folder / _FILE
    try:
        folder.mkdir(exist_ok=True)
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}", "mend its permissions") from None
    with file:
        if not _locked(file):
            other = find(root)
            which = f" (process {other.pid}, {other.url})" if other is not None else ""
            raise ConfigurationError(
                f"choreo dev runs already in {root}{which}", "end it with Ctrl-C, or join it: choreo run NAME"
            )
        beacon = Beacon(file)
        beacon._write({})  # noqa: SLF001 - a leftover must not shine under our lock
        try:
            yield beacon
        finally:
            with suppress(OSError):
                path.unlink()


def _locked(file: IO[str]) -> bool:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        else:
            return True


def _is_held(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False
