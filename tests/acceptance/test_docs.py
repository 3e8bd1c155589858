"""Every code block in README and docs is executed, in the order in which a reader meets them.

A Python block that begins with a file name is written to that file of a project, any other is run there. In a console
block each line after `$ ` is a command; what stands below it is what it prints, `…` for anything.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Running, environment

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^# ([\w/]+\.py)\n")
# What a page defines as a function of a web application, and how that application would call it.
CALLS = {"visit": 'visit("Ada")', "request": 'request("Ada", "Ubik")'}


class Reader:
    """Somebody who follows a page in an empty project."""

    def __init__(self, project: Path, url: str | None, start: Callable[..., Running]) -> None:
        bin_ = project.parent / "bin"
        bin_.mkdir()
        # Where the pages say `pytest`, choreo is installed; here it may be on a path only, and pytest needs to be told.
        # Not by -m, which would let it find the agents: choreo does.
        pytest_ = f"{shlex.quote(str(Path(sys.executable).with_name('pytest')))} -p choreo.testing.plugin"
        programs = {"choreo": "-m choreo", "pytest": f"{pytest_} -p no:cacheprovider"}
        for name, options in programs.items():
            script = bin_ / name
            script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {options} "$@"\n')
            script.chmod(0o755)
        self.project = project
        self.start = start
        self.env = {} if url is None else {"CHOREO_URL": url}
        self.environment = environment(self.env) | {"PATH": f"{bin_}:{os.environ['PATH']}"}

    def read(self, page: str) -> None:
        """Do all that a page says."""
        for language, block in BLOCK.findall((ROOT / page).read_text()):
            if language == "python":
                self.python(block)
            elif language == "console":
                self.console(block)

    def python(self, code: str) -> None:
        """Write a file, or run the code."""
        if (file := FILE.match(code)) is not None:
            path = self.project / file[1]
            path.parent.mkdir(exist_ok=True)
            path.write_text(code)
            return
        calls = [call for name, call in CALLS.items() if f"async def {name}(" in code]
        code += "".join(f"\nimport asyncio\nasyncio.run({call})\n" for call in calls)
        self._run([sys.executable, "-W", "error", "-c", code])

    def console(self, block: str) -> None:
        """Type the commands, and compare what they print."""
        for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            program = command.split()[0]
            if shutil.which(program, path=self.environment["PATH"]) is None and not os.environ.get("CI"):
                pytest.skip(f"{program} is not installed; the page was executed up to: {command}")
            if command.endswith(" &"):
                running = self.start(*shlex.split(command.removesuffix(" &"))[1:], env=self.env)
                running.wait_for("consuming from")
                continue
            printed = self._run(["sh", "-c", command])
            pattern = re.escape(expected.strip()).replace("…", ".*")
            assert re.fullmatch(pattern, printed.strip(), re.DOTALL), f"{command} printed:\n{printed}"

    def _run(self, command: list[str]) -> str:
        result = subprocess.run(
            command, cwd=self.project, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert result.returncode == 0, f"{command} ended with {result.returncode}:\n{result.stdout}{result.stderr}"
        return result.stdout + result.stderr


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md", "docs/synchronous.md"])
def test_the_page_works_as_written(
    page: str, project: Path, broker_url: str, vhost: str, start_choreo: Callable[..., Running]
) -> None:
    """A reader who types what the page says, from its first line to its last, sees what it says."""
    Reader(project, broker_url + vhost, start_choreo).read(page)


def test_the_page_of_the_embedded_broker_works_without_any_other(
    project: Path, start_choreo: Callable[..., Running]
) -> None:
    """Nothing is named anywhere; `choreo dev` brings the broker, and the commands find it."""
    Reader(project, None, start_choreo).read("docs/embedded.md")


@pytest.mark.parametrize(
    "page", ["docs/testing.md", "docs/databases.md", "docs/ordering.md", "docs/packaging.md", "docs/wrapping.md"]
)
def test_the_page_works_without_a_broker(page: str, project: Path, start_choreo: Callable[..., Running]) -> None:
    """Everything that it shows runs where no RabbitMQ is."""
    Reader(project, "amqp://127.0.0.1:1", start_choreo).read(page)


def test_the_picture_in_readme_is_the_one_that_choreo_draws(
    choreo: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """README shows what `choreo graph -f mermaid` prints for agents/; if not: copy it there."""
    drawn = choreo("graph", "-f", "mermaid", cwd=ROOT)
    assert drawn.returncode == 0, drawn.stderr
    [shown] = [block for language, block in BLOCK.findall((ROOT / "README.md").read_text()) if language == "mermaid"]
    assert shown.strip() == drawn.stdout.strip()


def test_readme_stays_short_and_begins_with_the_two_commands() -> None:
    """150 lines at most, `make demo` and `make test` among the first 15."""
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert {"make demo", "make test"} <= {line.split("#")[0].strip() for line in lines[:15]}
