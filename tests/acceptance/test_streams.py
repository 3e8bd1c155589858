"""Standard streams that are closed, full, or read by nobody: they cost what would be written there, and no work."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.acceptance.test_misbehaving import AGENT, NAMESPACE, Stage
from tests.conftest import environment
from tests.waiting import until

HANDLING = """
from pathlib import Path

agent = Agent("NAME")

@agent.on
async def work(placed: Placed) -> None:
    print("x" * 100_000, flush=True)
    Path(f"handled-{placed.order}").touch()
"""

Program = Callable[[str], subprocess.Popen[bytes]]

full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


@pytest.fixture
def stage(project: Path, start_choreo: Callable[..., object], broker_url: str) -> Stage:
    stage = Stage(project, start_choreo, broker_url)  # type: ignore[arg-type]
    (project / "agents" / f"{stage.agent}.py").write_text((AGENT + HANDLING).replace("NAME", stage.agent))
    return stage


@pytest.fixture
def program(project: Path, stage: Stage, broker_url: str) -> Iterator[Program]:
    """Starts a worker by a shell's command line, with what is redirected there."""
    started: list[subprocess.Popen[bytes]] = []

    def start(redirected: str) -> subprocess.Popen[bytes]:
        command = f"exec {shlex.quote(sys.executable)} -m choreo run {stage.agent} {redirected}"
        settings = {"CHOREO_URL": broker_url, "CHOREO_NAMESPACE": NAMESPACE, "CHOREO_LOG_LEVEL": "debug"}
        started.append(subprocess.Popen(["/bin/sh", "-c", command], cwd=project, env=environment(settings)))
        return started[-1]

    yield start
    for each in started:
        if each.poll() is None:
            each.kill()
        each.wait()


CLOSED = [
    "</dev/null <&- >/dev/null 2>&1",
    "</dev/null >&- 2>/dev/null",
    "</dev/null >/dev/null 2>&-",
    "<&- >&- 2>&-",
]
FULL = ["</dev/null >/dev/full 2>/dev/null", "</dev/null >/dev/null 2>/dev/full", "</dev/null >/dev/full 2>/dev/full"]


@pytest.mark.parametrize("redirected", [*CLOSED, *(pytest.param(each, marks=full) for each in FULL)])
def test_worker_works_and_ends_with_0_whatever_its_streams_are(
    program: Program, stage: Stage, project: Path, redirected: str
) -> None:
    """On uvloop, where it is installed: what a reaction prints and what is logged decides nothing, and neither does
    the end of the program."""
    process = program(redirected)
    stage.wait_until_bound()
    stage.send("1")
    until((project / "handled-1").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_worker_whose_output_nobody_reads_any_more_works_on(project: Path, stage: Stage, broker_url: str) -> None:
    """`choreo run | head` ends head alone: the worker is stopped by a signal, and by nothing else."""
    readable, writable = os.pipe()
    with open(writable, "wb") as pipe:  # noqa: PTH123 - a descriptor
        process = start_with(project, stage, broker_url, pipe)
    os.close(readable)
    try:
        stage.wait_until_bound()
        stage.send("1")
        until((project / "handled-1").exists)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def start_with(project: Path, stage: Stage, url: str, pipe: IO[bytes]) -> subprocess.Popen[bytes]:
    settings = environment({"CHOREO_URL": url, "CHOREO_NAMESPACE": NAMESPACE})
    command = [sys.executable, "-m", "choreo", "run", stage.agent]
    return subprocess.Popen(command, cwd=project, env=settings, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
