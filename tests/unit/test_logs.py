"""What log lines look like, and that no value, exception or closed stderr can break the code that logs."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
import timeit
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import structlog
from pydantic import SecretStr

from choreo.censor import censored
from choreo.errors import ConfigurationError
from choreo.observe import logs


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def untouched_logging() -> Iterator[None]:
    """Put back what `configure` sets for the whole process."""
    root = logging.getLogger()
    names = ("aio_pika", "aiormq", "asyncio")
    levels = {name: logging.getLogger(name).level for name in names}
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    for name, former in levels.items():
        logging.getLogger(name).setLevel(former)
    logging.captureWarnings(capture=False)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


class Captured:
    """All that went to stderr so far; it is not a terminal."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    @property
    def text(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Captured:
    return Captured(capsys)


def lines(stderr: Captured) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stderr.text.splitlines()]


def only(stderr: Captured) -> dict[str, Any]:
    (line,) = lines(stderr)
    return line


class TestFormat:
    def test_json_lines_when_stderr_is_not_a_terminal(self, stderr: Captured):
        """One object per line, with event, level, UTC time and what was bound."""
        logs.configure("info", "auto")

        log = structlog.get_logger().bind(agent="payment", event_id="e-1", correlation_id="c-1")
        log.warning("retry", attempt=2, delay=1.5)

        line = only(stderr)
        taken = datetime.fromisoformat(line.pop("timestamp"))
        assert taken.tzinfo == UTC
        assert abs(taken.timestamp() - time.time()) < 60
        assert line == {
            "event": "retry",
            "level": "warning",
            "agent": "payment",
            "event_id": "e-1",
            "correlation_id": "c-1",
            "attempt": 2,
            "delay": 1.5,
        }
        assert stderr.text.startswith('{"event": "retry", "level": "warning", "timestamp": "2')

    def test_pretty_on_a_terminal(self, monkeypatch: pytest.MonkeyPatch):
        """Colours on a terminal, unless NO_COLOR asks for none."""
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        for wanted in (True, False):
            terminal = Terminal()
            monkeypatch.setattr(sys, "stderr", terminal)
            logs.configure("info", "auto")
            structlog.get_logger().info("consuming", agent="payment")
            text = terminal.getvalue()
            assert "consuming" in text
            assert "payment" in text
            assert ("\x1b[" in text) is wanted
            monkeypatch.setenv("NO_COLOR", "1")

    @pytest.mark.parametrize(("format_", "is_json"), [("json", True), ("pretty", False)])
    def test_an_explicit_format_wins(self, stderr: Captured, format_: logs.Format, is_json: bool):
        logs.configure("info", format_)

        structlog.get_logger().info("consuming", agent="payment")

        assert stderr.text.startswith("{") is is_json
        assert "consuming" in stderr.text

    def test_a_pretty_line_cannot_steer_the_terminal(self, stderr: Captured):
        """Escape sequences and line breaks of foreign texts are shown, not obeyed."""
        logs.configure("info", "pretty")

        structlog.get_logger().info("got\x1b[2J\nfalse line", message_id="\x1b]0;title\x07\x9b2J", n=["\x1b"])

        text = stderr.text
        assert "\x1b" not in text
        assert "\x9b" not in text
        assert "\x07" not in text
        assert text.count("\n") == 1
        assert r"\x1b[2J" in text

    def test_contextvars_are_shown(self, stderr: Captured):
        logs.configure("info", "json")
        structlog.contextvars.bind_contextvars(agent="order")

        structlog.get_logger().info("placed")

        assert only(stderr)["agent"] == "order"

    @pytest.mark.parametrize(
        ("level", "format_", "said"),
        [("loud", "json", "debug, info, warning, error, critical"), ("info", "xml", "auto, pretty, json")],
    )
    def test_wrong_settings_name_the_allowed_ones(self, level: str, format_: Any, said: str):
        with pytest.raises(ConfigurationError) as caught:
            logs.configure(level, format_)

        assert said in caught.value.way_out


