"""Broker URLs: ``amqps://user:password@host:5671/vhost?heartbeat=10``, read strictly, shown without password.

The grammar is RabbitMQ's URI specification. Clients are lenient where it hurts: a missing user becomes guest,
a misspelt parameter is ignored, ``no_verify_ssl=false`` turns verification off. Here the unknown is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import Any, Final
from urllib.parse import quote, unquote

from choreo import duration
from choreo.errors import InvalidUrl

DEFAULT_HEARTBEAT: Final = 10  # seconds; a half-open connection is found after about three of them
DEFAULT_CONNECTION_TIMEOUT: Final = 5.0  # seconds
LONGEST_HEARTBEAT: Final = 600  # seconds
LONGEST_CONNECTION_TIMEOUT: Final = (
    300.0  # seconds; other clients count milliseconds: 5000 is a mistake, not 83 minutes
)

_PORTS: Final = {"amqp": 5672, "amqps": 5671}
_TLS_FILES: Final = ("cafile", "certfile", "keyfile")
_PARAMETERS: Final = ("heartbeat", "connection_timeout", *_TLS_FILES)
_EXAMPLE: Final = "amqp://user:password@host:5672/vhost"
_ESCAPES: Final = "in a user, a password or a virtual host write @ as %40, / as %2F, ? as %3F, # as %23 and % as %25"

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_NEXT_URL: Final = re.compile(r",(?=\s*amqps?://)", re.IGNORECASE)  # any other comma may be a password's
_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """Where a broker is and how to log in.

    `heartbeat` and `connection_timeout` are seconds. `cafile`, `certfile` and `keyfile` are paths of PEM
    files, for ``amqps`` only. `str()` and `repr()` show user and host, never the password.
    """

    scheme: str
    host: str
    port: int
    user: str
    password: str = field(repr=False)
    vhost: str = "/"
    heartbeat: int = DEFAULT_HEARTBEAT
    connection_timeout: float = DEFAULT_CONNECTION_TIMEOUT
    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None

    @classmethod
    def parse(cls, text: str, *, password: str | None = None, name: str = "the broker URL") -> BrokerUrl:
        """Read one URL. `password`, when given, replaces the one in it; `name` is what errors call it.

        Without a user it is guest/guest, and only on this machine: no broker lets guest in from another one.
        Raises InvalidUrl. Its text repeats no part of the URL that could be a piece of a password.
        """
        try:
            return _parse(text.strip(), password)
        except InvalidUrl as wrong:
            found = InvalidUrl(f"{name} {wrong.message}", wrong.way_out)
        raise found  # outside of the block above, so that no chained error keeps what was read

    @classmethod
    def parse_all(
        cls, text: str, *, password: str | None = None, name: str = "the broker URL"
    ) -> tuple[BrokerUrl, ...]:
        """Read a comma-separated list of URLs, the nodes of one cluster in the order to try them."""
        parts = _NEXT_URL.split(text)
        if len(parts) == 1:
            return (cls.parse(text, password=password, name=name),)
        return tuple(
            cls.parse(part, password=password, name=f"{name} (number {number} of {len(parts)})")
            for number, part in enumerate(parts, 1)
        )

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme == "amqps"

    @property
    def address(self) -> str:
        """Host and port, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def censored(self) -> str:
        """The URL without its password and parameters: what logs and messages show."""
        vhost = "" if self.vhost == "/" else f"/{quote(self.vhost, safe='')}"
        return f"{self.scheme}://{quote(self.user, safe='')}@{self.address}{vhost}"

    def __str__(self) -> str:
        return self.censored


def _parse(text: str, password: str | None) -> BrokerUrl:
    if any(character.isspace() or not character.isprintable() for character in text):
        raise InvalidUrl("has a space or a control character in it", "write a space as %20")
    scheme, rest = _scheme(text)
    authority, path, query = _split(rest)
    login, at, place = authority.rpartition("@")
    host, port = _place(place, _PORTS[scheme])
    user, secret = _login(login, host, password, given=bool(at))
    return BrokerUrl(scheme, host, port, user, secret, _vhost(path), **_parameters(query, scheme))


def _scheme(text: str) -> tuple[str, str]:
    found = _SCHEME.match(text)
    if found is None:
        raise InvalidUrl("does not begin with amqp:// or amqps://", f"write it as {_EXAMPLE}")
    scheme = found[1].lower()
    if scheme not in _PORTS:
        raise InvalidUrl(f"begins with {found[0]}", f"use amqp:// or amqps://: {_EXAMPLE}")
    return scheme, text[found.end() :]


def _split(rest: str) -> tuple[str, str, str]:
    """Return host with login, path and query; refuse what clients would split in different places."""
    end = re.search(r"[/?#]", rest)
    authority, tail = (rest[: end.start()], rest[end.start() :]) if end else (rest, "")
    if "@" in tail:
        # Most likely the password holds one of these; what stands before it would be taken for the host.
        raise InvalidUrl('has a "/", "?" or "#" before an "@"', _ESCAPES)
    if "#" in tail:
        raise InvalidUrl('has a "#" in it', _ESCAPES)
    path, _, query = tail.partition("?")
    return authority, path, query


