"""Asking aiormq: every call has a deadline, and what it raises, or cancels, is translated once, here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Final, TypeVar

import aio_pika
from aiormq.abc import AbstractChannel

from choreo.rabbit import translate

RPC_TIMEOUT: Final = 30.0  # seconds that a declaration may take; a busy cluster elects a quorum queue's leader slowly
CLOSE_TIMEOUT: Final = 3.0  # seconds for the goodbye; a broker that is gone does not answer it

T = TypeVar("T")


def underlay(connection: aio_pika.Connection) -> Any:
    """Return aiormq's connection under aio-pika's."""
    assert connection.transport is not None
    return connection.transport.connection


async def answer(call: Awaitable[T], timeout: float) -> T:
    """Await what aiormq is asked for, at most `timeout` seconds.

    When a connection ends aiormq may cancel whoever waits: that is a loss, and no cancellation.
    """
    try:
        return await asyncio.wait_for(call, timeout)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise ConnectionError("the connection has ended") from None


async def rpc(call: Awaitable[T]) -> T:
    """Declare, bind or subscribe. Raises what a refusal means for the user."""
    try:
        return await answer(call, RPC_TIMEOUT)
    except Exception as error:
        raise translate.declaring(error) from error


async def channel(
    connection: aio_pika.Connection, number: int | None = None, *, confirms: bool = False
) -> AbstractChannel:
    """Open a channel, with `number` if one is given. Raises what its failure means for the user."""
    try:
        found: AbstractChannel = await answer(
            underlay(connection).channel(channel_number=number, publisher_confirms=confirms), RPC_TIMEOUT
        )
    except Exception as error:
        raise translate.lost(error) from error
    return found


async def quietly(goodbye: Awaitable[Any], timeout: float = CLOSE_TIMEOUT) -> None:
    """Await a goodbye that nobody may answer any more."""
    try:
        await asyncio.wait_for(goodbye, timeout)
    except (Exception, asyncio.CancelledError) as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
