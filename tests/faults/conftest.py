"""How much of the fault suite is run, and the table of what it found. Its options are in ../conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.faults.report import Extent, Row, table

_ROWS = pytest.StashKey[list[Row]]()


@dataclass(frozen=True, slots=True)
class Scale:
    """How often, and with how many events: `short` inside `make test`, `full` in `make faults`, `long` for a night."""

    extent: Extent

    def of(self, full: int, *, short: int) -> int:
        """The number for this extent; `long` is ten times `full`."""
        return {"short": short, "full": full, "long": 10 * full}[self.extent]


@pytest.fixture
def scale(request: pytest.FixtureRequest) -> Scale:
    return Scale(request.config.getoption("--faults"))


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[Row], None]:
    """Adds a row to the table, also one that fails the test afterwards."""
    return request.config.stash.setdefault(_ROWS, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(_ROWS, [])
    if rows:
        terminalreporter.write_sep("-", "faults")
        terminalreporter.write_line(table(rows))
    if rows and (path := config.getoption("--faults-report")) is not None:
        path.write_text(table(rows) + "\n")
