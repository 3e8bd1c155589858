"""What outlasts a restart, in a SQLite file: the durable exchanges, queues, bindings and messages as they stand.

Changes are gathered, and written in one transaction before the clients hear of them: a message that came and went
meanwhile never reaches the file. A killed process loses nothing that it confirmed; a machine that loses its power may
lose the last moments, but not the file (SQLite's WAL with synchronous=NORMAL).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final, Self, cast

from choreo.amqp import encode
from choreo.broker.core import (
    Binding,
    Bound,
    Change,
    Counted,
    Death,
    ExchangeDeclared,
    ExchangeDeleted,
    Message,
    QueueDeclared,
    QueueDeleted,
    Settled,
    Stored,
    Unbound,
)
from choreo.broker.server.properties import RawProperties
from choreo.errors import ConfigurationError

_VERSION: Final = 1
_MAGIC: Final = 0x63686F72  # "chor": no other program's file is taken for ours
_SCHEMA: Final = """
CREATE TABLE exchanges (name TEXT PRIMARY KEY, type TEXT, auto_delete INT, internal INT, arguments BLOB);
CREATE TABLE queues (name TEXT PRIMARY KEY, auto_delete INT, arguments BLOB);
CREATE TABLE bindings (source TEXT, destination TEXT, to_ TEXT, key BLOB, arguments BLOB,
  PRIMARY KEY (source, destination, to_, key, arguments));
CREATE TABLE messages (queue TEXT, number INT, way TEXT, properties BLOB, body BLOB,
  expires REAL, failures INT, dying TEXT, PRIMARY KEY (queue, number)) WITHOUT ROWID;
