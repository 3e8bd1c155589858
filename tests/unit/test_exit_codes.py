"""One mistake has one exit code, whichever command meets it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from choreo import cli

USAGE, CONFIGURATION = 2, 78

GREETER = """
from choreo import Agent, Event

class Arrived(Event, topic="codes.arrived", external=True):
    name: str

agent = Agent("greeter")

@agent.on
async def greet(arrived: Arrived) -> None: ...
"""

# Every command that meets what its arguments leave to it; nothing gets as far as a broker.
NAMING = ("run {}", "run {} --processes 2", "dev {}", "check {}", "graph {}", "inspect {}")
ALL = ("run --all", "dev", "check", "graph", "inspect", "publish codes.arrived --set name=Ada")
TALKING = (
    "run greeter",
    "dev greeter",
    "inspect",
    "inspect queues",
    "dlq list greeter",
    "dlq show greeter",
    "dlq replay greeter --yes",
    "dlq drop greeter --yes",
    "publish codes.arrived --set name=Ada",
    "bench",
)
READING = (*TALKING, "check", "graph")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder: a project with one agent. What a command imports and sets is forgotten after it."""
    for name in [name for name in os.environ if name.startswith("CHOREO_")]:
        monkeypatch.delenv(name)
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "greeter.py").write_text(GREETER)
    (tmp_path / "pyproject.toml").write_text("[tool.choreo]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHOREO_URL", "amqp://127.0.0.1:1")  # nobody: whoever gets there ends with 69
    monkeypatch.setenv("CHOREO_WAIT", "0")
    modules, path = dict(sys.modules), list(sys.path)
    for name in [name for name in modules if name == "agents" or name.startswith("agents.")]:
        del sys.modules[name]
    yield tmp_path
    for name in set(sys.modules) - set(modules):
        if not name.startswith("choreo"):
            del sys.modules[name]
    sys.modules.update(modules)
    sys.path[:] = path
    structlog.reset_defaults()


def code_of(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["choreo", *command.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    code = ended.value.code
    assert isinstance(code, int)
    return code


def naming(name: str) -> tuple[str, ...]:
    return tuple(command.format(name) for command in NAMING)


SETTINGS = ("CHOREO_DRAIN=soon", "CHOREO_NAMESPACE=Ä", "CHOREO_PREFECH=1", "CHOREO_PROJECT=no", "toml", ".env")
OPTIONS = ("--drain soon", "--wait soon", "--prefetch 0", "--concurrency x", "--health-port -1")
RUNNING = ("run greeter", "run --all --processes 2", "run --all --process-per-agent", "run --all --apart")
NONE = ("",)

# Commands, the mistakes of which each makes one at a time, and the code that all of them end with.
TABLE = (
    (naming("greetr"), NONE, USAGE),  # nobody of that name
    (naming("Greeter"), NONE, USAGE),  # not a name
    (naming("order_audit"), ("dash",), USAGE),
    (naming("greeter"), ("no folder",), USAGE),
    (naming("greeter"), ("misplaced", "broken", "exits"), CONFIGURATION),
    (naming("pay"), ("misplaced",), CONFIGURATION),
    (ALL, ("misplaced", "broken", "exits", "no folder"), CONFIGURATION),
    # choreo dev starts with what is good.
    (tuple(command for command in ALL if not command.startswith("dev")), ("twice",), CONFIGURATION),
    (tuple(f"{command} --url http://x" for command in TALKING), NONE, USAGE),
    (tuple(f"{command} --nonsense" for command in ("run", "publish", "dlq list", "check")), NONE, USAGE),
    (TALKING, ("CHOREO_URL=http://x", "CHOREO_PASSWORD_FILE=/nowhere/at/all"), CONFIGURATION),
    (READING, SETTINGS[:1], CONFIGURATION),
    (("check",), SETTINGS[1:], CONFIGURATION),
    (tuple(f"{command} {option}" for command in RUNNING for option in OPTIONS), NONE, USAGE),
    (("run greeter --log-level loud", "dev greeter --log-level loud"), NONE, USAGE),
)


def make(mistake: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    greeter = project / "agents" / "greeter.py"
    match mistake:
        case "misplaced":
            greeter.rename(greeter.with_name("pay.py"))
        case "dash":
            greeter.with_name("order_audit.py").write_text("from choreo import Agent\nagent = Agent('order-audit')\n")
        case "broken":
            greeter.write_text(GREETER + "1 / 0\n")
        case "exits":
            greeter.write_text(GREETER + "raise SystemExit(0)\n")
        case "twice":
            greeter.with_name("other.py").write_text("from choreo import Agent\nagent = Agent('greeter')\n")
        case "no folder":
            (project / "agents").rename(project / "elsewhere")
        case "toml":
            (project / "pyproject.toml").write_text("[tool.choreo]\ndrain = 'soon'\n")
        case ".env":
            (project / ".env").write_text("CHOREO_DRAIN=soon\n")
        case _ if "=" in mistake:
            name, _, value = mistake.partition("=")
            monkeypatch.setenv(name, value)
        case _:
            assert not mistake


@pytest.mark.parametrize(
    ("command", "mistake", "code"),
    [(command, mistake, code) for commands, mistakes, code in TABLE for mistake in mistakes for command in commands],
)
def test_one_mistake_has_one_code(
    command: str,
    mistake: str,
    code: int,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """2 for what was typed, 78 for what is set, declared or cannot be imported; said in two lines, without data."""
    make(mistake, project, monkeypatch)

    assert code_of(command, monkeypatch) == code

    said = capsys.readouterr()
    assert said.out == ""
    assert "choreo: " in said.err
