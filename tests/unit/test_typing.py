"""The public API as a user's type checker sees it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "tests" / "typing_example.py"
REVEALED = re.compile(r'^.*typing_example\.py:(?P<line>\d+): note: Revealed type is "(?P<type>.*)"$')
WHERE = re.compile(r"\b(?:[a-z_]+\.)+(?=[A-Z])")  # the module before the name of a class
NAMED = re.compile(r"\btuple\[.*, fallback=(\w+)\]")  # how mypy writes the class of a named tuple


@pytest.mark.timeout(300)  # without mypy's cache it reads pydantic and aio-pika first
def test_mypy_sees_what_the_example_says() -> None:
    """The decorator returns the function with its own type, events are typed by their fields, and the mistakes that
    the example makes on purpose are found."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(EXAMPLE)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = EXAMPLE.read_text().splitlines()
    promised = {number: text.partition("# is: ")[2] for number, text in enumerate(lines, 1) if "reveal_type(" in text}
    found = filter(None, map(REVEALED.match, done.stdout.splitlines()))
    assert {int(each["line"]): NAMED.sub(r"\1", WHERE.sub("", each["type"])) for each in found} == promised
    assert len(promised) > 5
