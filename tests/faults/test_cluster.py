"""The node that leads an agent's queue is killed, paused, or cut off from the others, while events stream through."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from choreo.testing.rabbitmq import probe
from choreo.testing.rabbitmq.cluster import Cluster
from choreo.testing.rabbitmq.node import Node
from tests.conftest import ROOT
from tests.faults.conftest import Scale
from tests.faults.report import Row
from tests.faults.stream import Stream
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import Running

RATE = 50.0  # events a second
LONGEST_GAP = 15.0  # seconds
RESUMED = 3.0  # seconds for which a node that was paused may believe that it still leads
# What a silent node costs its clients: until the connections count as dead, (2 + 1) * 3 s, and until it is passed over.
PARAMETERS = "?heartbeat=2&connection_timeout=1s"
# Without it, Erlang takes a silent node for a living one for a minute, and 3.10 waits for it.
CONFIG = ["cluster_partition_handling = pause_minority", "net_ticktime = 5"]

Fault = Callable[[Cluster, Node], None]


@pytest.fixture(scope="module")
def cluster(
    new_node: object, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    if request.config.getoption("--faults") == "short":
        pytest.skip("three nodes take 15 s to form a cluster: part of make faults")
    cluster = Cluster.start(tmp_path_factory.mktemp("cluster"), root=ROOT, config=CONFIG)
    yield cluster
    cluster.kill()


def kill(cluster: Cluster, leader: Node) -> None:
    leader.flush()
    leader.kill()


def pause(cluster: Cluster, leader: Node) -> None:
    leader.pause()


def cut(cluster: Cluster, leader: Node) -> None:
    leader.cut(cluster.others(leader))


def start_again(cluster: Cluster, leader: Node) -> None:
    leader.start_again()


def resume(cluster: Cluster, leader: Node) -> None:
    """Lets it go on, and then starts it again: 3.10 takes itself out of service when it hears what it has missed, and
    stays away for more than 25 s [measured: 3.10.8 with pause_minority]."""
    leader.resume()
    time.sleep(RESUMED)
    leader.restart()


def heal(cluster: Cluster, leader: Node) -> None:
    leader.heal(cluster.others(leader))


def whole(cluster: Cluster) -> bool:
    """Whether every node knows both others and lets clients in."""
    return all(
        probe.greeting(node.port) and node.ctl("eval", "length(nodes()).").strip() == "2" for node in cluster.nodes
    )


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("name", "fault", "mend"),
    [
        ("leader of three nodes killed", kill, start_again),
        ("leader of three nodes paused", pause, resume),
        ("leader in the minority", cut, heal),
    ],
)
async def test_leader_that_fails_loses_nothing(
    cluster: Cluster,
    start_choreo: Callable[..., Running],
    project: Path,
    namespace: str,
    scale: Scale,
    report: Callable[[Row], None],
    name: str,
    fault: Fault,
    mend: Fault,
) -> None:
    """The other two nodes elect a leader; workers and publisher find them, and everything confirmed is handled."""
    cluster.nodes[0].ctl("add_vhost", namespace)
    cluster.nodes[0].ctl("set_permissions", "--vhost", namespace, "guest", ".*", ".*", ".*")
    url = ",".join(f"{node.url}{namespace}{PARAMETERS}" for node in cluster.nodes)
    stream = Stream(project, start_choreo, url, namespace)
    workers = [stream.start(), stream.start()]
    gaps: list[float] = []
    async with stream.flowing(RATE):
        assert await stream.flows(time.monotonic(), within=60)
        for _ in range(scale.of(5, short=0)):
            leader = await asyncio.to_thread(cluster.leader, stream.names.queue("desk"), namespace)
            began = time.monotonic()
            await asyncio.to_thread(fault, cluster, leader)
            await stream.flows(time.monotonic(), within=2 * LONGEST_GAP)
            await asyncio.to_thread(mend, cluster, leader)
            await eventually(lambda: asyncio.to_thread(whole, cluster), within=60)
            assert await stream.flows(time.monotonic(), within=90)
            gaps.append(stream.gap(began))
    account = await stream.account()
    report(
        Row(
            fault=name,
            repetitions=len(gaps),
            events=account.confirmed,
            lost=account.lost,
            duplicated=account.duplicated,
            worst_recovery=max(gaps),
            must=f"lost 0, no gap over {LONGEST_GAP:.0f} s",
            met=account.lost == 0 and not account.dead and max(gaps) <= LONGEST_GAP,
            note=f"all gaps: {', '.join(f'{gap:.1f}' for gap in gaps)} s; {PARAMETERS}, {', '.join(CONFIG)}",
        )
    )
    assert (account.lost, account.dead) == (0, {})
    if max(gaps) > LONGEST_GAP and fault is cut and cluster.nodes[0].version >= "4.3":
        pytest.xfail(
            "4.3 has no pause_minority: a node that is cut off keeps its consumers, whose queue looks empty to it"
        )
    assert max(gaps) <= LONGEST_GAP
    assert [worker.process.poll() for worker in workers] == [None, None]
    cluster.nodes[0].ctl("delete_vhost", namespace)
