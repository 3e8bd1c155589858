"""The hot frames of chosen channels, past aiormq. Everything else of a connection goes through it untouched.

aiormq connects, authenticates, opens channels, declares and keeps the heartbeat. `FastPath` is put under it by its
`transport_factory`: a protocol that parses deliveries, confirms and returns of the channels that `Consuming` and
`Publishing` have taken over, in `data_received` and without a task or a queue per frame, and that writes their
publishes and settlements. Besides being fast, it reads every message: pamqp raises on texts that are not UTF-8, on wild
timestamps and on deep tables, and aiormq's connection ends with it, again and again as the message comes again.

Surface: `FastPath` for the connection, `Consuming` and `Publishing` for one channel each. Source: AMQP 0-9-1 sections
2.3.5 and 4.2; RabbitMQ's extensions confirm.select, basic.nack and connection.blocked.
"""

from choreo.rabbit.fast_path.consuming import Consuming
from choreo.rabbit.fast_path.protocol import FastPath
from choreo.rabbit.fast_path.publishing import Publishing

__all__ = ("Consuming", "FastPath", "Publishing")
