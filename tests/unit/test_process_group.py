"""What is started in a process group, by a program that runs nothing else: no broker is needed."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from choreo.testing.rabbitmq.process_group import ProcessGroup


@pytest.mark.parametrize("soft", [200, 1_024])
def test_a_broker_may_open_as_many_files_as_its_user_may(soft: int, tmp_path: Path):
    """Up to 65,536, whatever our own soft limit is, which stays as it was."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] <= soft:
        pytest.skip(f"the hard limit here is {before[1]}")
    wanted = min(before[1], 65_536)
    group = ProcessGroup(tmp_path / "lock")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
        with (tmp_path / "said").open("wb") as said:
            member = group.start(["/bin/sh", "-c", "ulimit -S -n; ulimit -H -n"], dict(os.environ), said)
        after = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert member.wait(30) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        group.kill()
    assert after == (soft, before[1])
    assert (tmp_path / "said").read_text().split() == [str(wanted), str(before[1])]
