"""pika's tour: see `tests/foreign/test_tour.py` for what it has to print."""

from __future__ import annotations

import json
import os
from typing import Any

import pika
from pika.exceptions import ChannelClosedByBroker, UnroutableError

WORK, DEAD = os.environ["FOREIGN_WORK"], os.environ["FOREIGN_DEAD"]
HEADERS = {"number": 42, "large": 1 << 40, "nested": {"list": [1, "two", True, None]}}
ARGUMENTS = {
    "x-queue-type": "quorum",
    "x-delivery-limit": 10,
    "x-dead-letter-exchange": "",
    "x-dead-letter-routing-key": DEAD,
}
PERSISTENT = pika.BasicProperties(delivery_mode=2, headers=HEADERS)

connection = pika.BlockingConnection(pika.URLParameters(os.environ["FOREIGN_URL"]))
channel = connection.channel()
inbox: list[tuple[Any, str]] = []


def publish(queue: str, *bodies: bytes) -> None:
    for body in bodies:
        channel.basic_publish("", queue, body, PERSISTENT, mandatory=True)
    print("confirmed:", len(bodies))


def refused(**declaration: Any) -> None:
    other = connection.channel()
    try:
        other.queue_declare(**declaration)
    except ChannelClosedByBroker as error:
        print("refused:", error.reply_code, error.reply_text)


def delivered() -> int:
    while not inbox:
        connection.process_data_events(time_limit=1)
    method, body = inbox.pop(0)
    print("delivered:", body, "again" if method.redelivered else "for the first time")
    return int(method.delivery_tag)


channel.confirm_delivery()
channel.queue_declare(DEAD, durable=True)
declared = channel.queue_declare(WORK, durable=True, arguments=ARGUMENTS).method
print("declared:", declared.message_count, "messages,", declared.consumer_count, "consumers")
publish(WORK, b"a", b"b", b"c", b"d", b"e")
try:
    channel.basic_publish("", f"{WORK}.nowhere", b"lost", mandatory=True)
except UnroutableError as error:
    returned = error.messages[0]
    print("returned:", returned.method.reply_code, returned.method.reply_text, returned.body.decode())

for requeue in (True, False):
    method, properties, body = channel.basic_get(WORK)
    print("got:", body.decode(), "again" if method.redelivered else "for the first time", method.message_count, "left")
    if requeue:
        print(
            "headers:",
            json.dumps(properties.headers["nested"]),
            properties.headers["number"],
            properties.headers["large"],
        )
        channel.basic_nack(method.delivery_tag)
    else:
        channel.basic_ack(method.delivery_tag)

channel.basic_qos(prefetch_count=2)
tag = channel.basic_consume(WORK, lambda _, method, __, body: inbox.append((method, body.decode())))
b, c = delivered(), delivered()
channel.queue_declare(DEAD, passive=True)  # and back: a third would be here by then
connection.process_data_events(time_limit=0)
print("held:", 2 + len(inbox))
channel.basic_ack(b)
channel.basic_nack(delivered())
delivered()
channel.basic_reject(c, requeue=False)
channel.basic_ack(delivered(), multiple=True)
channel.basic_cancel(tag)
print("left:", channel.queue_declare(WORK, passive=True).method.message_count)

while (dead := channel.basic_get(DEAD))[0] is None:
    pass
print("dead:", dead[2].decode(), dead[1].headers["x-death"][0]["reason"], dead[1].headers["x-death"][0]["count"])
channel.basic_ack(dead[0].delivery_tag)
publish(DEAD, b"large" * 100_000)
print("large:", len(channel.basic_get(DEAD, auto_ack=True)[2]))
publish(DEAD, b"x", b"y", b"z")
print("purged:", channel.queue_purge(DEAD).method.message_count)
print("empty:", channel.basic_get(DEAD)[0] is None)

refused(queue=f"{WORK}.nowhere", passive=True)
refused(queue=WORK, durable=True, arguments=ARGUMENTS | {"x-dead-letter-routing-key": WORK})
print("deleted:", channel.queue_delete(WORK).method.message_count)
channel.queue_delete(DEAD)
refused(queue=WORK, passive=True)
connection.close()
