"""Agents that an installed distribution offers count for every command that those of the folder count for."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Running

Run = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[2]
FAX = """
from choreo import Agent, Event

class Sent(Event, topic="fax.sent", external=True):
    number: int

agent = Agent("fax")

@agent.on
async def print_it(sent: Sent) -> None:
    print(f"fax {sent.number}", flush=True)
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with an installed distribution that offers a sound agent, and another one with a broken one."""
    site = tmp_path / "site"
    for name, source in {"fax": FAX, "telex": "import nowhere_at_all\n"}.items():
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[choreo.agents]\n{name} = office_{name}:agent\n")
        (site / f"office_{name}.py").write_text(source)
    return site


def test_every_command_knows_installed_agents(
    choreo: Run, start_choreo: Callable[..., Running], tmp_path: Path, site: Path
):
    """Without any agents folder: they run, are drawn, inspected, published to; the broken one is said and left out."""
    env = {"PYTHONPATH": f"{ROOT}:{site}"}
    here = tmp_path / "empty"
    here.mkdir()
    broken = 'office_telex, entry point "telex" of telex 1.0, cannot be imported'

    running = start_choreo("dev", "--port", "0", cwd=here, env=env)
    assert "fax" in running.wait_for("agents ")
    running.wait_for("ready ")
    assert broken in running.output
    published = choreo("publish", "fax.sent", '{"number": 42}', cwd=here, env=env)
    assert published.returncode == 0, published.stderr
    assert broken in published.stderr
    running.wait_for("fax 42")
    looked = choreo("inspect", "-o", "json", cwd=here, env=env)
    assert [row["agent"] for row in json.loads(looked.stdout)] == ["fax"], looked.stderr
    assert broken in looked.stderr
    queues = choreo("inspect", "queues", "-o", "json", cwd=here, env=env)
    assert "choreo.fax" in queues.stdout
    assert choreo("dlq", "list", "fax", cwd=here, env=env).returncode == 0
    drawn = choreo("graph", cwd=here, env=env)
    assert (drawn.returncode, "fax.sent" in drawn.stdout, broken in drawn.stderr) == (0, True, True)


def test_who_wants_all_agents_is_not_given_fewer(choreo: Run, tmp_path: Path, site: Path):
    """`run --all` and `check` end with what is wrong: an agent that is missing makes their answer untrue."""
    env = {"PYTHONPATH": f"{ROOT}:{site}", "CHOREO_URL": "amqp://127.0.0.1:1"}
    for command in (["run", "--all"], ["check"]):
        done = choreo(*command, cwd=tmp_path, env=env)
        assert done.returncode == 78, done.stderr
        assert 'office_telex, entry point "telex" of telex 1.0, cannot be imported' in done.stderr
    named = choreo("check", "fax", cwd=tmp_path, env=env)
    assert (named.returncode, named.stdout) == (0, "no findings: 1 agent, 1 event\n"), named.stderr