class TestLevels:
    def test_lines_below_the_level_are_left_out(self, stderr: Captured):
        logs.configure("warning", "json")

        log = structlog.get_logger()
        log.debug("settled")
        log.info("consuming")
        log.warning("retry")
        log.error("dead letter")

        assert [line["event"] for line in lines(stderr)] == ["retry", "dead letter"]

    def test_level_names_are_not_case_sensitive(self, stderr: Captured):
        logs.configure("DEBUG", "json")

        structlog.get_logger().debug("settled")

        assert only(stderr)["level"] == "debug"

    def test_a_call_below_the_level_does_nothing_with_its_values(self, stderr: Captured):
        """Its values are not looked at, and it costs a fraction of a microsecond (40 to 130 ns measured)."""
        logs.configure("info", "json")
        log = structlog.get_logger().bind(agent="payment", event_id="e-1")

        log.debug("settled", value=Unshowable())
        best = min(timeit.repeat(lambda: log.debug("settled", topic="order.placed"), number=20_000, repeat=9))

        assert stderr.text == ""
        assert best / 20_000 < 1e-6

    def test_used_loggers_are_cached(self, stderr: Captured):
        logs.configure("info", "json")
        log = structlog.get_logger()
        log.info("first")

        assert log.bind() is log.bind()


class TestPasswords:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("amqp://choreo:secret@rabbit:5672/%2F", "amqp://choreo:***@rabbit:5672/%2F"),
            ("amqps://:secret@rabbit", "amqps://:***@rabbit"),
            ("amqp://choreo:s@c/r:e#t@rabbit/v", "amqp://choreo:***@rabbit/v"),
            ("amqp://choreo:@rabbit", "amqp://choreo:***@rabbit"),
            ("amqp://a:one@x,amqp://b:two@y", "amqp://a:***@x,amqp://b:***@y"),
            ("cannot reach amqp://a:one@x: refused", "cannot reach amqp://a:***@x: refused"),
            ('{"url":"amqp://a:one@x"}', '{"url":"amqp://a:***@x"}'),
            ("url='http://admin:one@x/api'\nnext", "url='http://admin:***@x/api'\nnext"),
        ],
    )
    def test_never_printed(self, stderr: Captured, text: str, shown: str):
        """Wherever a URL stands in a line, its password is not printed."""
        logs.configure("info", "json")

        structlog.get_logger().info(text, url=text, nested={"urls": [text]}, **{text: 1})

        line = only(stderr)
        assert line["event"] == line["url"] == line["nested"]["urls"][0] == shown
        assert line[shown] == 1

    @pytest.mark.parametrize(
        "text",
        ["amqp://rabbit:5672/", "amqp://choreo@rabbit", "http://[::1]:8080/ready", "a@b.example", "://"],
    )
    def test_the_rest_is_left_alone(self, text: str):
        assert censored(text) == text

    @pytest.mark.parametrize("format_", ["json", "pretty"])
    def test_not_in_exceptions_either(self, stderr: Captured, format_: logs.Format):
        """Neither a traceback nor the repr() of any object shows it."""
        logs.configure("info", format_)
        error = ConnectionError("no answer from amqp://choreo:secret@rabbit")
        error.add_note("tried amqp://choreo:secret@rabbit twice")

        try:
            raise error
        except ConnectionError:
            structlog.get_logger().exception(
                "lost", error=error, password=SecretStr("secret"), raw=b"amqp://a:secret@x"
            )
        logging.getLogger("bank").error("no answer from %s", "amqp://choreo:secret@rabbit")

        assert "amqp://choreo:***@rabbit" in stderr.text
        # The source line of the traceback above has it as well, so look for what the program held.
        assert ":secret@" not in stderr.text
        assert "SecretStr('secret')" not in stderr.text

    @pytest.mark.parametrize("at", range(2_030, 2_060))
    def test_not_where_a_long_text_is_cut(self, stderr: Captured, at: int):
        """A URL at the place where the middle is left out does not show half of its password."""
        url = "amqp://choreo:" + "secret" * 3 + "@rabbit "
        for text in (
            ("x " * at)[: at - 14] + url + "y " * 5_000,
            "y " * 5_000 + ("x " * at)[: at - 14] + url + ("z " * 3_100)[: 6_144 - len(url) + at - 2_045],
        ):
            logs.configure("info", "json")
            structlog.get_logger().info(text)
        assert "secret" not in stderr.text

    def test_long_hostile_texts_are_cheap(self):
        """No text makes the search for passwords take long."""
        for text in ("://:" * 500_000, "a" * 2_000_000 + "://@", ("a" * 9 + "://a:") * 100_000 + "@"):
            began = time.process_time()
            censored(text)
            assert time.process_time() - began < 2


