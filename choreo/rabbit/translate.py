"""Errors of aio-pika, aiormq and the operating system as choreo's own; the most specific case stands first."""

from __future__ import annotations

import os
import re
import ssl
from typing import Final

from aiormq import exceptions as amqp

from choreo.amqp import reply_codes
from choreo.config.broker_url import BrokerUrl
from choreo.errors import AccessRefused, BrokerUnreachable, ChoreoError, ConfigurationError

# Closed by an operator, out of resources, an error within: it may pass.
_LATER: Final = (reply_codes.CONNECTION_FORCED, reply_codes.RESOURCE_ERROR, reply_codes.INTERNAL_ERROR)
_LIMIT: Final = re.compile(r"limit \(\d+\) is reached|limit cannot be queried|is down\b")  # so may these
_EXPIRED: Final = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
_MISMATCH: Final = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_CODES: Final = {  # of what closes a channel and not the connection
    amqp.ChannelAccessRefused: reply_codes.ACCESS_REFUSED,
    amqp.ChannelNotFoundEntity: reply_codes.NOT_FOUND,
    amqp.ChannelLockedResource: reply_codes.RESOURCE_LOCKED,
    amqp.ChannelPreconditionFailed: reply_codes.PRECONDITION_FAILED,
}
_TIMED_OUT: Final = re.compile(r"delivery acknowledgement on channel \d+ timed out.*?: (-?\d+) ms")
_LONGER: Final = (
    "raise what limits it: the policy key consumer-timeout (rabbitmqctl list_policies), or consumer_timeout in"
    " rabbitmq.conf; or make the reaction faster"
)


def connecting(error: BaseException, broker: BrokerUrl, ended: tuple[int, str] | None = None) -> ChoreoError:
    """Return what `error`, raised while connecting to `broker`, means for the user. Never shows a password.

    `ended`: code and reason of the broker's connection.close, which aiormq drops at times.
    """
    text = str(error)
    if ended is not None and (ended[0] in _LATER or _LIMIT.search(ended[1])):
        return BrokerUnreachable(
            f"the broker at {broker.address} refuses connections: {ended[1]}",
            "retry later, or ask its operator (rabbitmqctl list_vhost_limits, list_user_limits)",
        )
    if isinstance(error, amqp.ProbableAuthenticationError | amqp.AuthenticationError):
        return AccessRefused(
            f"the broker at {broker.address} refused the user {broker.user!r} or its password",
            "check CHOREO_URL, and CHOREO_PASSWORD or CHOREO_PASSWORD_FILE, which go before what stands in it; guest is"
            " let in from the broker's own machine only, and nobody else at the broker of choreo dev",
        )
    if isinstance(error, amqp.InvalidFrameError) and "Connection.OpenOk" in text and "Connection.Close" in text:
        # aiormq 7 drops the broker's reason here; the only frame refused at this point is Connection.Open.
        why = f": {ended[1]}" if ended is not None and ended[1] else ""
        return AccessRefused(
            f"the broker at {broker.address} refused the virtual host {broker.vhost!r}"
            f" to the user {broker.user!r}{why}",
            "check that it exists (rabbitmqctl list_vhosts) and that the user has permissions in it"
            " (rabbitmqctl list_permissions); the broker of choreo dev has the virtual host / alone",
        )
    if isinstance(error, amqp.ConnectionNotAllowed):
        return AccessRefused(f"the broker at {broker.address} refused the connection: {text}", "ask its operator")
    if isinstance(error, ssl.SSLError) or "SSL" in text:
        return ConfigurationError(f"no TLS connection to {broker.address}: {_reason(error)}", _tls_way_out(error))
    if isinstance(error, TimeoutError):
        reason = f"no answer within {broker.connection_timeout:g} s"
    elif isinstance(error, amqp.IncompatibleProtocolError | amqp.ProtocolSyntaxError):
        reason = "what answers there does not speak AMQP 0-9-1"
    else:
        reason = _reason(error)
    return BrokerUnreachable(
        f"no broker can be reached at {broker.address}: {reason}",
        "start one (choreo dev brings its own), or name another with CHOREO_URL or --url",
    )


