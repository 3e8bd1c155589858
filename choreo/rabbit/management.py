"""A small client of RabbitMQ's management API. It only adds detail: everything essential works over AMQP alone.

Its answers differ from release to release and are thin where statistics are off, so every figure may be missing.
Source: the HTTP API reference that every broker with the management plugin serves at `/api/index.html`.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, Final, TypeVar
from urllib.parse import quote, unquote, urlencode, urlsplit

from choreo.errors import InvalidUrl
from choreo.topology import Binding
from choreo.transport import ConsumerDetail, QueueDetail, Unavailable, diversion

TIMEOUT: Final = 3.0  # seconds for one answer
MAX_ANSWER: Final = 32 * 2**20  # bytes; more is not an answer to what is asked here
PAGE: Final = 500  # queues, the most that the API gives at once
EFFECTIVE: Final = "effective_policy_definition"

T = TypeVar("T")


class ManagementApi:
    """Asks the API at `url` about one virtual host, and waits at most `timeout` seconds for an answer.

    The user and password in the URL go along as HTTP basic authentication, directly and to that host only: proxies of
    the environment are passed by, and a redirect is not followed. Raises InvalidUrl.
    """

    def __init__(self, url: str, vhost: str, *, timeout: float = TIMEOUT) -> None:
        try:
            parts = urlsplit(url)
        except ValueError:
            raise InvalidUrl(
                "the URL of the management API cannot be read", "http://user:password@host:15672 or https://"
            ) from None
        login, _, self._place = parts.netloc.rpartition("@")
        self._base = f"{parts.scheme}://{self._place}{parts.path.rstrip('/')}/api"
        self._vhost = quote(vhost, safe="")
        self._timeout = timeout
        self._headers = {"Accept": "application/json"}
        if login:
            user, _, password = login.partition(":")
            secret = f"{unquote(user)}:{unquote(password)}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(secret).decode()}"
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())

    async def queues(self, namespace: str) -> tuple[QueueDetail, ...] | Unavailable:
        """Return the queues of `namespace`, page by page."""
        return await self._ask(lambda: tuple(map(_queue, self._queues(namespace))))

    async def queue(self, name: str) -> QueueDetail | Unavailable:
        """Return one queue, with its consumers."""
        return await self._ask(lambda: _queue(_table(self._get(f"queues/{self._vhost}/{quote(name, safe='')}"))))

    async def bindings(self, namespace: str) -> tuple[Binding, ...] | Unavailable:
        """Return the bindings of the exchanges of `namespace`."""

        def ask() -> tuple[Binding, ...]:
            found = map(_binding, _tables(self._get(f"bindings/{self._vhost}")))
            return tuple(each for each in found if each.source.startswith(f"{namespace}."))

        return await self._ask(ask)

    async def _ask(self, ask: Callable[[], T]) -> T | Unavailable:
        answer = Future[T | Unavailable]()
        answer.set_running_or_notify_cancel()

        def wait() -> None:
            try:
                answer.set_result(ask())
            except _NoAnswerError as error:
                answer.set_result(Unavailable(f"{self._place}: {error}"))
            except BaseException as error:  # noqa: BLE001 - a defect of ours, for whoever has asked
                answer.set_exception(error)

        # None of the loop's own threads: a process at its end would wait for an answer that nobody wants any more.
        threading.Thread(target=wait, name="management API", daemon=True).start()
        return await asyncio.wrap_future(answer)

    def _queues(self, namespace: str) -> Iterator[Mapping[str, Any]]:
        page, pages = 1, 1
        while page <= pages:
            query = {"page": page, "page_size": PAGE, "name": f"^{namespace}\\.", "use_regex": "true"}
            answer = _table(self._get(f"queues/{self._vhost}?{urlencode(query)}"))
            pages = _whole(answer.get("page_count")) or 0
            yield from _tables(answer.get("items"))
            page += 1

    def _get(self, path: str) -> Any:
        """Return the JSON at `path`. Blocks for at most about twice the timeout; raises _NoAnswerError only."""
        deadline = time.monotonic() + self._timeout
        if diversion() is not None:
            raise _NoAnswerError("a rehearsal has none")
        try:
            request = urllib.request.Request(f"{self._base}/{path}", headers=self._headers)  # noqa: S310 - see settings
            with self._opener.open(request, timeout=self._timeout) as answer:
                return json.loads(_read(answer, deadline))
        except urllib.error.HTTPError as error:
            with error:
                raise _NoAnswerError(_refusal(error.code)) from None
        except urllib.error.URLError as error:
            raise _NoAnswerError(_unreachable(error.reason)) from None
        except TimeoutError:
            raise _NoAnswerError("no answer in time") from None
        except (OSError, http.client.HTTPException, ValueError, RecursionError):
            raise _NoAnswerError("what answers there is not a management API") from None


class _NoAnswerError(Exception):
    pass


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would send the password along to wherever it is redirected."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _read(answer: http.client.HTTPResponse, deadline: float) -> bytes:
    """Read all of an answer, in small pieces: the socket's timeout begins again with each byte that drips in."""
    body = bytearray()
    while piece := answer.read1(65536):
        body += piece
        if len(body) > MAX_ANSWER:
            raise _NoAnswerError(f"its answer is longer than {MAX_ANSWER // 2**20} MiB")
        if time.monotonic() > deadline:
            raise _NoAnswerError("no answer in time")
    return bytes(body)


