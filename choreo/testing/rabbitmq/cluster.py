"""A cluster of private nodes on one machine, whose members are killed, paused and cut off one by one."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from choreo.errors import BrokerUnreachable
from choreo.testing.rabbitmq import probe
from choreo.testing.rabbitmq.node import Neighbourhood, Node
from choreo.testing.rabbitmq.ports import Ports
from choreo.testing.rabbitmq.process_group import ProcessGroup
from choreo.testing.rabbitmq.release import Release

EPMD_TIMEOUT = 10.0  # seconds
# The name of the leader that the queue's record has is out of date for a while after each election.
MEMBERS = "{Name, _} = amqqueue:get_pid(Queue), {ok, _, {_, Leader}} = ra:members({Name, node()})"


class Cluster:
    """Nodes of one cluster, made by `Cluster.start`; as a context manager all of them are stopped at the end.

    They share an epmd that belongs to none of them, as it would outlive a VM that crashes.
    """

    def __init__(self, nodes: Sequence[Node], epmd: ProcessGroup) -> None:
        self.nodes = tuple(nodes)
        self._epmd = epmd

    @classmethod
    def start(
        cls,
        directory: Path,
        *,
        size: int = 3,
        root: Path | None = None,
        config: Iterable[str] = (),
        plugins: Iterable[str] = (),
    ) -> Self:
        """Starts `size` nodes below `directory`, joins them, and returns when all answer. See Node.start."""
        release, lines, wanted = Release.find(root), list(config), list(plugins)
        neighbourhood = Neighbourhood(Ports.choose().epmd, secrets.token_hex(16))
        epmd = _start_epmd(release, directory.resolve(), neighbourhood.epmd)

        def start(number: int) -> Node:
            return Node.start(directory / str(number), root=root, config=lines, plugins=wanted, beside=neighbourhood)

        try:
            with ThreadPoolExecutor(size) as pool:
                nodes = list(pool.map(start, range(size)))
            for node in nodes[1:]:
                node.join(nodes[0])
        except BaseException:
            epmd.kill()
            raise
        return cls(nodes, epmd)

    @property
    def url(self) -> str:
        """The AMQP URLs of all nodes, with commas between."""
        return ",".join(node.url for node in self.nodes)

    def others(self, node: Node) -> tuple[Node, ...]:
        """All nodes but this one."""
        return tuple(other for other in self.nodes if other is not node)

    def leader(self, queue: str, vhost: str = "/") -> Node:
        """The node that leads the quorum queue, as its members have agreed. Errors: see Node.ctl."""
        asked = next(node for node in self.nodes if node.running)
        lookup = f'rabbit_amqqueue:lookup(rabbit_misc:r(<<"{vhost}">>, queue, <<"{queue}">>))'
        found = asked.ctl("eval", f"{{ok, Queue}} = {lookup}, {MEMBERS}, Leader.")
        return next(node for node in self.nodes if node.name == found.strip().strip("'"))

    def stop(self) -> None:
        """Ends all nodes in order."""
        for node in self.nodes:
            node.stop()
        self._epmd.kill()

    def kill(self) -> None:
        """Ends all nodes by SIGKILL."""
        for node in self.nodes:
            node.kill()
        self._epmd.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _start_epmd(release: Release, directory: Path, port: int) -> ProcessGroup:
    group = ProcessGroup(directory / "lock")
    with (directory / "epmd.out").open("wb") as output:
        command = release.command(directory, "epmd", "-address", "127.0.0.1", "-port", str(port))
        group.start(command, release.environment(directory), output)
    deadline = time.monotonic() + EPMD_TIMEOUT
    while not probe.accepts(port):
        if group.ended(within=0.01) or time.monotonic() > deadline:
            group.kill()
            raise BrokerUnreachable(f"epmd does not answer on 127.0.0.1:{port}", f"see {directory / 'epmd.out'}")
    return group
