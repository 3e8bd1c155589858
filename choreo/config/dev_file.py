"""The file by which the commands of a project find the broker of its `choreo dev`: `.choreo/dev.json`.

Who lit it holds a lock on it for as long as it lives, however it ends; a file that nobody holds is a leftover.
Nobody but its user can open the file, and so hold it. It is never written through a link, and what is read from it is
what `choreo dev` writes, or nothing.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from choreo import forks
from choreo.config import ownership
from choreo.errors import ConfigurationError

FOLDER: Final = ".choreo"
_FILE: Final = "dev.json"
_NEXT: Final = "dev.json.new"
_LOCK: Final = "dev.lock"  # held by the one `choreo dev` of the project
_IGNORED: Final = ".gitignore"
_PATIENCE: Final = 0.5  # seconds: one that ends gives up its lock a moment later
_MAX_SIZE: Final = 4096  # bytes
_URL: Final = re.compile(r"amqp://127\.0\.0\.1:[0-9]{1,5}")
_KIND: Final = re.compile(r"[A-Za-z]+( [A-Za-z]+)?")
# A link is not followed, and a pipe is not waited for.
_CAREFUL: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MINE: Final = 0o600


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
    found = _look(root)
    return found if isinstance(found, Found) else None


def doubt(root: Path) -> str | None:
    """Return why the file in the project `root` is not used although somebody holds it; None when nothing is odd."""
    found = _look(root)
    return found if isinstance(found, str) else None


def _look(root: Path) -> Found | str | None:
    path = root / FOLDER / _FILE
    with ExitStack() as stack:
        try:
            folder = _folder(root, stack)
            file = _opened(_FILE, os.O_RDONLY, folder, stack)
            if not _is_held(file):
                return None
            if (why := _distrust(root / FOLDER, folder) or _distrust(path, file)) is not None:
                return f"{path} is not used: {why}"
            return _read(os.read(file, _MAX_SIZE)) or f"{path} is not used: `choreo dev` did not write it"
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):  # not there
                return None
            return f"{path} is not used: {_reason(error)}"


def _read(content: bytes) -> Found | None:
    try:
        written = json.loads(content)
        url, kind, pid = (written[each] for each in ("url", "kind", "pid"))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    right = isinstance(url, str) and isinstance(kind, str) and type(pid) is int and pid > 0
    return Found(url, kind, pid) if right and _URL.fullmatch(url) and _KIND.fullmatch(kind) else None


class Beacon:
    """The file, held by this process."""

    def __init__(self, folder: int, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._process = os.getpid()

    def shine(self, url: str, kind: str) -> None:
        """Let the commands of the project find the broker at `url`, which holds no password but guest's.

        The file is complete, and held, before it has its name. Raises ConfigurationError when it cannot be written.
        """
        try:
            self._unlink(_NEXT)
            file = _opened(_NEXT, os.O_WRONLY | os.O_CREAT | os.O_EXCL, self._folder, self._stack)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(file, json.dumps({"url": url, "kind": kind, "pid": os.getpid()}).encode())
            os.rename(_NEXT, _FILE, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except OSError as error:
            raise ConfigurationError(f"{FOLDER}/{_FILE} cannot be written: {_reason(error)}", "remove it") from None

    def douse(self) -> None:
        """Take the file away; a child that was forked off leaves it alone."""
        if os.getpid() == self._process:
            self._unlink(_FILE)

    def _unlink(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._folder)


@contextmanager
def light(root: Path) -> Iterator[Beacon]:
    """Be the `choreo dev` of the project `root`; nobody finds a broker by its file until it shines.

    It is gone at the end. Raises ConfigurationError when another one runs there, or the file cannot be written.
    """
    path = root / FOLDER
    with ExitStack() as stack:
        try:
            with suppress(FileExistsError):
                path.mkdir(mode=0o700)
            folder = _folder(root, stack)
            lock = _opened(_LOCK, os.O_RDWR | os.O_CREAT, folder, stack)
            why = _distrust(path, folder) or _distrust(path / _LOCK, lock)
        except OSError as error:
            raise _unusable(path, _reason(error)) from None
        if why is not None:
            raise _unusable(path, why)
        if not _locked(lock):
            other = find(root)
            which = f" (process {other.pid}, {other.url})" if other is not None else ""
            raise ConfigurationError(
                f"choreo dev runs already in {root}{which}", "end it with Ctrl-C, or join it: choreo run NAME"
            )
        beacon = Beacon(folder, stack)
        try:
            beacon.douse()  # a leftover, or a link that somebody put there
            _ignore(folder, stack)
        except OSError as error:
            raise _unusable(path, _reason(error)) from None
        try:
            yield beacon
        finally:
            with suppress(OSError):
                beacon.douse()


def _unusable(path: Path, why: str) -> ConfigurationError:
    return ConfigurationError(f"{path / _FILE} cannot be written: {why}", f"remove {path}: it will be created again")


def _folder(root: Path, stack: ExitStack) -> int:
    folder = os.open(root / FOLDER, os.O_RDONLY | os.O_DIRECTORY | _CAREFUL)
    stack.callback(os.close, folder)
    return folder


def _opened(name: str, how: int, folder: int, stack: ExitStack) -> int:
    """Return a descriptor of the file, which is closed with `stack`."""
    file = os.open(name, how | _CAREFUL, _MINE, dir_fd=folder)
    stack.callback(os.close, file)
    forks.keep_private(file)  # a lock lives as long as the last descriptor of it, in whatever process
    return file


def _ignore(folder: int, stack: ExitStack) -> None:
    """Keep the folder out of git, unless there is such a file, or a link of that name, already."""
    with suppress(FileExistsError):
        os.write(_opened(_IGNORED, os.O_WRONLY | os.O_CREAT | os.O_EXCL, folder, stack), b"*\n")


def _distrust(path: Path, opened: int) -> str | None:
    """Return why what is open as `opened` is not the file, or folder, of a `choreo dev` that we trust."""
    found = os.fstat(opened)
    if stat.S_ISDIR(found.st_mode):
        return ownership.doubt(path)
    if not stat.S_ISREG(found.st_mode):
        return f"{path} is not a regular file"
    if found.st_nlink > 1:
        return f"{path} is a hard link to another file"
    if not ownership.is_ours(path, found):
        return f"{path} is open to other users, or belongs to one"
    return None


def _reason(error: OSError) -> str:
    linked = error.errno in (errno.ELOOP, errno.EMLINK, errno.ENOTDIR)
    return "it, or its folder, is a link or a file" if linked else error.strerror or type(error).__name__


def _locked(file: int) -> bool:
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


def _is_held(file: int) -> bool:
    """Say whether somebody holds the lock. It is taken for a moment, which no `choreo dev` ever waits for."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a pipe has no lock on some systems
        return False
    fcntl.flock(file, fcntl.LOCK_UN)
    return False
