"""How much of the fault suite is run, and the table of what it found. Its options are in ../conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from choreo.testing.rabbitmq.release import find_server
from tests.conftest import ROOT, release
from tests.faults.report import Extent, Row, page, table
from tests.waiting import slowness

_ROWS = pytest.StashKey[list[Row]]()


@dataclass(frozen=True, slots=True)
class Scale:
    """How often, and with how many events: `short` inside `make test`, `full` in `make faults`, `long` for a night."""

    extent: Extent

    def of(self, full: int, *, short: int) -> int:
        """The number for this extent; `long` is ten times `full`."""
        return {"short": short, "full": full, "long": 10 * full}[self.extent]

    def limit(self, seconds: float) -> float:
        """A limit in seconds: three times as long in `short`, which shares its machine with whatever runs there, and
        longer by as much as that takes of it now. To be asked when what it limits is over."""
        return 3 * slowness() * seconds if self.extent == "short" else seconds


@pytest.fixture
def scale(request: pytest.FixtureRequest) -> Scale:
    return Scale(request.config.getoption("--faults"))


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[Row], None]:
    """Adds a row to the table, also one that fails the test afterwards."""
    return request.config.stash.setdefault(_ROWS, []).append


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A night's run has ten times as much time for each test."""
    if config.getoption("--faults") == "long":
        for item in items:
            limit = item.get_closest_marker("timeout")
            seconds = limit.args[0] if limit is not None else float(config.getini("timeout"))
            item.add_marker(pytest.mark.timeout(10 * seconds), append=False)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: pytest.ExitCode, config: pytest.Config
) -> None:
    rows = config.stash.get(_ROWS, [])
    if not rows:
        return
    terminalreporter.write_sep("-", "faults")
    terminalreporter.write_line(table(rows))
    path, server = config.getoption("--faults-report"), find_server(ROOT)
    # A page says what all faults cost: it is not written after a run of some, or one that was interrupted.
    whole = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not terminalreporter.stats.get(
        "deselected"
    )
    if path is not None and server is not None and whole:
        before = path.read_text() if path.exists() else ""
        path.write_text(page(rows, release=release(server), extent=config.getoption("--faults"), before=before))
