"""A new project: the files of a small, complete example, written where nothing is yet."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from choreo.errors import ConfigurationError, InvalidName, UsageError

_NAME: Final = re.compile(r"[a-z]([a-z0-9_-]{0,61}[a-z0-9])?")
_GRAMMAR: Final = (
    'a name is a lower-case letter, then up to 62 of a-z, 0-9, "_" and "-", with a letter or digit at its end: shop'
)

_FILES: Final = {
    ".gitignore": """\
__pycache__/
.choreo/
.env
.mypy_cache/
.pytest_cache/
.ruff_cache/
.venv/
dist/
""",
    "README.md": """\
# {name}

An event choreography, run by choreo. `agents/events.py` has the events, `agents/greeter.py` an agent that reacts.

```sh
pytest        # rehearses the agent in virtual time, without a broker
choreo check  # checks the whole choreography, without running it
choreo dev    # a broker for development, and the agents
```

While `choreo dev` runs, publish an event from a second terminal in this folder, and look at the queues:

```sh
choreo publish visitor.arrived --set name=Ada
choreo inspect queues
```

In production, name a RabbitMQ broker in `CHOREO_URL` and run `choreo run --all`.
""",
    "agents/__init__.py": '"""The agents of {name}, and the events that they exchange."""\n',
    "agents/events.py": '''\
"""What can happen: immutable facts, each with a topic."""

from choreo import Event


class VisitorArrived(Event, topic="visitor.arrived", external=True):
    """Somebody is at the door. `external`: no agent emits it, it comes from outside."""

    name: str


class VisitorGreeted(Event, topic="visitor.greeted", terminal=True):
    """A visitor was greeted. `terminal`: no agent has to react to it."""

    text: str
''',
    "agents/greeter.py": '''\
"""Greeter greets every visitor, and tries again when the door is stuck."""

from choreo import Agent, Retry

from agents.events import VisitorArrived, VisitorGreeted

agent = Agent("greeter", retry=Retry(on=OSError, attempts=5, first="1s", ceiling="5m"))


@agent.on
async def greet(arrived: VisitorArrived) -> VisitorGreeted:
    """The signature is the contract: what is consumed, and what may be emitted."""
    await open_door()
    return VisitorGreeted(text=f"Hello {arrived.name}!")


async def open_door() -> None:
    """Raise OSError when the door is stuck. Yours calls the real one."""
''',
    "pyproject.toml": """\
[project]
name = "{name}"
version = "0.1.0"
description = "An event choreography."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["choreo"]

[project.optional-dependencies]
dev = ["choreo[reload,testing]", "mypy", "ruff"]

[tool.choreo]
agents = "agents"

[tool.mypy]
strict = true
files = ["agents", "tests"]
plugins = ["pydantic.mypy"]

[tool.pytest.ini_options]
testpaths = ["tests"]

[tool.ruff]
line-length = 120

[tool.ruff.lint]
select = ["ASYNC", "B", "E", "F", "I", "RUF", "UP", "W"]
""",
    "tests/test_greeter.py": '''\
"""The greeter, rehearsed: the real worker in virtual time, without a broker."""

import pytest
from choreo.testing import Rehearsal

from agents import greeter
from agents.events import VisitorArrived, VisitorGreeted


async def test_a_visitor_is_greeted(rehearsal: Rehearsal) -> None:
    await rehearsal.start(greeter)
    await rehearsal.publish(VisitorArrived(name="Ada"))
    await rehearsal.settled()
    assert rehearsal.events() == [VisitorGreeted(text="Hello Ada!")]


async def test_a_stuck_door_is_tried_again(rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    async def stuck_once() -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise OSError("stuck")

    monkeypatch.setattr(greeter, "open_door", stuck_once)
    await rehearsal.start(greeter)
    await rehearsal.publish(VisitorArrived(name="Ada"))
    await rehearsal.settled()
    assert tries == 2
    assert rehearsal.events() == [VisitorGreeted(text="Hello Ada!")]
''',
}


def create(name: str, parent: Path) -> Path:
    """Write the project `name` into the folder of that name below `parent`, and return that folder.

    The folder may exist if it is empty. Nothing is ever overwritten, and what cannot be finished is taken away again.
    Raises InvalidName, UsageError when something is there already, and ConfigurationError when it cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise InvalidName(f"{name[:80]!a} is not a valid name of a project", _GRAMMAR)
    if name == "choreo" or name in sys.stdlib_module_names:
        raise InvalidName(f'"{name}" is the name of a Python package that this project needs itself', "choose another")
    folder = parent / name
    made: list[Path] = []
    try:
        if not folder.is_dir():
            folder.mkdir()
            made.append(folder)
        elif any(folder.iterdir()):
            raise UsageError(f"{folder} exists and is not empty", "choose another name, or an empty folder")
        _write(folder, {path: text.replace("{name}", name) for path, text in _FILES.items()}, made)
    except FileExistsError as error:
        _take_away(made)
        raise UsageError(f"{error.filename} exists already", "choose another name, or an empty folder") from None
    except OSError as error:
        _take_away(made)
        way_out = "see that the folder can be written, and that the disk is not full"
        raise ConfigurationError(f"{folder} cannot be written: {error.strerror}", way_out) from None
    return folder


def _write(folder: Path, files: Mapping[str, str], made: list[Path]) -> None:
    for path, text in files.items():
        file = folder / path
        if not file.parent.is_dir():
            file.parent.mkdir()
            made.append(file.parent)
        with file.open("x", encoding="utf-8") as opened:  # "x": a file that somebody else has just put there stays
            made.append(file)
            opened.write(text)


def _take_away(made: list[Path]) -> None:
    for path in reversed(made):
        with suppress(OSError):  # a folder that is not empty: somebody else's file is in it
            path.rmdir() if path.is_dir() else path.unlink()
