"""Child processes that end together: when told to, or when this process ends in whatever way."""

from __future__ import annotations

import contextlib
import fcntl
import resource
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from choreo import forks
from choreo.errors import ConfigurationError

# Open files of a broker, as far as we may have so many: what RabbitMQ's guide for production asks for. Not the hard
# limit as it is: an Erlang VM makes tables as long as its limit, which is a thousand million in some containers.
_FILES: Final = 65_536


class ProcessGroup:
    """A process group of our own, and an exclusive lock on a file for as long as it lives.

    Its leader is a shell that reads a pipe from this process and kills the group when the pipe ends. That
    happens, on Linux and macOS, when this process ends (kill -9 too) and when this object is collected. Only
    somebody who kills that shell first defeats it. A parent-death signal would not do: it is
    Linux only, and comes already when the thread that started the child ends.
    """

    def __init__(self, lock: Path) -> None:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = lock.open("w")
        except OSError as error:
            raise ConfigurationError(f"cannot write {lock.parent}: {error}", "choose another folder") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"another node runs in {lock.parent}"
                raise ConfigurationError(message, "stop that one, or choose another folder") from None
            # The leader inherits the lock: the folder is free when the group is gone, and not before.
            self._leader = subprocess.Popen(
                ["/bin/sh", "-c", "read _; kill -KILL 0"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[file.fileno()],
                process_group=0,
            )
        assert self._leader.stdin is not None
        forks.keep_private(self._leader.stdin.fileno())
        self._members: list[subprocess.Popen[bytes]] = []

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], output: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        """Starts a member that prints to a file. Raises ConfigurationError when there is no such program."""
        try:
            with _enough_files():
                member = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    process_group=self._leader.pid,
                )
        except OSError as error:
            raise ConfigurationError(
                f"{command[0]} does not start: {error}", "see that Erlang is installed and on PATH"
            ) from error
        self._members.append(member)
        return member

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in the group to its end, at most `timeout` seconds (subprocess.TimeoutExpired)."""
        return subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            process_group=self._leader.pid,
            check=False,
        )

    def ended(self, within: float) -> bool:
        """Whether a member has ended, or does so in the next `within` seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._members[-1].wait(within)
        return any(member.poll() is not None for member in self._members)

    def kill(self) -> None:
        """Ends all by SIGKILL, a command that is running included, and returns when they are gone."""
        for member in self._members:
            member.kill()
        if self._leader.stdin is not None:
            self._leader.stdin.close()
        for process in (self._leader, *self._members):
            process.wait()


@contextlib.contextmanager
def _enough_files() -> Iterator[None]:
    """Let what is started meanwhile open as many files as it may have need of: 1,024, a usual limit, is no broker's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        yield
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
