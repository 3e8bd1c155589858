"""`choreo check`: findings of the three rules, each with place, reason and way out, without a broker."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).parents[2]
EVENTS = """
from choreo import Event

class Served(Event, topic="ball.served", external=True): ...
class Pinged(Event, topic="ball.pinged"): ...
class Ponged(Event, topic="ball.ponged"): ...
class Missed(Event, topic="ball.missed"): ...
class Rained(Event, topic="weather.rained"): ...
"""
LEFT = """
from agents.events import Pinged, Ponged, Served
from choreo import Agent

agent = Agent("left")

@agent.on
async def play(ball: Served | Ponged) -> Pinged: ...
"""
RIGHT = """
from agents.events import Missed, Pinged, Ponged, Rained
from choreo import Agent

agent = Agent("right")

@agent.on
async def play(ball: Pinged) -> Ponged | Missed: ...

@agent.on
async def cover(rain: Rained) -> None: ...
"""


@pytest.fixture
def court(project: Path) -> Path:
    """A project in which everything is wrong that can be."""
    (project / "agents" / "events.py").write_text(EVENTS)
    (project / "agents" / "left.py").write_text(LEFT)
    (project / "agents" / "right.py").write_text(RIGHT)
    return project


def mended(court: Path) -> None:
    """Follow the hints."""
    events = EVENTS.replace('"ball.missed"', '"ball.missed", terminal=True')
    (court / "agents" / "events.py").write_text(events.replace('"weather.rained"', '"weather.rained", external=True'))
    (court / "agents" / "right.py").write_text(RIGHT.replace("@agent.on\n", "@agent.on(max_hops=8)\n", 1))


def test_findings_as_json(choreo: Run, court: Path):
    """Each finding names its rule, how bad it is, what is wrong, where, and the way out."""
    result = choreo("check", "--output", "json")
    assert (result.returncode, result.stderr) == (1, "")
    findings = json.loads(result.stdout)["findings"]
    assert [set(finding) for finding in findings] == [{"rule", "severity", "message", "where", "hint"}] * 3
    assert [(each["rule"], each["severity"]) for each in findings] == [
        ("loop", "error"),
        ("unheard", "error"),
        ("unfed", "warning"),
    ]
    loop, unheard, unfed = findings
    assert "ball.pinged -> right.play -> ball.ponged -> left.play -> ball.pinged" in loop["message"]
    assert "max_hops" in loop["hint"]
    assert "ball.missed is emitted by right.play" in unheard["message"]
    assert 'class Missed(Event, topic="ball.missed", terminal=True)' in unheard["hint"]
    assert "weather.rained is taken by right.cover" in unfed["message"]
    assert "external=True" in unfed["hint"]
    assert all(each["where"].startswith("agents/") for each in findings)


def test_findings_as_lines_and_as_text(choreo: Run, court: Path):
    lines = choreo("check", "-o", "jsonl")
    assert lines.returncode == 1
    findings = [json.loads(line) for line in lines.stdout.splitlines()]
    assert [each["rule"] for each in findings] == ["loop", "unheard", "unfed"]
    text = choreo("check")
    assert (text.returncode, text.stderr) == (1, "")
    for finding in findings:
        assert f"{finding['severity']} {finding['rule']}: {finding['message']}" in text.stdout
        assert finding["where"] in text.stdout
        assert finding["hint"] in text.stdout


def test_following_the_hints_mends_it(choreo: Run, court: Path):
    mended(court)
    text = choreo("check")
    assert (text.returncode, text.stderr, text.stdout) == (0, "", "no findings: 2 agents, 5 events\n")
    assert json.loads(choreo("check", "-o", "json").stdout) == {"findings": []}
    assert choreo("check", "-o", "jsonl").stdout == ""


def test_named_agents_stand_alone(choreo: Run, court: Path):
    """A part of the choreography is checked as if there were no other agents."""
    mended(court)
    result = choreo("check", "left", "--output", "json")
    assert result.returncode == 1
    rules = {finding["rule"] for finding in json.loads(result.stdout)["findings"]}
    assert rules == {"unheard", "unfed"}


def test_example_has_no_findings(choreo: Run):
    """The order process of the repository itself."""
    result = choreo("check", cwd=ROOT)
    assert result.returncode == 0, result.stdout
    assert result.stdout.startswith("no findings: ")


def test_nothing_to_check_is_no_success(choreo: Run, project: Path):
    """A folder without agents shall not pass for a choreography without findings."""
    result = choreo("check")
    assert (result.returncode, result.stdout) == (78, "")
    assert "there is no agent in" in result.stderr


def test_unknown_agent(choreo: Run, court: Path):
    result = choreo("check", "lift")
    assert (result.returncode, result.stdout) == (2, "")
    assert "did you mean left?" in result.stderr
    assert "Traceback" not in result.stderr
