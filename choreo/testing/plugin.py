"""The pytest plugin: the fixtures `rehearsal` and `rabbitmq`, and tests that are coroutines in virtual time.

pytest finds it by itself wherever choreo is installed. A test that is a coroutine and asks for `rehearsal`, itself or
through a fixture, runs on the rehearsal's loop; other plugins for asynchronous tests never get to see it.
"""

from __future__ import annotations

import functools
import inspect
import os
import secrets
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from choreo.testing.rabbitmq.node import Node
    from choreo.testing.rehearsal import Rehearsal

_NO_RABBITMQ: Final = "no RabbitMQ"
_DEAD: Final = "choreo dead letter"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    parser.getgroup("choreo").addoption(
        "--choreo-seed",
        metavar="SEED",
        help="the seed that rehearsals begin with, a number (1 unless given) or 'random'; a failing one names its own",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Take the seed, and let tests find the agents in the working folder, as every command of choreo does."""
    if (folder := str(config.invocation_params.dir)) not in sys.path:
        sys.path.insert(0, folder)
    _claim_agents(config.invocation_params.dir)
    given = config.getoption("--choreo-seed")
    if given is None:
        return
    from choreo.testing import seeds

    try:
        seeds.choose(secrets.randbits(31) if given == "random" else int(given))
    except ValueError:
        raise pytest.UsageError(f"--choreo-seed={given}: a seed is a whole number, or 'random'") from None
    config.option.choreo_seed = str(seeds.chosen())  # for the processes of pytest-xdist, which get our options


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say which seed was given, or drawn."""
    if config.getoption("--choreo-seed") is None:
        return None
    from choreo.testing import seeds

    return f"choreo: rehearsals begin with seed {seeds.chosen()}"


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_pycollect_makeitem() -> Generator[None, Any, Any]:
    """Have coroutines that ask for a rehearsal run on its loop, before another plugin takes them for its own."""
    made = yield
    for item in made if isinstance(made, list) else [made]:
        if isinstance(item, pytest.Function) and "rehearsal" in item.fixturenames and _is_coroutine(item.obj):
            item.obj = _on_its_loop(item, item.obj)
    return made


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Fail what rehearses nothing, although it asks for it, and what leaves a dead letter that nobody has looked at."""
    rehearsal: Any = pyfuncitem.funcargs.get("rehearsal")
    try:
        done = yield
    except Exception:
        _keep_unseen(pyfuncitem, rehearsal)
        raise
    begun = getattr(rehearsal, "begun", True)
    if not begun and "rehearsal" in inspect.signature(pyfuncitem.obj).parameters:
        coroutine = f"async def {pyfuncitem.originalname}(rehearsal)"
        pytest.fail(f"nothing was rehearsed: make it `{coroutine}`, or call rehearsal.run(scenario)", pytrace=False)
    if unseen := _keep_unseen(pyfuncitem, rehearsal):
        meant = "if that is meant, look at them: assert [each.reason for each in rehearsal.dead_letters] == [...]"
        pytest.fail("\n".join([*unseen, meant]), pytrace=False)
    return done


@pytest.fixture
def rehearsal() -> Rehearsal:
    """A `choreo.testing.Rehearsal` of its own for the test: ``await rehearsal.start(payment)`` begins it."""
    from choreo.testing.rehearsal import Rehearsal

    return Rehearsal()


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A private RabbitMQ node for the whole run: `rabbitmq.url`. Where there is no RabbitMQ, the test is skipped."""
    from choreo.errors import ChoreoError
    from choreo.testing.rabbitmq.node import Node
    from choreo.testing.rabbitmq.release import INSTALL, find_server

    if find_server() is None:
        pytest.skip(f"{_NO_RABBITMQ}: {INSTALL}")
    try:
        node = Node.start(tmp_path_factory.mktemp("rabbitmq"))
    except ChoreoError as error:
        pytest.skip(f"{_NO_RABBITMQ}: {error}")
    with node:
        yield node


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what died in rehearsals that failed, and loudly what was not tested: a green run then proves less."""
    died = {
        each: [value for name, value in each.user_properties if name == _DEAD] for each in _failed(terminalreporter)
    }
    if any(died.values()):
        terminalreporter.write_sep("=", "dead letters of failed rehearsals")
        for report, letters in died.items():
            for letter in letters:
                terminalreporter.write_line(f"{report.nodeid}\n  {letter}")
    skipped = [each for each in terminalreporter.stats.get("skipped", ()) if _NO_RABBITMQ in str(each.longrepr)]
    if skipped:
        terminalreporter.write_sep("!", f"{len(skipped)} TESTS DID NOT RUN: {_NO_RABBITMQ}", red=True, bold=True)


def _claim_agents(here: Path) -> None:
    """Let `from agents import …` in a test mean the project's folder, where it holds agents, as for every command."""
    nearest = next((file for each in (here, *here.parents) if (file := each / "pyproject.toml").is_file()), None)
    if not (here / "agents").is_dir() and (nearest is None or b"tool.choreo" not in nearest.read_bytes()):
        return  # no project of ours, which is not to wait for our imports
    from choreo import importing, loader
    from choreo.config import project
    from choreo.errors import ChoreoError

    try:
        found = project.find()
        folder = found.root / str(os.environ.get("CHOREO_AGENTS") or found.table.get("agents", "agents"))
        if folder.is_dir() and folder.name.isidentifier() and loader.declared(folder):
            importing.claim(folder)
    except ChoreoError:
        return  # not every project where pytest runs is one of choreo's; a rehearsal says what is wrong


def _keep_unseen(item: pytest.Function, rehearsal: Any) -> list[str]:
    """Return what died in a rehearsal without anybody looking at it; the summary at the end of the run says it too."""
    unseen = getattr(rehearsal, "unseen", [])
    if not unseen:
        return []
    from choreo.testing.letters import account

    told = [account(each) for each in unseen]
    item.user_properties += [(_DEAD, each) for each in told]
    return told


def _failed(terminalreporter: pytest.TerminalReporter) -> list[pytest.TestReport]:
    return [each for each in terminalreporter.stats.get("failed", ()) if isinstance(each, pytest.TestReport)]


def _is_coroutine(function: object) -> bool:
    return inspect.iscoroutinefunction(inspect.unwrap(function)) if callable(function) else False


def _on_its_loop(item: pytest.Function, test: Callable[..., Any]) -> Callable[..., Any]:
    """Return `test` as a plain function, which runs it from beginning to end in its rehearsal."""

    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        __tracebackhide__ = True
        rehearsal: Any = item.funcargs["rehearsal"]
        rehearsal.run(lambda _: test(**arguments))

    # What is left of the coroutine would have other plugins take it for one.
    del run.__wrapped__
    return run
