"""rabbitmq-c's tools at the command line: what one leaves in the broker, the next one finds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tests.conftest import Running
from tests.foreign.clients import needs_tools

pytestmark = needs_tools

Start = Callable[..., Running]
Run = Callable[..., list[str]]


async def test_a_queue_from_declared_to_deleted(
    url: str, start: Start, run: Run, left: Callable[[dict[str, int]], Awaitable[None]], namespace: str
):
    queue = f"{namespace}.tools"
    of = ("-u", url, "-q", queue)
    assert run("amqp-declare-queue", "-d", *of) == [queue]
    lines = f"printf '%s\\n' one two three four | amqp-publish -u {url} -r {queue} -p -C text/plain -H 'colour: red' -l"
    run("sh", "-c", lines)
    await left({queue: 4})

    assert run("amqp-get", *of) == ["one"]
    assert run("amqp-consume", *of, "-c", "1", "-p", "1", "cat") == ["two"]
    start("amqp-consume", *of, "-c", "1", "-p", "1", "false").wait()  # a command that fails acknowledges nothing
    await left({queue: 2})
    assert run("amqp-consume", *of, "-c", "1", "cat") == ["three"]
    assert run("amqp-delete-queue", *of) == ["1"]
    gone = start("amqp-get", *of)
    assert gone.wait() == 1
    assert f"server channel error 404, message: NOT_FOUND - no queue '{queue}' in vhost '/'" in gone.output


def test_a_queue_named_by_the_broker_hears_an_exchange(url: str, start: Start, run: Run, namespace: str):
    listener = start("amqp-consume", "-u", url, "-e", "amq.topic", "-r", f"{namespace}.#", "-x", "-c", "1", "cat")
    listener.wait_for("amq.gen-")
    # It names its queue before it binds it, so what comes first may be heard by nobody.
    while listener.process.poll() is None:
        run("amqp-publish", "-u", url, "-e", "amq.topic", "-r", f"{namespace}.news", "-b", "heard")
    assert listener.wait() == 0, listener.output
    assert listener.stdout == ["heard"]


def test_a_wrong_password_is_refused(url: str, start: Start):
    stranger = start("amqp-get", "-u", url.replace("guest:guest", "guest:wrong"), "-q", "any")
    assert stranger.wait() == 1
    assert "403, message: ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN" in stranger.output
