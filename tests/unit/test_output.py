"""Output that nobody reads yet, and texts that are no UTF-8."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import until

PROGRAM = """
import sys, typer
from choreo.cli import _steady_output
_steady_output()
typer.echo("ready \\udcff", err=True)
typer.echo("x" * 200_000)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux whether a process waits")
def test_output_is_whole_although_a_signal_comes_while_the_pipe_is_full() -> None:
    """Without a buffer Python gives up in the middle, and nobody is told [measured: CPython 3.11]."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline() == "ready \\udcff\n"
        state = Path(f"/proc/{process.pid}/status")
        until(lambda: "State:\tS" in state.read_text())  # it sleeps: the pipe is full
        process.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGCONT)
        assert len(process.stdout.read()) == 200_001
        assert process.wait() == 0
