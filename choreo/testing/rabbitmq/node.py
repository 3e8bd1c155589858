"""A private RabbitMQ node on 127.0.0.1: for tests, benchmarks and trying things out, never for production.

What nodes of one machine would share (name, ports, cookie, epmd, data, logs, plugins, configuration) is the
node's own and lies in one folder, so nodes run beside each other and beside a system one.
The environment variables are those of https://www.rabbitmq.com/docs/configure.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from choreo.errors import BrokerUnreachable, ConfigurationError
from choreo.testing.rabbitmq import probe
from choreo.testing.rabbitmq.ports import Ports
from choreo.testing.rabbitmq.process_group import ProcessGroup
from choreo.testing.rabbitmq.release import Release

FILES = {
    "ERL_CRASH_DUMP": "log/erl_crash.dump",
    "RABBITMQ_MNESIA_BASE": "data",
    "RABBITMQ_LOG_BASE": "log",
    "RABBITMQ_PID_FILE": "node.pid",
    "RABBITMQ_ENABLED_PLUGINS_FILE": "enabled_plugins",
    "RABBITMQ_CONF_ENV_FILE": "rabbitmq-env.conf",
    "RABBITMQ_CONFIG_FILE": "rabbitmq.conf",
    "RABBITMQ_CONFIG_FILES": "conf.d",
    "RABBITMQ_ADVANCED_CONFIG_FILE": "advanced.config",
    "RABBITMQ_GENERATED_CONFIG_DIR": "generated",
    "RABBITMQ_FEATURE_FLAGS_FILE": "feature_flags",
}


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """What nodes share that can form a cluster: the port of an epmd that is none of theirs, and the Erlang cookie."""

    epmd: int
    cookie: str


class Node:
    """A private node, made by `Node.start`; as a context manager it is stopped at the end.

    Its processes end when this process does, kill -9 included; ProcessGroup says what holds and what not.
    `config` (lines of rabbitmq.conf) and `plugins` may be changed and count from the next start on.
    """

    def __init__(self, directory: Path, release: Release, timeout: float, beside: Neighbourhood | None) -> None:
        self.directory = directory
        # From the folder, so that another start in the same folder finds the same data.
        self.name = f"choreo-{hashlib.blake2s(bytes(directory), digest_size=4).hexdigest()}@localhost"
        self.version = ""
        self.ports = Ports(0, 0, 0, 0, 0)
        self.config: list[str] = []
        self.plugins: list[str] = []
        self._release = release
        self._timeout = timeout
        self._beside = beside
        self._greets_as = {self.name.partition("@")[0]}  # a cluster greets with the name of its first node
        self._group: ProcessGroup | None = None
        self._vm: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(
        cls,
        directory: Path,
        *,
        root: Path | None = None,
        config: Iterable[str] = (),
        plugins: Iterable[str] = (),
        port: int | None = None,
        timeout: float = 60.0,
        beside: Neighbourhood | None = None,
    ) -> Node:
        """Starts a node with everything it writes in `directory`, and returns when AMQP answers.

        Data that is in the folder is kept. `root` is the root of a filesystem with a release of its own
        (Linux, as root); `config` are lines of rabbitmq.conf; `port` is the AMQP port in place of a free one;
        `timeout` is in seconds; `beside` is what it shares with nodes that it can `join`. Raises
        ConfigurationError (no server, no permission, port or folder in use) and BrokerUnreachable (it did not
        come up; the message has what it printed).
        """
        release = Release.find(root)
        node = cls(directory.resolve(), release, timeout, beside)
        node.config += config
        node.plugins += _known(plugins, release.plugins)
        for attempt in (1, 2, 3):
            chosen = node.ports = Ports.choose(port)
            if beside is not None:
                node.ports = replace(chosen, epmd=beside.epmd)
            try:
                node.start_again()
                break
            except BrokerUnreachable:
                if attempt == 3 or not chosen.any_taken():
                    raise
        return node

    @property
    def port(self) -> int:
        """The AMQP port on 127.0.0.1."""
        return self.ports.amqp

    @property
    def management_port(self) -> int:
        """The port of the management API; it answers when the plugin rabbitmq_management was asked for."""
        return self.ports.management

    @property
    def url(self) -> str:
        """AMQP URL with the default user and virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def management_url(self) -> str:
        """URL of the management API with the default user."""
        return f"http://guest:guest@127.0.0.1:{self.management_port}"

    @property
    def running(self) -> bool:
        """Whether the Erlang VM runs."""
        return self._vm is not None and self._vm.poll() is None

    @property
    def pid(self) -> int:
        """The Erlang VM's process id. Raises BrokerUnreachable when it does not run."""
        if self._vm is None or not self.running:
            raise BrokerUnreachable(f"the node in {self.directory} does not run", "start_again() starts it")
        return self._vm.pid

    def ctl(self, *arguments: str, timeout: float = 60.0) -> str:
        """Runs `rabbitmqctl --quiet ARGUMENTS` and returns what it printed.

        Raises BrokerUnreachable when the node does not run, and ConfigurationError when rabbitmqctl refuses
        or takes longer than `timeout` seconds.
        """
        if self._group is None or not self.running:
            raise BrokerUnreachable(f"the node in {self.directory} does not run", "start_again() starts it")
        command = self._release.command(self.directory, "rabbitmqctl", "--quiet", *arguments)
        try:
            done = self._group.run(command, self._environment(), timeout)
        except subprocess.TimeoutExpired:
            raise ConfigurationError(f"rabbitmqctl {arguments[0]}: no answer in {timeout:g} s") from None
        if done.returncode != 0:
            raise ConfigurationError(f"rabbitmqctl {arguments[0]}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def flush(self) -> None:
        """Has RabbitMQ write down which quorum queues it has, so that `kill` tests what it should.

        By itself it does so half a second later: kill -9 before that, and a quorum queue just declared comes
        back dead (3.10, 4.0) or empty (4.3), whatever was confirmed [measured: 3.10.8, 4.0.5, 4.3.6].
        """
        self.ctl("eval", "[dets:sync(Table) || Table <- dets:all()].")

    def join(self, other: Node) -> None:
        """Makes this node one of the cluster of `other`, started `beside` the same. What it held is forgotten.

        Errors: see `ctl`.
        """
        self.ctl("stop_app")
        self.ctl("join_cluster", other.name)
        self.ctl("start_app")
        self._greets_as |= other._greets_as

    def cut(self, others: Iterable[Node]) -> None:
        """Ends all connections with `others` and refuses new ones, in both directions, until `heal`: a partition.

        Erlang nodes with different cookies for each other do not talk; clients and rabbitmqctl are let in as before.
        """
        self._know(others, "cut", "erlang:disconnect_node(Node)")

    def heal(self, others: Iterable[Node]) -> None:
        """Ends the partition of `cut`; the nodes find each other by themselves."""
        self._know(others, self._cookie_file.read_text(), "net_kernel:connect_node(Node)")

    def _know(self, others: Iterable[Node], cookie: str, then: str) -> None:
        names = ", ".join(f"'{other.name}'" for other in others)
        self.ctl("eval", f"[begin erlang:set_cookie(Node, '{cookie}'), {then} end || Node <- [{names}]].")

    def pause(self) -> None:
        """Stops the VM in its tracks (SIGSTOP): its connections stay open and it says nothing more, until `resume`."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)  # its threads stop one after the other

    def resume(self) -> None:
        """Lets a paused VM go on."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self, timeout: float = 30.0) -> None:
        """Ends the node in order, after `timeout` seconds by force. Its folder stays. May be called twice."""
        if self._vm is not None:
            self._vm.terminate()
            self._vm.send_signal(signal.SIGCONT)  # a paused VM does not hear of it
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._vm.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """Ends the node by SIGKILL, as a crash would. `start_again` brings it back."""
        if self._group is not None:
            self._group.kill()
        self._group = self._vm = None

    def restart(self) -> None:
        """Stops the node in order and starts it again on the same data and ports."""
        self.stop()
        self.start_again()

    def start_again(self) -> None:
        """Starts the node on the same data and ports after `stop`, `kill` or a crash; errors: see `start`."""
        if self.running:
            raise ConfigurationError(f"the node in {self.directory} runs already", "restart() stops it first")
        self.kill()  # epmd outlives a VM that ended by itself
        self._group = ProcessGroup(self.directory / "lock")
        try:
            self._write_files()
            self._launch(self._group, time.monotonic() + self._timeout)
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _write_files(self) -> None:
        listeners = {"management": self.ports.management, "prometheus": self.ports.metrics}
        lines = ["log.file.level = warning"]
        for plugin, port in listeners.items():
            lines += [f"{plugin}.tcp.ip = 127.0.0.1", f"{plugin}.tcp.port = {port}"]
        try:
            for folder in ("home", "data", "log", "conf.d", "generated"):
                (self.directory / folder).mkdir(exist_ok=True)
            (self.directory / "rabbitmq.conf").write_text("\n".join([*lines, *self.config, ""]))
            (self.directory / "rabbitmq-env.conf").touch()
            (self.directory / "enabled_plugins").write_text(f"[{','.join(self.plugins)}].\n")
            if not self._cookie_file.exists():
                self._cookie_file.touch(mode=0o600)
                self._cookie_file.write_text(self._beside.cookie if self._beside else secrets.token_hex(16))
        except OSError as error:
            raise ConfigurationError(f"cannot write the node's folder: {error}", "choose another") from error

    def _launch(self, group: ProcessGroup, deadline: float) -> None:
        environment = self._environment()
        if self._beside is None:
            epmd = self._release.command(self.directory, "epmd", "-address", "127.0.0.1", "-port", str(self.ports.epmd))
            with (self.directory / "epmd.out").open("wb") as output:
                group.start(epmd, environment, output)
            self._wait(group, deadline, lambda: probe.accepts(self.ports.epmd))
        with (self.directory / "server.out").open("wb") as output:
            self._vm = group.start(self._release.command(self.directory, "rabbitmq-server"), environment, output)
        self._wait(group, deadline, self._greets)
        if "rabbitmq_management" in self.plugins:  # which says 500 for a moment longer [measured: 4.3.6]
            self._wait(group, deadline, lambda: probe.manages(self.management_port))

    def _wait(self, group: ProcessGroup, deadline: float, ready: Callable[[], bool]) -> None:
        """Returns when `ready`; raises when a process of the group ended before, or the deadline passed."""
        while not ready():
            if group.ended(within=0.01):
                what = "the node ended while it was starting"
            elif time.monotonic() > deadline:
                what = f"the node did not answer on 127.0.0.1:{self.port} within {self._timeout:g} s"
            else:
                continue
            raise BrokerUnreachable(f"{what}{self._said()}", f"its log is in {self.directory / 'log'}")

    def _greets(self) -> bool:
        """Whether this very node, and not another that got the port first, opens an AMQP conversation."""
        server = probe.greeting(self.port)
        self.version = str(server.get("version", ""))
        return str(server.get("cluster_name", "")).partition("@")[0] in self._greets_as

    def _said(self) -> str:
        """What the node printed, for an error message: from its first error on, else the end."""
        file = self.directory / "server.out"
        lines = file.read_text(errors="replace").splitlines() if file.exists() else []
        errors = (at for at, line in enumerate(lines) if "[error]" in line or "BOOT FAILED" in line)
        start = next(errors, max(0, len(lines) - 12))
        return "\n  ".join(["; it printed:", *filter(str.strip, lines[start : start + 12])]) if lines else ""

    @property
    def _cookie_file(self) -> Path:
        return self.directory / "home" / ".erlang.cookie"

    def _environment(self) -> dict[str, str]:
        """The whole environment of the node: nothing of ours is passed on, RABBITMQ_* least of all."""
        base = self._release.folder(self.directory)
        loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
        own = {name: str(base / path) for name, path in FILES.items()}
        return (
            own
            | self._release.environment(self.directory)
            | {
                # The script then becomes the Erlang VM instead of watching over it: its process id is the VM's.
                "RUNNING_UNDER_SYSTEMD": "true",
                "ERL_EPMD_ADDRESS": "127.0.0.1",
                "ERL_EPMD_PORT": str(self.ports.epmd),
                # Else every Erlang VM, rabbitmqctl's too, starts an epmd that outlives all when ours is gone.
                "ERL_AFLAGS": "-start_epmd false",
                "RABBITMQ_NODENAME": self.name,
                "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
                "RABBITMQ_NODE_PORT": str(self.ports.amqp),
                "RABBITMQ_DIST_PORT": str(self.ports.distribution),
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": loopback,
                "RABBITMQ_CTL_ERL_ARGS": loopback,
            }
        )


def _known(plugins: Iterable[str], known: list[str]) -> list[str]:
    """The plugins as a list; ConfigurationError for one that the release does not have: RabbitMQ ignores it."""
    names = list(plugins)
    if known and (unknown := set(names) - set(known)):
        raise ConfigurationError(f"RabbitMQ has no plugin {', '.join(unknown)}", f"known: {', '.join(known)}")
    return names
