"""Sessions with an embedded broker in the same process: no socket, and the time that it is told.

`Host` is the broker and its clock, `connect` opens a session with it. All of it lives in one event loop.
"""

from choreo.broker.in_process.host import Host
from choreo.broker.in_process.session import InProcessConsumer, InProcessSession, connect, look

__all__ = ["Host", "InProcessConsumer", "InProcessSession", "connect", "look"]