def raised(error: Exception) -> Exception:
    """Return `error` with the traceback that raising gives it."""
    try:
        raise error
    except type(error):
        return error


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class TestValues:
    def test_every_value_gets_a_line(self, stderr: Captured):
        """What JSON cannot say is shown by its repr(), and if that fails by its type."""
        logs.configure("info", "json")
        circle: list[object] = []
        circle.append(circle)

        structlog.get_logger().info(
            "all",
            whole=3,
            yes=True,
            nothing=None,
            price=Decimal("42.00"),
            id=UUID(int=1),
            when=datetime(2026, 1, 2, tzinfo=UTC),
            where=Path("agents/order.py"),
            nan=float("nan"),
            raw=b"\xff",
            lone="\udcff",
            broken=Unshowable(),
            keys={1: "a", Unshowable: 2},
            bad_key={"fine": 1, ("a", "b"): Unshowable()},
            circle=circle,
            many=range(3),
            items=list(range(1_000)),
            table=dict.fromkeys(range(1_000)),
            huge=10**5_000,
        )

        line = only(stderr)
        assert (line["whole"], line["yes"], line["nothing"]) == (3, True, None)
        assert line["price"] == "42.00"
        assert line["id"] == "00000000-0000-0000-0000-000000000001"
        assert line["when"] == "2026-01-02 00:00:00+00:00"
        assert line["where"] == "agents/order.py"
        assert line["nan"] == "nan"
        assert line["raw"] == r"b'\xff'"
        assert line["lone"] == "\udcff"
        assert line["broken"] == "<Unshowable that cannot be shown: RuntimeError>"
        assert line["keys"]["1"] == "a"
        assert line["bad_key"]["('a', 'b')"] == "<Unshowable that cannot be shown: RuntimeError>"
        assert line["circle"] == [[[["[[...]]"]]]]
        assert line["many"] == "range(0, 3)"
        assert line["items"][-2:] == [63, "and 936 more"]
        assert line["table"]["..."] == "and 936 more"
        assert line["huge"] == "<int that cannot be shown: ValueError>"
        assert all(ord(character) < 128 for character in stderr.text)

    def test_a_long_text_keeps_its_ends(self, stderr: Captured):
        """A body of a megabyte in a log line is cut in the middle, and the line says by how much."""
        logs.configure("info", "json")

        structlog.get_logger().info("body", text="<" + "x" * 1_000_000 + ">")

        text = only(stderr)["text"]
        assert text.startswith("<xxx")
        assert text.endswith("xxx>")
        assert "[991810 characters left out]" in text
        assert len(text) < 8_300

    def test_an_exception_is_one_bounded_text_field(self, stderr: Captured):
        """The traceback's start and end are kept, whatever its length."""
        logs.configure("info", "json")

        structlog.get_logger().error("dead letter", exc_info=raised(ValueError("y" * 100_000 + " the end")))

        line = only(stderr)
        assert line["level"] == "error"
        assert line["exception"].startswith("Traceback (most recent call last):\n")
        assert line["exception"].endswith(" the end")
        assert len(line["exception"]) < 8_300
        assert "exc_info" not in line

    @pytest.mark.parametrize("format_", ["json", "pretty"])
    def test_every_way_to_give_an_exception(self, stderr: Captured, format_: logs.Format):
        """An instance, a tuple, True inside a handler; True outside one adds nothing."""
        logs.configure("info", format_)
        log = structlog.get_logger()
        error = ValueError("three doors")

        log.warning("instance", exc_info=error)
        log.warning("tuple", exc_info=(ValueError, error, None))
        try:
            raise error
        except ValueError:
            log.warning("true", exc_info=True)
        assert stderr.text.count("ValueError: three doors") == 3

        log.warning("nothing", exc_info=True)  # noqa: LOG014 - a mistake that users make
        assert stderr.text.count("ValueError: three doors") == 3

    def test_an_exception_that_cannot_be_formatted(self, stderr: Captured):
        """An exception of the user's whose attributes raise is still named."""

        class Hostile(Exception):
            @property
            def __notes__(self) -> list[str]:  # type: ignore[override]
                raise RuntimeError("no notes")

        logs.configure("info", "json")

        structlog.get_logger().error("dead letter", exc_info=Hostile("text"))

        assert "Hostile" in only(stderr)["exception"]