def _unreachable(reason: str | BaseException) -> str:
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    return (isinstance(reason, OSError) and reason.strerror) or str(reason)


def _refusal(code: int) -> str:
    match code:
        case 401:
            return "it refused the user or the password"
        case 403:
            return "the user may not look at this virtual host"
        case 404:
            return "it knows no such virtual host or queue"
    return f"it answered with HTTP status {code}"


def _queue(found: Mapping[str, Any]) -> QueueDetail:
    stats = found.get("message_stats")
    rates = stats if isinstance(stats, dict) else {}
    return QueueDetail(
        name=str(found.get("name")),
        state=_text(found.get("state")),
        ready=_whole(found.get("messages_ready")),
        unacked=_whole(found.get("messages_unacknowledged")),
        consumers=_whole(found.get("consumers")),
        memory=_whole(found.get("memory")),
        publish_rate=_rate(rates.get("publish_details")),
        deliver_rate=_rate(rates.get("deliver_get_details")),
        ack_rate=_rate(rates.get("ack_details")),
        consumer_details=tuple(map(_consumer, _tables(found.get("consumer_details") or []))),
        policies=tuple(filter(None, (_text(found.get(name)) for name in ("policy", "operator_policy")))),
        policy=_mapping(found[EFFECTIVE]) if EFFECTIVE in found else None,
        arguments=_mapping(found.get("arguments")),
    )


def _consumer(found: Mapping[str, Any]) -> ConsumerDetail:
    channel = found.get("channel_details")
    told = channel if isinstance(channel, dict) else {}
    active = found.get("active")
    return ConsumerDetail(
        address=_text(told.get("peer_host")),
        user=_text(told.get("user")),
        prefetch=_whole(found.get("prefetch_count")),
        active=active if isinstance(active, bool) else None,
    )


def _binding(found: Mapping[str, Any]) -> Binding:
    source, destination, pattern = (str(found.get(name, "")) for name in ("source", "destination", "routing_key"))
    return Binding(source, destination, pattern, "exchange" if found.get("destination_type") == "exchange" else "queue")


def _table(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _NoAnswerError("what answers there is not a management API")
    return value


def _tables(value: Any) -> Iterable[Mapping[str, Any]]:
    if not isinstance(value, list):
        raise _NoAnswerError("what answers there is not a management API")
    return map(_table, value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}  # an empty one is a list in some releases


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None


def _rate(value: Any) -> float | None:
    rate = value.get("rate") if isinstance(value, dict) else None
    return float(rate) if isinstance(rate, int | float) else None
