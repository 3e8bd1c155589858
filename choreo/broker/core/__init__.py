"""The core of the embedded broker: what RabbitMQ 4.3 does with messages, as a pure library.

There is no clock, no random, no I/O and no event loop here: time is given by `Broker.advance`, names by a callable, and
what the broker sends goes to a sink. The same calls in the same order give the same result, always. Fronts stand in
front of it: one speaks AMQP on a socket, one is in the same process. `docs/embedded.md` lists what is not done.
"""

from choreo.broker.core.broker import Broker
from choreo.broker.core.channel import Channel
from choreo.broker.core.connection import Connection
from choreo.broker.core.exchanges import Binding
from choreo.broker.core.failure import AmqpError
from choreo.broker.core.message import BasicProperties, Death, Message, Properties
from choreo.broker.core.outbound import Ack, Cancelled, Consuming, Deliver, Got, Nack, QueueOk, Returned, Sent, Sink
from choreo.broker.core.persistence import (
    Bound,
    Change,
    Counted,
    ExchangeDeclared,
    ExchangeDeleted,
    QueueDeclared,
    QueueDeleted,
    Settled,
    Stored,
    Unbound,
)

__all__ = [
    "Ack",
    "AmqpError",
    "BasicProperties",
    "Binding",
    "Bound",
    "Broker",
    "Cancelled",
    "Change",
    "Channel",
    "Connection",
    "Consuming",
    "Counted",
    "Death",
    "Deliver",
    "ExchangeDeclared",
    "ExchangeDeleted",
    "Got",
    "Message",
    "Nack",
    "Properties",
    "QueueDeclared",
    "QueueDeleted",
    "QueueOk",
    "Returned",
    "Sent",
    "Settled",
    "Sink",
    "Stored",
    "Unbound",
]
