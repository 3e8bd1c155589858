"""Dead letters: everything that a person wants to know is written on them, and can be read again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo import dead_letter
from choreo.dead_letter import MAX_ERROR, MAX_TRACEBACK
from choreo.envelope import open_envelope
from choreo.message import Message, Reason

FIRST = datetime(2026, 1, 31, 12, tzinfo=UTC)
BODY = b"\x00 not even JSON \xff"


class BankDown(Exception):
    """A user's exception."""


class Mute(Exception):
    """An exception that cannot even say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def raised(error: Exception) -> Exception:
    """Return `error` with a traceback."""
    try:
        raise error
    except type(error) as caught:
        return caught


def letter(message: Message | None = None, **changes: Any) -> Message:
    """Return a dead letter, usual but for `changes`."""
    usual: dict[str, Any] = {
        "topic": "order.placed",
        "agent": "payment",
        "reason": Reason.EXHAUSTED,
        "error": raised(BankDown("no answer")),
        "reaction": "charge",
        "attempts": 5,
        "first_failure": FIRST,
        "code_version": "1.2.3",
    }
    return dead_letter.write(message or Message(BODY, message_id="m", correlation_id="c"), **usual | changes)


def test_a_dead_letter_tells_all_about_its_death() -> None:
    """Reason, error, traceback, agent, reaction, attempts, times, topic and code version can be read again."""
    read = dead_letter.read(letter(), agent="payment")
    assert (read.id, read.correlation_id, read.topic) == ("m", "c", "order.placed")
    assert (read.agent, read.reaction, read.attempts) == ("payment", "charge", 5)
    assert (read.reason, read.error, read.code_version) == ("exhausted", "no answer", "1.2.3")
    assert read.error_type is not None
    assert read.error_type.endswith("test_dead_letter.BankDown")
    assert read.traceback is not None
    assert "raise error" in read.traceback
    assert read.first_failure == FIRST
    assert read.last_failure is not None
    assert abs(datetime.now(UTC) - read.last_failure) < timedelta(minutes=1)


def test_its_bytes_and_its_own_headers_are_untouched() -> None:
    """The body is as it came, whatever it is; what the broker added is gone."""
    message = Message(BODY, {"x-death": [{}], "x-tenant": "t"}, message_id="m", content_type="text/odd")
    dead = letter(message)
    assert (dead.body, dead.content_type, dead.message_id) == (BODY, "text/odd", "m")
    assert dead.headers["x-tenant"] == "t"
    assert "x-death" not in dead.headers
    assert message.headers == {"x-death": [{}], "x-tenant": "t"}


def test_a_failure_at_the_first_try_is_its_first_failure() -> None:
    """Without an earlier failure, first and last failure are the same."""
    read = dead_letter.read(letter(first_failure=None), agent="payment")
    assert read.first_failure == read.last_failure


def test_a_message_that_reached_no_reaction_says_so() -> None:
    """What could not be opened has no reaction and perhaps no code version."""
    read = dead_letter.read(letter(reaction=None, code_version=None), agent="payment")
    assert (read.reaction, read.code_version) == (None, None)


def test_builtin_errors_go_by_their_plain_name() -> None:
    """ValueError is ValueError, not builtins.ValueError."""
    assert dead_letter.read(letter(error=ValueError("x")), agent="payment").error_type == "ValueError"


def test_long_errors_are_bounded() -> None:
    """The beginning of the text and the end of the traceback are kept, which is where they say most."""
    read = dead_letter.read(letter(error=raised(BankDown("x" * 50_000 + "end"))), agent="payment")
    assert read.error is not None
    assert len(read.error) == MAX_ERROR
    assert read.error.startswith("xxx")
    assert read.traceback is not None
    assert len(read.traceback) <= MAX_TRACEBACK + 10
    assert read.traceback.rstrip().endswith("end")


def test_what_is_short_enough_is_whole() -> None:
    """A text of just the allowed length is not touched, and an error that was never raised has no traceback."""
    read = dead_letter.read(letter(error=BankDown("x" * MAX_ERROR)), agent="payment")
    assert read.error == "x" * MAX_ERROR
    assert read.traceback is None


@pytest.mark.parametrize(
    "death", [[], {}, "crashed", [7], [{}], [{"routing-keys": []}], [{"routing-keys": 7}], [{"routing-keys": [""]}]]
)
def test_an_x_death_of_another_shape_tells_nothing(death: Any) -> None:
    """What a broker would not write is not read; the message's type still says its topic."""
    message = Message(b"", {"x-death": death}, message_id="", type="order.placed")
    read = dead_letter.read(message, agent="payment")
    assert (read.topic, read.reason) == ("order.placed", "unknown")
    assert read.id == open_envelope(message, "order.placed").id


