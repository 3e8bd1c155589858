"""The methods of a channel that come once in a while: each asks the core, and its answer goes back.

An answer is pamqp's ok, or None where AMQP has none; who said no-wait gets none either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pamqp import base, commands

from choreo.broker.core import AmqpError, Channel

Answer = base.Frame | None


def _exchange_declare(channel: Channel, asked: commands.Exchange.Declare) -> Answer:
    channel.exchange_declare(
        asked.exchange or "",
        asked.exchange_type or "direct",
        passive=bool(asked.passive),
        durable=bool(asked.durable),
        auto_delete=bool(asked.auto_delete),
        internal=bool(asked.internal),
        arguments=asked.arguments,
    )
    return commands.Exchange.DeclareOk()


def _exchange_delete(channel: Channel, asked: commands.Exchange.Delete) -> Answer:
    channel.exchange_delete(asked.exchange or "", if_unused=bool(asked.if_unused))
    return commands.Exchange.DeleteOk()


def _exchange_bind(channel: Channel, asked: commands.Exchange.Bind) -> Answer:
    channel.exchange_bind(asked.destination or "", asked.source or "", asked.routing_key or "", asked.arguments)
    return commands.Exchange.BindOk()


def _exchange_unbind(channel: Channel, asked: commands.Exchange.Unbind) -> Answer:
    channel.exchange_unbind(asked.destination or "", asked.source or "", asked.routing_key or "", asked.arguments)
    return commands.Exchange.UnbindOk()


def _queue_bind(channel: Channel, asked: commands.Queue.Bind) -> Answer:
    channel.queue_bind(asked.queue or "", asked.exchange or "", asked.routing_key or "", asked.arguments)
    return commands.Queue.BindOk()


def _queue_unbind(channel: Channel, asked: commands.Queue.Unbind) -> Answer:
    channel.queue_unbind(asked.queue or "", asked.exchange or "", asked.routing_key or "", asked.arguments)
    return commands.Queue.UnbindOk()


def _queue_purge(channel: Channel, asked: commands.Queue.Purge) -> Answer:
    return commands.Queue.PurgeOk(channel.queue_purge(asked.queue or ""))


def _queue_delete(channel: Channel, asked: commands.Queue.Delete) -> Answer:
    count = channel.queue_delete(asked.queue or "", if_unused=bool(asked.if_unused), if_empty=bool(asked.if_empty))
    return commands.Queue.DeleteOk(count)


def _qos(channel: Channel, asked: commands.Basic.Qos) -> Answer:
    count, size = asked.prefetch_count or 0, asked.prefetch_size or 0
    channel.qos(count, prefetch_size=size, global_=bool(asked.global_))
    return commands.Basic.QosOk()


def _cancel(channel: Channel, asked: commands.Basic.Cancel) -> Answer:
    tag = asked.consumer_tag or ""
    channel.cancel(tag)
    return commands.Basic.CancelOk(tag)


def _recover(channel: Channel, asked: commands.Basic.Recover) -> Answer:
    channel.recover(requeue=bool(asked.requeue))
    return commands.Basic.RecoverOk()


def _recover_async(channel: Channel, asked: commands.Basic.RecoverAsync) -> Answer:
    channel.recover(requeue=bool(asked.requeue))
    return None


def _confirm(channel: Channel, _: commands.Confirm.Select) -> Answer:
    channel.confirm_select()
    return commands.Confirm.SelectOk()


def _tx_select(channel: Channel, _: commands.Tx.Select) -> Answer:
    channel.tx_select()
    return commands.Tx.SelectOk()


def _tx_commit(channel: Channel, _: commands.Tx.Commit) -> Answer:
    channel.tx_commit()
    return commands.Tx.CommitOk()


def _tx_rollback(channel: Channel, _: commands.Tx.Rollback) -> Answer:
    channel.tx_rollback()
    return commands.Tx.RollbackOk()


def _flow(_: Channel, asked: commands.Channel.Flow) -> Answer:
    if not asked.active:
        raise AmqpError(540, "active=false", (20, 20))
    return commands.Channel.FlowOk(active=True)


# queue.declare, basic.consume and basic.get are answered by more than one ok of pamqp's: see `channel`.
ANSWERS: Final[Mapping[type[base.Frame], Callable[[Channel, Any], Answer]]] = {
    commands.Exchange.Declare: _exchange_declare,
    commands.Exchange.Delete: _exchange_delete,
    commands.Exchange.Bind: _exchange_bind,
    commands.Exchange.Unbind: _exchange_unbind,
    commands.Queue.Bind: _queue_bind,
    commands.Queue.Unbind: _queue_unbind,
    commands.Queue.Purge: _queue_purge,
    commands.Queue.Delete: _queue_delete,
    commands.Basic.Qos: _qos,
    commands.Basic.Cancel: _cancel,
    commands.Basic.Recover: _recover,
    commands.Basic.RecoverAsync: _recover_async,
    commands.Confirm.Select: _confirm,
    commands.Tx.Select: _tx_select,
    commands.Tx.Commit: _tx_commit,
    commands.Tx.Rollback: _tx_rollback,
    commands.Channel.Flow: _flow,
}