"""
_ONLY_HEADERS: Final = b"\x20\x00"  # the flags of properties that are nothing but a header table

_Place = tuple[str, int]  # queue and number
_Statement = tuple[str, tuple[Any, ...]]


class Store:
    """The file at `path`, made when it is not there. One broker at a time has it.

    Raises ConfigurationError when it cannot be used; so do the methods, when the disk fails.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stored: dict[_Place, Stored] = {}
        self._settled: list[_Place] = []
        self._counted: dict[_Place, Counted] = {}
        self._declared: list[_Statement] = []
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=0.2)
        except sqlite3.Error as error:
            raise self._unusable(error) from None
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._db.close()
            raise self._unusable(error) from None
        except ConfigurationError:
            self._db.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self) -> None:
        execute = self._db.execute
        execute("PRAGMA locking_mode=EXCLUSIVE")
        version, magic = (execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id"))
        empty = not execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not empty and (version, magic) != (_VERSION, _MAGIC):
            raise ConfigurationError(
                f"{self.path} is not a file that this embedded broker has written", "name another file, or a new one"
            )
        execute("PRAGMA journal_mode=WAL")
        execute("PRAGMA synchronous=NORMAL")
        if empty:
            self._db.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA user_version={_VERSION}; PRAGMA application_id={_MAGIC}; COMMIT"
            )
        elif execute("PRAGMA freelist_count").fetchone()[0] * 2 > execute("PRAGMA page_count").fetchone()[0]:
            execute("VACUUM")  # more than half of it is what settled messages left behind
        execute("BEGIN IMMEDIATE")  # takes the lock, which nobody else gets from now on
        execute("COMMIT")

    # -- from the file --------------------------------------------------------------------------------------------

    def kept(self) -> Iterator[Change]:
        """Return what the file holds, as changes that lead there."""
        execute = self._db.execute
        with closing(execute("SELECT * FROM exchanges")) as rows:
            for name, kind, auto_delete, internal, given in rows:
                yield ExchangeDeclared(name, kind, bool(auto_delete), bool(internal), _arguments(given))
        with closing(execute("SELECT * FROM queues ORDER BY rowid")) as rows:
            for name, auto_delete, given in rows:
                yield QueueDeclared(name, bool(auto_delete), _arguments(given))
        with closing(execute("SELECT * FROM bindings")) as rows:
            for source, destination, to, key, given in rows:
                yield Bound(Binding(source, destination, to, _text(key), _arguments(given)))
        with closing(execute("SELECT * FROM messages ORDER BY queue, number")) as rows:
            for queue, number, way, properties, body, expires, failures, dying in rows:
                yield Stored(queue, number, _message(way, properties, body), expires, failures, dying)

    # -- to the file ----------------------------------------------------------------------------------------------

    def note(self, change: Change) -> None:
        """Take a change: the core's journal. `commit` makes it last."""
        match change:
            case Stored(queue, number):
                self._stored[queue, number] = change
            case Settled(queue, number):
                if self._stored.pop((queue, number), None) is None:
                    self._counted.pop((queue, number), None)
                    self._settled.append((queue, number))
            case Counted(queue, number, failures, dying):
                stored = self._stored.get((queue, number))
                if stored is None:
                    self._counted[queue, number] = change
                else:
                    self._stored[queue, number] = stored._replace(failures=failures, dying=dying)
            case _:
                if isinstance(change, QueueDeleted):  # what is noted of its messages is over
                    self._stored = {place: each for place, each in self._stored.items() if place[0] != change.name}
                    self._counted = {place: each for place, each in self._counted.items() if place[0] != change.name}
                self._declared += _declaring(change)

    def commit(self) -> None:
        """Return when everything that was noted outlasts this process. Raises ConfigurationError when it does not."""
        if not (self._declared or self._settled or self._stored or self._counted):
            return
        try:
            self._db.execute("BEGIN")
            for statement, row in self._declared:
                self._db.execute(statement, row)
            self._write_messages()
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def close(self) -> None:
        """Commit, and give the file back. May be called twice."""
        self.commit()
        self.abandon()

    def abandon(self) -> None:
        """Give the file back as it was last committed."""
        self._db.close()

    def _write_messages(self) -> None:
        self._declared = []
        many = self._db.executemany
        if self._settled:
            many("DELETE FROM messages WHERE queue = ? AND number = ?", self._settled)
            self._settled = []
        if self._stored:
            many("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [_row(each) for each in self._stored.values()])
            self._stored = {}
        if self._counted:
            rows = [(each.failures, each.dying, each.queue, each.number) for each in self._counted.values()]
            many("UPDATE messages SET failures = ?, dying = ? WHERE queue = ? AND number = ?", rows)
            self._counted = {}

    def _unusable(self, error: sqlite3.Error) -> ConfigurationError:
        if error.sqlite_errorcode == sqlite3.SQLITE_BUSY if hasattr(error, "sqlite_errorcode") else False:
            return ConfigurationError(f"{self.path} is in use by another broker", "end that one, or name another file")
        return ConfigurationError(f"{self.path} cannot keep what the broker holds: {error}", "name another file")


def _declaring(change: Change) -> list[_Statement]:
    """Return how a change of exchanges, queues or bindings is written."""
    match change:
        case ExchangeDeclared(name, kind, auto_delete, internal, given):
            table = encode.table(dict(given))
            return [
                ("INSERT OR REPLACE INTO exchanges VALUES (?, ?, ?, ?, ?)", (name, kind, auto_delete, internal, table))
            ]
        case ExchangeDeleted(name):
            return [
                ("DELETE FROM exchanges WHERE name = ?", (name,)),
                ("DELETE FROM bindings WHERE source = ? OR destination = ? AND to_ = 'exchange'", (name, name)),
            ]
        case QueueDeclared(name, auto_delete, given):
            return [("INSERT OR REPLACE INTO queues VALUES (?, ?, ?)", (name, auto_delete, encode.table(dict(given))))]
        case QueueDeleted(name):
            return [
                ("DELETE FROM queues WHERE name = ?", (name,)),
                ("DELETE FROM messages WHERE queue = ?", (name,)),
                ("DELETE FROM bindings WHERE destination = ? AND to_ = 'queue'", (name,)),
            ]
        case Bound(binding):
            return [("INSERT OR REPLACE INTO bindings VALUES (?, ?, ?, ?, ?)", _binding(binding))]
        case Unbound(binding):
            where = "source = ? AND destination = ? AND to_ = ? AND key = ? AND arguments = ?"
            return [(f"DELETE FROM bindings WHERE {where}", _binding(binding))]  # noqa: S608 - a constant
    raise AssertionError(change)


def _row(stored: Stored) -> tuple[Any, ...]:
    message = stored.message
    way = (message.exchange, message.keys, message.ttl, message.hidden, message.failures)
    deaths = (message.deaths, message.first_death, message.last_death) if message.deaths else ()
    raw = cast("RawProperties", message.properties).raw
    last = (stored.expires, stored.failures, stored.dying)
    return stored.queue, stored.number, json.dumps((*way, *deaths)), raw, message.body, *last


def _message(way: str, properties: bytes, body: bytes) -> Message:
    exchange, keys, ttl, hidden, failures, *deaths = json.loads(way)
    message = Message(exchange, tuple(keys), RawProperties(properties), body, ttl, tuple(hidden), failures)
    if not deaths:
        return message
    tables = tuple(
        Death(queue, reason, times, time, source, tuple(routed), expiration)
        for queue, reason, times, time, source, routed, expiration in deaths[0]
    )
    first, last = (each and tuple(each) for each in deaths[1:])
    return message._replace(deaths=tables, first_death=first, last_death=last)


def _binding(binding: Binding) -> tuple[Any, ...]:
    source, destination, to, key, given = binding
    # SQLite takes no text that is not UTF-8.
    return source, destination, to, key.encode("utf-8", "surrogateescape"), encode.table(dict(given))


def _text(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")


def _arguments(table: bytes) -> dict[str, Any]:
    return dict(RawProperties(_ONLY_HEADERS + table).headers or {})