@pytest.mark.parametrize("error", [Mute(), BankDown("\udcff\ud800"), BankDown("\x00")])
def test_whatever_the_error_is_the_letter_can_be_sent(error: Exception) -> None:
    """An exception whose text cannot be had, or is not UTF-8, must not keep its message from its dead letter."""
    headers = letter(error=raised(error)).headers
    assert all(value.encode() for value in headers.values() if isinstance(value, str))


def test_a_later_death_replaces_the_notes_of_an_earlier_one() -> None:
    """A message moved back by hand, with the notes of its first death on it, keeps none of them when it dies again."""
    again = letter(letter(), reaction=None, code_version=None, reason=Reason.UNDECODABLE, attempts=1)
    read = dead_letter.read(again, agent="payment")
    assert (read.reason, read.reaction, read.code_version, read.attempts) == ("undecodable", None, None, 1)


def test_a_message_that_the_broker_gave_up_is_read_from_its_x_death() -> None:
    """Past the delivery limit the broker dead-letters by itself; its own notes say when and from which topic."""
    death = {
        "reason": "delivery_limit",
        "queue": "choreo.payment",
        "time": FIRST,
        "routing-keys": ["order.placed"],
        "count": 1,
    }
    read = dead_letter.read(Message(b"{}", {"x-death": [death]}, message_id="m"), agent="payment")
    assert (read.id, read.topic, read.agent, read.reason) == ("m", "order.placed", "payment", "crashed")
    assert (read.last_failure, read.attempts, read.error) == (FIRST, 0, None)


@pytest.mark.parametrize(
    ("queue", "reason"),
    [
        ("choreo.payment", "expired"),
        ("choreo.payment.retry", "expired"),
        ("choreo.delay.0", "unclaimed"),
        ("choreo.shop-payment", "unclaimed"),
        (None, "unclaimed"),
    ],
)
def test_what_expired_in_the_agents_own_queue_is_not_what_found_no_queue(queue: str | None, reason: str) -> None:
    """A time to live in a queue that was there is `expired`, and the letter names the queue; back from a delay without
    one, it is `unclaimed`. Only the latest death counts."""
    latest = {"reason": "expired", "queue": queue, "time": FIRST, "routing-keys": ["order.placed"]}
    earlier = latest | {"queue": "choreo.delay.3"}
    read = dead_letter.read(Message(b"{}", {"x-death": [latest, earlier]}), agent="payment")
    assert read.reason == reason
    assert queue is None or queue in str(read.error)


def test_the_topic_of_a_retried_message_is_the_one_it_was_sent_with() -> None:
    """After a retry the routing key is that of the way back; the header still knows the topic."""
    death = {"reason": "delivery_limit", "routing-keys": ["0.1.agent.payment"]}
    message = Message(b"{}", {"x-death": [death], "choreo-topic": "order.placed"})
    assert dead_letter.read(message, agent="payment").topic == "order.placed"


values = st.none() | st.integers() | st.text(max_size=20) | st.binary(max_size=9) | st.datetimes()
tables = st.recursive(
    values,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["reason", "routing-keys", "time", "queue"]), inner, max_size=3)
    ),
    max_leaves=6,
)
NOTES = ("reason", "error-type", "error", "traceback", "agent", "reaction", "attempts", "last-failure", "code-version")
names = st.sampled_from(
    [*(f"choreo-dead-{note}" for note in NOTES), "x-death", "ce-id", "choreo-topic", "choreo-first-failure"]
)


@given(headers=st.dictionaries(names, tables, max_size=6))
def test_reading_never_fails(headers: dict[str, Any]) -> None:
    """A dead-letter queue can hold anything; what cannot be read is left out, and times can be compared."""
    read = dead_letter.read(Message(b"", headers), agent="payment")
    assert isinstance(read.reason, str)
    assert isinstance(read.topic, str)
    assert isinstance(read.attempts, int)
    for time in (read.first_failure, read.last_failure):
        assert time is None or isinstance(datetime.now(UTC) - time, timedelta)


