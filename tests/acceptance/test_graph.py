"""`choreo graph`: the choreography from signatures alone, in three forms, without a broker."""

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

class Asked(Event, topic="question.asked", external=True):
    text: str

class Answered(Event, topic="question.answered"):
    text: str

class GivenUp(Event, topic="question.given-up", terminal=True):
    reason: str
"""
ORACLE = '''
"""The oracle answers."""
from agents.events import Answered, Asked, GivenUp
from choreo import Agent, Retry

agent = Agent("oracle")

def silent(asked: Asked, error: Exception) -> GivenUp:
    return GivenUp(reason=str(error))

@agent.on(retry=Retry(on=OSError, attempts=3, first="2s"), otherwise=silent)
async def answer(asked: Asked) -> Answered:
    return Answered(text="42")
'''
SCRIBE = '''
"""The scribe writes answers down."""
from agents.events import Answered
from choreo import Agent

agent = Agent("scribe")

@agent.on
async def write(answered: Answered) -> None:
    """Nobody hears of it."""
'''


@pytest.fixture
def temple(project: Path) -> Path:
    """A project with two agents."""
    (project / "agents" / "events.py").write_text(EVENTS)
    (project / "agents" / "oracle.py").write_text(ORACLE)
    (project / "agents" / "scribe.py").write_text(SCRIBE)
    return project


def test_text_says_all_there_is_to_know(choreo: Run, temple: Path):
    """Who takes and emits what, retries, dead-letter queues, in the order in which events arrive."""
    result = choreo("graph", env={"CHOREO_NAMESPACE": "shrine"})
    assert (result.returncode, result.stderr) == (0, "")
    assert "oracle  The oracle answers." in result.stdout
    assert "question.asked -> answer -> question.answered" in result.stdout
    assert "otherwise: question.given-up" in result.stdout
    assert "retry: OSError: 3 attempts" in result.stdout
    assert "dead letters: shrine.oracle.dlq" in result.stdout
    assert result.stdout.index("oracle  ") < result.stdout.index("scribe  ")


def test_mermaid(choreo: Run, temple: Path):
    result = choreo("graph", "--format", "mermaid")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("flowchart LR\n")
    assert 'agent_oracle -->|"question.answered"| agent_scribe' in result.stdout


def test_json(choreo: Run, temple: Path):
    result = choreo("graph", "-f", "json")
    assert (result.returncode, result.stderr) == (0, "")
    data = json.loads(result.stdout)
    assert [agent["name"] for agent in data["agents"]] == ["oracle", "scribe"]
    edge = {"event": "question.answered", "from": "oracle.answer", "by": "return", "to": "scribe.write"}
    assert edge | {"compensates": None, "pattern": None} in data["edges"]


def test_named_agents_stand_alone(choreo: Run, temple: Path):
    result = choreo("graph", "scribe", "-f", "json")
    assert [agent["name"] for agent in json.loads(result.stdout)["agents"]] == ["scribe"]
    twice = choreo("graph", "scribe", "agents.scribe:agent", "-f", "json")
    assert json.loads(twice.stdout) == json.loads(result.stdout)


def test_example_is_whole(choreo: Run):
    """The order process of the repository itself."""
    result = choreo("graph", "-f", "json", cwd=ROOT)
    assert result.returncode == 0, result.stderr
    names = {agent["name"] for agent in json.loads(result.stdout)["agents"]}
    assert {"order", "payment", "inventory", "shipping", "notification"} <= names


def test_module_that_logs_keeps_off_the_data(choreo: Run, temple: Path):
    """What an agent logs while it is imported goes to stderr."""
    scribe = temple / "agents" / "scribe.py"
    scribe.write_text(f"{SCRIBE}\nimport structlog\nstructlog.get_logger().warning('imported')\n")
    result = choreo("graph", "-f", "json")
    assert "imported" in result.stderr
    json.loads(result.stdout)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("orcale",), 2, "did you mean oracle?"),
        (("../../etc/passwd",), 2, "'../../etc/passwd' is not an agent name"),
        (("os:system",), 2, "holds no agent"),
        (("agents.events:Asked",), 2, "not an Agent"),
    ],
)
def test_unknown_and_hostile_names(choreo: Run, temple: Path, arguments: tuple[str, ...], code: int, text: str):
    """One clear message; nothing was imported for a hostile name."""
    result = choreo("graph", *arguments)
    assert result.returncode == code
    assert result.stdout == ""
    assert text in result.stderr
    assert "Traceback" not in result.stderr


def test_unknown_format(choreo: Run, temple: Path):
    result = choreo("graph", "-f", "svg")
    assert result.returncode == 2
    assert "mermaid" in result.stderr


def test_no_agents(choreo: Run, project: Path, tmp_path: Path):
    """An empty choreography is a mistake in the settings rather than a picture."""
    result = choreo("graph")
    assert (result.returncode, result.stdout) == (78, "")
    assert "there is no agent in" in result.stderr
    assert "CHOREO_AGENTS" in result.stderr
    assert choreo("graph", cwd=tmp_path).returncode == 78


def test_wrong_declaration_is_one_message(choreo: Run, temple: Path):
    """It is raised while the user's module is imported, and still no traceback is needed to understand it."""
    (temple / "agents" / "scribe.py").write_text(SCRIBE.replace("-> None", ""))
    result = choreo("graph")
    assert result.returncode == 78
    assert "reaction 'write' of agent scribe" in result.stderr
    assert "Traceback" not in result.stderr


def test_bug_in_a_module_shows_its_traceback(choreo: Run, temple: Path):
    (temple / "agents" / "scribe.py").write_text(f"import nowhere.to.be.found\n{SCRIBE}")
    result = choreo("graph")
    assert result.returncode == 78
    assert "agents/scribe.py" in result.stderr
    assert "ModuleNotFoundError: No module named 'nowhere'" in result.stderr