def _place(place: str, default_port: int) -> tuple[str, int]:
    if place.startswith("["):
        host, bracket, port = place[1:].partition("]")
        try:
            host = str(IPv6Address(_decode(host, "its host")))
        except ValueError:
            bracket = ""
        if not bracket or (port and not port.startswith(":")):
            raise InvalidUrl("has brackets that hold no IPv6 address", f"write it as {_EXAMPLE} or amqp://[::1]")
    else:
        if place.count(":") > 1:
            raise InvalidUrl(
                'has more than one ":" in its host', "an IPv6 address stands in brackets: amqp://[::1]:5672"
            )
        host, colon, number = place.partition(":")
        port = colon + number
        if not host:
            raise InvalidUrl("names no host", f"write it as {_EXAMPLE}")
        if not _HOST.fullmatch(host):
            raise InvalidUrl("has a character in its host that no host name has", f"{_EXAMPLE}; {_ESCAPES}")
    if not port:
        return host, default_port
    # The text is not repeated: in amqp://user:password, without a host, it is the password.
    if not _PORT.fullmatch(port[1:]) or not 0 < int(port[1:]) < 65536:
        raise InvalidUrl("has a port that is not a number from 1 to 65535", f"{_EXAMPLE}; {_ESCAPES}")
    return host.lower(), int(port[1:])


def _login(login: str, host: str, password: str | None, *, given: bool) -> tuple[str, str]:
    user, _, secret = login.partition(":")
    user, secret = _decode(user, "its user"), _decode(secret, "its password")
    if not user and secret:
        raise InvalidUrl("has a password and no user", f"write it as {_EXAMPLE}")
    if not user and not _is_loopback(host):
        raise InvalidUrl(
            f"names no user for the host {host!r}",
            f"{_EXAMPLE}; without a user it is guest, on this machine only",
        )
    if not user:
        user, secret = "guest", "guest"
    secret = secret if password is None else password
    if not secret:
        raise InvalidUrl(
            f"has no password for the user {user!r}" if given else "has an empty password",
            f"write it as {_EXAMPLE}, or give CHOREO_PASSWORD or CHOREO_PASSWORD_FILE",
        )
    if "\0" in user + secret:
        # SASL PLAIN separates user and password by it.
        raise InvalidUrl("has a NUL character in its user or password", "a login has none")
    return user, secret


def _vhost(path: str) -> str:
    if path in ("", "/", "//"):  # "//" is how Celery users write the virtual host "/"
        return "/"
    if "/" in path[1:]:
        raise InvalidUrl('has more than one "/" after its host', "a / in the name of a virtual host is written %2F")
    vhost = _decode(path[1:], "its virtual host")
    if len(vhost.encode()) > 255 or not vhost.isprintable():
        raise InvalidUrl("has a virtual host that no broker has", "its name is printable and has at most 255 bytes")
    return vhost


def _parameters(query: str, scheme: str) -> Mapping[str, Any]:
    found: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        key, _, value = part.partition("=")
        key = _decode(key, "its parameters")
        if key == "no_verify_ssl":
            raise InvalidUrl(
                "has the parameter no_verify_ssl: whoever sits between could read and change every event",
                "trust the broker's authority instead: ?cafile=/path/ca.pem",
            )
        if key not in _PARAMETERS:
            raise InvalidUrl(f"has the unknown parameter {key!r}", f"allowed: {', '.join(_PARAMETERS)}")
        if key in found:
            raise InvalidUrl(f"has the parameter {key} twice", "give it once")
        found[key] = _decode(value, f"its parameter {key}")
    return {
        "heartbeat": _heartbeat(found.get("heartbeat")),
        "connection_timeout": _connection_timeout(found.get("connection_timeout")),
        **_tls_files(found, scheme),
    }


def _heartbeat(value: str | None) -> int:
    if value is None:
        return DEFAULT_HEARTBEAT
    if not re.fullmatch(r"[0-9]{1,5}", value) or not 0 < int(value) <= LONGEST_HEARTBEAT:
        raise InvalidUrl(
            f"has heartbeat={value!r}",
            f"whole seconds from 1 to {LONGEST_HEARTBEAT}; without it a dead connection goes unnoticed",
        )
    return int(value)


def _connection_timeout(value: str | None) -> float:
    if value is None:
        return DEFAULT_CONNECTION_TIMEOUT
    try:
        length = duration.seconds(value)
    except ValueError:
        length = 0.0
    if not 0 < length <= LONGEST_CONNECTION_TIMEOUT:
        raise InvalidUrl(
            f"has connection_timeout={value!r}",
            f"seconds, or a length such as 500ms or 5s; at most {duration.text(LONGEST_CONNECTION_TIMEOUT)}",
        )
    return length


def _tls_files(found: Mapping[str, str], scheme: str) -> dict[str, str]:
    files = {key: found[key] for key in _TLS_FILES if key in found}
    for key, value in files.items():
        if scheme != "amqps":
            raise InvalidUrl(f"has {key}, but amqp:// is not encrypted", "use amqps://")
        if not value:
            raise InvalidUrl(f"has {key} without a path", f"{key}=/path/to/file.pem")
    if "keyfile" in files and "certfile" not in files:
        raise InvalidUrl("has keyfile without certfile", "a key belongs to a certificate: give both")
    return files


def _decode(text: str, what: str) -> str:
    if _BAD_ESCAPE.search(text):
        raise InvalidUrl(f'has a "%" in {what} that two hexadecimal digits do not follow', "write % itself as %25")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        pass
    raise InvalidUrl(f"has %-escapes in {what} that are not UTF-8", "escape the bytes of its UTF-8 form")


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
