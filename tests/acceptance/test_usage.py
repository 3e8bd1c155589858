"""What a command line that makes no sense gets: one style for all, the wrong value, what is allowed, exit code 2."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

LENGTH = "a length of time: 500ms, 30s, 5m, 2h, 1d, 1h30m or a number of seconds"


@pytest.mark.parametrize(
    ("command", "allowed"),
    [
        ("dev --port x", "a whole number from 0 to 65535"),
        ("dev --port 99999", "a whole number from 0 to 65535"),
        ("dev --broker kafka", "embedded or rabbitmq"),
        ("run greeter --drain soon", LENGTH),
        ("run greeter --wait -1s", LENGTH),
        ("run greeter --prefetch 0", "a whole number from 1 to 65535"),
        ("run greeter --concurrency many", "a whole number from 1 to 100000"),
        ("run greeter --processes 0", "a whole number from 1 to 1024"),
        ("run greeter --health-port 70000", "a port from 1 to 65535, or 0 for any free one"),
        ("run greeter --log-level loud", "debug, info, warning, error or critical"),
        ("publish visitor.arrived --count 0", "a whole number, at least 1"),
        ("publish visitor.arrived --rate fast", "a number of events per second: 50, or 0.5"),
        ("publish visitor.arrived --delay 99d", "a length of time up to 12d"),
        ("inspect --interval 5x", "at least 100ms"),
        ("inspect --output yaml", "text, json or jsonl"),
        ("graph --format svg", "text, mermaid or json"),
        ("dlq list greeter --limit 0", "a whole number, at least 1"),
        ("dlq replay greeter --limit 0", "a whole number, at least 1"),
        ("bench --seconds 0", "a number from 1 to 3600"),
    ],
)
def test_a_wrong_value_is_said_with_what_is_allowed(choreo: Run, command: str, allowed: str) -> None:
    *_, option, value = words = shlex.split(command)
    done = choreo(*words)
    assert done.returncode == 2, done.stderr
    first, second = done.stderr.splitlines()
    assert first == f"choreo: {option} {value!r} is not allowed"
    assert second.startswith(f"  allowed: {allowed}")
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("command", "message", "hint"),
    [
        ("dlq show", "missing argument 'AGENT'", "choreo dlq show [OPTIONS] AGENT"),
        ("run --blah", "no such option: --blah", "choreo run [OPTIONS] [NAME]..."),
        ("publish a b c", "got unexpected extra argument(s) (c)", "choreo publish [OPTIONS] TOPIC"),
        ("pubish", "no such command 'pubish'", "known: new, dev, run, publish, inspect"),
    ],
)
def test_a_command_line_that_typer_refuses(choreo: Run, command: str, message: str, hint: str) -> None:
    """It is said as all else is, with how the command is called."""
    done = choreo(*command.split())
    assert done.returncode == 2
    first, *rest = done.stderr.splitlines()
    assert first.startswith(f"choreo: {message}")
    assert hint in "\n".join(rest)
    assert "--help" in rest[-1]


def test_without_a_command_there_is_help(choreo: Run) -> None:
    done = choreo()
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: choreo ")
    assert "publish" in done.stderr


def test_a_variable_that_is_nearly_a_setting_is_said_once(choreo: Run, project: Path) -> None:
    (project / "agents" / "greeter.py").write_text('from choreo import Agent\nagent = Agent("greeter")\n')
    done = choreo("graph", env={"CHOREO_CONCURENCI": "3"})
    assert done.returncode == 0
    assert done.stderr.count("CHOREO_CONCURENCI is not a setting; did you mean CHOREO_CONCURRENCY?") == 1


def test_the_same_value_from_a_variable_is_configuration(choreo: Run) -> None:
    done = choreo("run", "greeter", env={"CHOREO_DRAIN": "soon"})
    assert done.returncode == 78
    assert "CHOREO_DRAIN='soon' is not allowed" in done.stderr


@pytest.mark.parametrize(
    ("source", "last", "way_out"),
    [
        (
            "import nothing_of_this_name\n",
            "(agents/greeter.py, line 1): ModuleNotFoundError: No module named 'nothing_of_this_name'",
            "install it into",
        ),
        ("\ndef (\n", "(agents/greeter.py, line 2): SyntaxError: ", "traceback"),
        (
            "import json\njson.loads('x')\n",
            "(agents/greeter.py, line 2): json.decoder.JSONDecodeError",
            "traceback",
        ),
        ("from agents import helper\n", "(agents/helper.py, line 1): ZeroDivisionError: division by zero", "traceback"),
    ],
)
def test_what_cannot_be_imported_is_said_in_the_last_lines(
    choreo: Run, project: Path, source: str, last: str, way_out: str
) -> None:
    """Below the traceback: which module, the line of the user's that it came from, and what to do."""
    (project / "agents" / "helper.py").write_text("1 / 0\n")
    (project / "agents" / "greeter.py").write_text(f'{source}from choreo import Agent\nagent = Agent("greeter")\n')
    done = choreo("check")
    assert done.returncode == 78
    *_, first, second = done.stderr.splitlines()
    assert first.startswith(f"choreo: agents.greeter cannot be imported {last}")
    assert way_out in second


@pytest.mark.parametrize("command", ["check", "run --all", "dev --port 0", "publish visitor.arrived"])
def test_a_module_that_exits_is_no_success(choreo: Run, project: Path, command: str) -> None:
    """A gate in CI that runs `choreo check` does not pass because an agent's module called sys.exit(0)."""
    exits = "import argparse\nargparse.ArgumentParser().parse_args(['-h'])\n"
    (project / "agents" / "greeter.py").write_text(f'{exits}from choreo import Agent\nagent = Agent("greeter")\n')
    done = choreo(*command.split())
    assert done.returncode == 78, done.stderr
    message = "agents.greeter ends the program when it is imported, at agents/greeter.py, line 2 (SystemExit: 0)"
    assert message in done.stderr


def test_to_import_choreo_imports_none_of_its_rooms() -> None:
    """`choreo --help` starts with as little as ever: a name costs nothing until it is asked for."""
    program = "import sys, choreo; print(sorted(each for each in sys.modules if each.startswith('choreo.')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