def test_a_revived_message_is_as_it_was_before_it_died() -> None:
    """It goes back with its topic, as a first try, with nothing left of its death."""
    message = Message(b"{}", {"ce-id": "m", "choreo-hops": 2, "choreo-attempt": 4}, correlation_id="c")
    dead = letter(message)
    living = dead_letter.revived(dead, dead_letter.read(dead, agent="payment"))
    assert living.headers == {"ce-id": "m", "choreo-hops": 2, "choreo-topic": "order.placed"}
    assert (living.body, living.correlation_id) == (b"{}", "c")
    assert open_envelope(living, "order.placed").attempt == 1
    assert open_envelope(living, "order.placed").first_failure is None


def test_headers_that_leave_no_room_are_dropped_by_name() -> None:
    """The notes must fit into the one frame that headers have: the largest headers go, and the letter says which."""
    message = Message(b"{}", {"small": 1, "huge": "x" * 120_000, "choreo-correlation": "c"})
    letter = dead_letter.write(
        message, topic="a.b", agent="a", reason="headers", error=ValueError("too large"), **NOTHING_ELSE
    )
    assert "huge" not in letter.headers
    assert (letter.headers["small"], letter.headers["choreo-correlation"]) == (1, "c")
    assert letter.headers["choreo-dead-dropped-headers"] == "huge"
    assert message.headers["huge"]


NOTHING_ELSE: dict[str, Any] = {"reaction": None, "attempts": 1, "first_failure": None, "code_version": None}


def test_topic_is_never_dropped() -> None:
    """However many small headers fill the room before it: without its topic, a letter cannot be replayed."""
    written = letter(Message(b"{}", headers={str(number): "" for number in range(20_000)}))
    assert written.headers["choreo-topic"] == "order.placed"
    assert dead_letter.read(written, agent="payment").topic == "order.placed"


SECRET = "hunter2"
URL = f"postgresql://shop:{SECRET}@db.internal/orders"


class Quotes(Exception):
    """As database drivers do: it quotes what it was given."""

    def __str__(self) -> str:
        return f"cannot connect to {URL}"


@pytest.mark.parametrize("cut", [0, *range(MAX_ERROR - 120, MAX_ERROR, 7)])
def test_no_password_of_a_url_gets_onto_a_letter(cut: int) -> None:
    """Not in the text, the traceback, its notes, the exceptions before it, or those in a group; wherever it is cut."""
    inner = Quotes("." * cut + URL)
    inner.add_note(f"tried {URL} twice")
    try:
        try:
            raise inner
        except Quotes as first:
            raise ValueError("." * cut + f" {URL}") from first
    except ValueError as error:
        found = error
    for failure in (found, ExceptionGroup(URL, [found, inner])):
        written = letter(error=failure)
        assert SECRET not in str(written.headers)
        read = dead_letter.read(written, agent="payment")
        assert SECRET not in f"{read.error}{read.traceback}"


@pytest.mark.parametrize("cut", range(0, 80, 3))
def test_letters_that_were_written_before_are_shown_without_passwords(cut: int) -> None:
    """Releases before this one wrote exceptions as they were, cut where their length was over."""
    written = letter()
    written.headers["choreo-dead-error"] = f"cannot connect to {URL} today"[: 20 + cut] + "…"
    written.headers["choreo-dead-traceback"] = "[…]\n" + f"cannot connect to {URL}\nValueError: {URL}"[cut:]
    read = dead_letter.read(written, agent="payment")
    assert SECRET[:4] not in str(read.error)
    assert SECRET[3:] not in str(read.traceback)


@given(st.text(alphabet="/:@ ab", min_size=1, max_size=60))
def test_what_is_replayed_is_never_censored(text: str) -> None:
    """Ids, topics and bodies are data, whatever they look like."""
    written = letter(Message(text.encode(), message_id=text, correlation_id=text), topic=text)
    read = dead_letter.read(written, agent="payment")
    assert (read.body, read.topic) == (text.encode(), text)
    assert (read.id or "", read.correlation_id or "") == (text, text)


def test_of_a_group_the_letter_names_what_is_in_it() -> None:
    """The text of a TaskGroup's error says only how many there were."""
    error = ExceptionGroup("unhandled errors in a TaskGroup", [OSError("net"), ExceptionGroup("x", [KeyError("k")])])
    read = dead_letter.read(letter(error=error), agent="payment")
    assert read.error == "unhandled errors in a TaskGroup (2 sub-exceptions): OSError: net; KeyError: 'k'"