def _tls_way_out(error: BaseException) -> str:
    """Return what to do about a TLS connection that failed; the code is OpenSSL's, of what a certificate lacks."""
    causes = (error, error.__cause__, error.__context__)
    found = next((each for each in causes if isinstance(each, ssl.SSLCertVerificationError)), None)
    code = found.verify_code if found is not None else None
    if code in _EXPIRED:
        return "the broker's certificate is out of date, or this machine's clock is wrong: have it renewed, or set it"
    if code in _MISMATCH:
        return "the broker's certificate is for another name: use one that it holds in CHOREO_URL, or have one issued"
    return "amqps:// needs the broker's TLS port (5671) and, for a private authority, ?cafile=/path/ca.pem"


def tls_files(error: OSError, broker: BrokerUrl) -> ChoreoError:
    """Return what it means that the TLS files of `broker` cannot be used."""
    files = ", ".join(filter(None, (broker.cafile, broker.certfile, broker.keyfile)))
    key = broker.keyfile or broker.certfile
    if isinstance(error, KeyEncrypted):
        return ConfigurationError(
            f"the key in {key} is encrypted, and choreo asks for no passphrase",
            f"decrypt it, readable for its user alone: openssl pkey -in {key} -out key.pem",
        )
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return ConfigurationError(
            f"the key in {key} does not belong to the certificate in {broker.certfile}",
            "name the two that were made together: ?certfile=...&keyfile=...",
        )
    return ConfigurationError(f"the TLS files of the broker URL cannot be used: {error}", f"look at {files}")


class KeyEncrypted(OSError):
    """A key that asks for a passphrase."""


def lost(error: BaseException | None) -> ChoreoError:
    """Return why a connection or channel that worked has ended."""
    if isinstance(error, amqp.ChannelPreconditionFailed | amqp.ChannelAccessRefused | amqp.ChannelNotFoundEntity):
        return declaring(error)
    if error is None or str(error) == "":
        return BrokerUnreachable("the connection to the broker was lost")
    return BrokerUnreachable(f"the connection to the broker was lost: {_reason(error)}")


def timeout(error: BaseException | None) -> ChoreoError | None:
    """Return what a channel's end means that held a delivery for longer than the broker allows; None: another end."""
    found = _TIMED_OUT.search(str(error)) if isinstance(error, amqp.ChannelPreconditionFailed) else None
    if found is None:
        return None
    return ConfigurationError(
        f"the broker has closed a channel over a delivery that was held for longer than its consumer timeout of"
        f" {int(found[1]) / 1000:g} s",
        _LONGER,
    )


def timed_out(queue: str) -> ChoreoError:
    """Return why the broker has cancelled a consumer of `queue`, which is still there."""
    return ConfigurationError(
        f"the broker has cancelled a consumer of {queue!r}: a delivery was held for longer than its consumer timeout",
        _LONGER,
    )


def flag_off(text: str) -> ChoreoError | None:
    """Return what it means that the broker refuses a stream with `text`, None when it says something else.

    Releases before 3.12 drop dead letters while their feature flag stream_queue is off. Over AMQP it shows in how they
    refuse a stream that could not be declared anyhow: with a 541 in place of a 406 [measured: 3.10.8].
    """
    if "feature flag is disabled" not in text:
        return None
    return ConfigurationError(
        "the broker's feature flag stream_queue is off, and without it at-least-once dead-lettering falls back to"
        " at-most-once: retries, scheduled events and dead letters could be lost",
        "rabbitmqctl enable_feature_flag stream_queue",
    )


def declaring(error: BaseException) -> ChoreoError:
    """Return what a refused declaration, binding or subscription means for the user."""
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), None)
    if code is not None:
        return reply_codes.refusal(code, str(error))
    return (
        lost(error)
        if isinstance(error, amqp.AMQPConnectionError)
        else BrokerUnreachable(f"the broker did not answer a declaration: {_reason(error)}")
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, amqp.AMQPConnectionError) and len(error.args) == 2:
        code, text = error.args
        closed = isinstance(error, amqp.ConnectionClosed)  # whose code is AMQP's, and no errno
        if isinstance(code, int) and code > 0 and not closed and not isinstance(error.__cause__, ssl.SSLError):
            return os.strerror(code)  # asyncio and uvloop word it each in their way
        if isinstance(text, str):
            return text
    text = str(error)
    # What aiormq says of its own objects, addresses and all, tells nobody anything.
    return text if text and "<" not in text else "it is closed"
