"""Loggers that never raise: under no configuration of structlog does a line decide what becomes of a delivery."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from choreo import logger
from tests.unit import structlog_recipes as recipes

ROOT = Path(__file__).parents[2]
OTHERS = re.findall(r"^structlog==(.+)$", (ROOT / "requirements" / "structlog.txt").read_text(), re.MULTILINE)


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing has been said yet, and structlog is afterwards as before."""
    monkeypatch.setattr(logger, "_said", set())
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_no_configuration_of_structlog_changes_what_becomes_of_a_delivery(recipe: str) -> None:
    """Handled, retried, given up or dead: each as without any logger, and with its reaction run as often."""
    with recipes.configured(recipe):
        assert recipes.play() == recipes.EXPECTED


@pytest.mark.parametrize("version", OTHERS)
def test_other_releases_of_structlog_change_nothing_either(version: str, pytestconfig: pytest.Config) -> None:
    """The same recipes, played with the oldest release that is admitted and with one in between."""
    assert pytestconfig.cache is not None
    place = pytestconfig.cache.mkdir(f"structlog-{version}")
    if not (place / "structlog").exists():
        install = ["install", "--quiet", "--no-deps", "--target", str(place), f"structlog=={version}"]
        done = subprocess.run([sys.executable, "-m", "pip", *install], capture_output=True, text=True, check=False)
        if done.returncode:
            give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
            give_up(f"structlog {version} cannot be installed: {done.stderr.strip()[-300:]}")
    played = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.unit.structlog_recipes"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert played.returncode == 0, played.stderr[-2_000:]
    assert played.stdout.splitlines()[-1] == version


def test_the_oldest_release_that_is_admitted_is_among_them() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (floor,) = (each.removeprefix("structlog>=") for each in dependencies if each.startswith("structlog"))
    assert any(each.startswith(f"{floor}.") for each in OTHERS)


def test_that_lines_are_lost_is_said_once_without_what_they_hold(capsys: pytest.CaptureFixture[str]) -> None:
    """Kind and place of the failure; its text may hold a secret."""
    structlog.configure(processors=[recipes.raising(ValueError("amqp://me:secret@host"))])
    log = logger.get_logger()
    for _ in range(3):
        log.info("a line")
        log.bind(one=1).error("another")
    (said,) = capsys.readouterr().err.splitlines()
    assert "the logger raised ValueError at" in said
    assert "structlog_recipes.py" in said
    assert "secret" not in said


def test_ctrl_c_is_no_failure_of_a_logger() -> None:
    structlog.configure(processors=[recipes.raising(KeyboardInterrupt())])
    with pytest.raises(KeyboardInterrupt):
        logger.get_logger().info("a line")


async def test_who_waits_for_a_line_can_be_cancelled() -> None:
    """A line that is awaited is a place where the reaction waits, and where its deadline strikes."""

    class Slow:
        def bind(self, **_: object) -> Slow:
            return self

        async def ainfo(self, _: str) -> None:
            await asyncio.Event().wait()

    waiting = asyncio.create_task(logger.guarded(Slow(), awaited=True).ainfo("a line"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_a_name_that_no_logger_has_is_an_error() -> None:
    """A misspelt method is the user's to see."""
    with pytest.raises(AttributeError):
        logger.get_logger().inof("a line")  # type: ignore[attr-defined]


def test_a_line_may_carry_values_of_any_name() -> None:
    """Also those that the logger's own functions have."""
    with structlog.testing.capture_logs() as lines:
        logger.get_logger().bind(name=1).info("a line", method=2, logger=3)
    assert lines == [{"event": "a line", "log_level": "info", "name": 1, "method": 2, "logger": 3}]
