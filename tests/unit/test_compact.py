"""The lines of `choreo dev`: one for each delivery, whose words stay whole on a narrow terminal."""

from __future__ import annotations

import re

import pytest
import structlog

from choreo.observe import logs
from choreo.observe.compact import Compact
from tests.unit.test_logs import Captured, Terminal, stderr, untouched_logging

__all__ = ["stderr", "untouched_logging"]  # fixtures

DELIVERY = {
    "agent": "greeter",
    "reaction": "greet",
    "topic": "visitor.arrived",
    "event_id": "b36414f80cc57f2b64723a42b08ad063",
    "correlation_id": "b36414f80cc57f2b64723a42b08ad063",
    "attempt": 1,
}


def line_of(stderr: Captured) -> str:
    """Return the only line, without its time."""
    (line,) = stderr.text.splitlines()
    assert re.match(r"\d\d:\d\d:\d\d ", line)
    return line[9:]


def test_what_was_handled_and_what_followed(stderr: Captured):
    """At info, though it is a debug line elsewhere."""
    logs.configure("info", "compact")
    logs.of_deliveries().bind(**DELIVERY).debug("handled", emitted=["visitor.greeted"], seconds=0.00123)
    line = line_of(stderr)
    assert line == "handled  b36414f8  greeter.greet  visitor.arrived -> visitor.greeted  1.2 ms"


@pytest.mark.parametrize(
    ("event", "told", "shown"),
    [
        ("handled", {"emitted": [], "seconds": 1.5}, "handled  b36414f8  greeter.greet  visitor.arrived  1500.0 ms"),
        (
            "failed",
            {"error": "OSError('stuck')", "next": "retry in 2 s"},
            "failed   b36414f8  greeter.greet  visitor.arrived  retry in 2 s: OSError('stuck')",
        ),
        (
            "failed",
            {"error": "OSError('stuck')", "next": "otherwise", "emitted": ["visitor.gone"]},
            "failed   b36414f8  greeter.greet  visitor.arrived -> visitor.gone  otherwise: OSError('stuck')",
        ),
        (
            "dead letter",
            {"reason": "failed", "error": "ValueError('no\nname')"},
            "dead     b36414f8  greeter.greet  visitor.arrived  ValueError('no\\nname')",
        ),
        (
            "dead letter",
            {"reason": "invalid", "error": "X()", "reaction": None},
            "dead     b36414f8  greeter  visitor.arrived  X()  reason=invalid",
        ),
    ],
)
def test_every_outcome_is_one_line(stderr: Captured, event: str, told: dict[str, object], shown: str):
    logs.configure("info", "compact")
    logs.of_deliveries().bind(**DELIVERY | told).warning(event)
    assert line_of(stderr) == shown


def test_a_long_error_is_cut(stderr: Captured):
    """All of it is on the dead letter."""
    logs.configure("info", "compact")
    logs.of_deliveries().bind(**DELIVERY).warning("dead letter", reason="failed", error="E" * 5000)
    assert len(line_of(stderr)) < 400


def test_what_a_reaction_logs_carries_its_name(stderr: Captured):
    logs.configure("info", "compact")
    about = {key: value for key, value in DELIVERY.items() if key != "attempt"}
    structlog.get_logger(**about).info("door opened", name="Ada L", tries=2)
    assert line_of(stderr) == "info     b36414f8  greeter.greet  door opened  name='Ada L'  tries=2"


def test_a_traceback_stands_below(stderr: Captured):
    logs.configure("info", "compact")
    structlog.get_logger().error("broken", exc_info=ValueError("no"))
    first, *rest = stderr.text.splitlines()
    assert first.endswith("error    broken")
    assert rest[-1] == "ValueError: no"


def test_above_info_what_was_handled_is_not_said(stderr: Captured):
    logs.configure("warning", "compact")
    log = logs.of_deliveries()
    log.debug("handled")
    structlog.get_logger().info("worker")
    assert stderr.text == ""
    log.warning("failed")
    assert stderr.text


def test_elsewhere_handled_is_a_debug_line(stderr: Captured):
    logs.configure("info", "json")
    assert not logs.of_deliveries().is_enabled_for(10)
    structlog.get_logger().debug("handled")
    assert stderr.text == ""


def test_colours_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch):
    for colours in (True, False):
        terminal = Terminal()
        monkeypatch.setattr("sys.stderr", terminal)
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm" if colours else "dumb")
        structlog.reset_defaults()
        logs.configure("info", "compact")
        logs.of_deliveries().bind(**DELIVERY).debug("handled", emitted=[], seconds=0.001)
        assert ("\x1b[32mhandled" in terminal.getvalue()) is colours


@pytest.mark.parametrize(
    ("correlation", "shown"),
    [
        ("order-1001", "order-1001"),
        ("2b2ce5a4-8e0f-4b38-b9ff-5a9eb0bb1f3a", "2b2ce5a4"),
        ("a" * 60, "a" * 24 + "…"),
        (None, "greeter.greet"),
    ],
)
def test_transactions_can_be_told_apart(stderr: Captured, correlation: str | None, shown: str):
    """By the name that somebody gave them, or the beginning of a random one."""
    logs.configure("info", "compact")
    logs.of_deliveries().bind(**DELIVERY | {"correlation_id": correlation}).debug("handled", emitted=[], seconds=0.1)
    assert line_of(stderr).split()[1] == shown


@pytest.mark.parametrize("width", [40, 60, 80])
@pytest.mark.parametrize("colours", [True, False])
def test_no_word_is_cut_on_a_narrow_terminal(width: int, colours: bool):
    """What is too long goes on below, indented; colours take no room, and piping on changes nothing."""
    told = DELIVERY | {
        "error": "OSError('the door is stuck, and nobody has the key to it')",
        "next": "retry in 2 s",
    }
    wide = Compact(colours=False)(None, "warning", {"event": "failed", "timestamp": "12:03:04", **told})
    shown = Compact(colours=colours, width=lambda: width)(
        None, "warning", {"event": "failed", "timestamp": "12:03:04", **told}
    )
    lines = re.sub(r"\x1b\[\d+m", "", shown).splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= width
    assert all(line.startswith(" " * 9) for line in lines[1:])
    assert " ".join(shown.split()) == " ".join(wide.split()) or colours
    assert [word for line in lines for word in line.split()] == wide.split()