class TestStderr:
    @pytest.mark.parametrize("format_", ["auto", "json", "pretty"])
    def test_closed_or_missing(self, monkeypatch: pytest.MonkeyPatch, format_: logs.Format):
        """A process without a usable stderr works on in silence."""
        closed = io.StringIO()
        closed.close()
        for stream in (closed, None):
            monkeypatch.setattr(sys, "stderr", stream)
            logs.configure("info", format_)
            structlog.get_logger().info("consuming")
            logging.getLogger("bank").error("lost")

    def test_a_full_disk(self, monkeypatch: pytest.MonkeyPatch):
        """/dev/full refuses every write, as a full disk behind a redirected stderr does."""
        full = Path("/dev/full").open("w", buffering=1)  # noqa: SIM115 - closing it fails as well
        monkeypatch.setattr(sys, "stderr", full)
        logs.configure("info", "json")

        structlog.get_logger().info("consuming")

        with pytest.raises(OSError, match="No space"):
            full.close()


class TestStandardLibrary:
    def test_has_the_same_shape(self, stderr: Captured):
        """A library's warning is one JSON line too, with the logger that said it and its traceback."""
        logs.configure("info", "json")

        error = raised(ValueError("three doors"))
        logging.getLogger("bank.client").error("no answer from %s in %d s", "bank", 3, exc_info=error)
        logging.getLogger("bank.client").debug("not at this level")

        line = only(stderr)
        assert line["event"] == "no answer from bank in 3 s"
        assert line["level"] == "error"
        assert line["logger"] == "bank.client"
        assert line["exception"].endswith("ValueError: three doors")
        assert line["timestamp"].endswith("Z")

    def test_wrong_arguments_are_shown(self, stderr: Captured, monkeypatch: pytest.MonkeyPatch):
        """A library whose format string does not fit its arguments loses neither."""
        monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own handler raises for them
        logs.configure("info", "json")

        logging.getLogger("bank").warning("%d doors", "three")

        assert only(stderr)["event"] == "%d doors ['three']"

    @pytest.mark.parametrize(
        ("name", "quiet", "passes"),
        [
            ("aio_pika.robust_connection", logging.ERROR, logging.CRITICAL),
            ("aiormq.connection", logging.ERROR, logging.CRITICAL),
            ("asyncio", logging.INFO, logging.WARNING),
        ],
    )
    def test_client_libraries_are_kept_down(self, stderr: Captured, name: str, quiet: int, passes: int):
        """What the broker session tells itself is not told twice."""
        logs.configure("debug", "json")

        logging.getLogger(name).log(quiet, "quiet")
        logging.getLogger(name).log(passes, "loud")

        assert [line["event"] for line in lines(stderr)] == ["loud"]

    def test_python_warnings_are_lines_too(self, stderr: Captured):
        """A DeprecationWarning does not break a file of JSON lines."""
        logs.configure("info", "json")

        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning(UserWarning("old doors"), UserWarning, "agents/order.py", 3)

        line = only(stderr)
        assert line["logger"] == "py.warnings"
        assert "old doors" in line["event"]

    def test_configuring_again_does_not_double_lines(self, stderr: Captured):
        logs.configure("info", "json")
        logs.configure("info", "json")

        logging.getLogger("bank").warning("once")

        assert only(stderr)["event"] == "once"
