"""What aiokafka 0.14 gets wrong in a way that nothing around it can make good, put right where it is wrong.

A write to a connection that is closed: asyncio's transports say nothing, uvloop's raise ``RuntimeError``, and aiokafka
expects ``OSError`` alone (aio-libs/aiokafka#1038). Its coordination then ends for good: the process stays up, polls
fail for ever, and no partition is read again. It happens when a broker goes away under load.

A token that a broker refuses: it does so in an answer without error that holds a JSON (RFC 7628 §3.2.2), and aiokafka
takes that for a welcome. Every question after it is answered with nothing.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from aiokafka.conn import AIOKafkaConnection, CloseReason, OAuthAuthenticator
from aiokafka.errors import KafkaConnectionError, KafkaError, SaslAuthenticationFailed

if TYPE_CHECKING:
    from collections.abc import Callable


def _noticing_closed_connections(send: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(send)
    def noticing(connection: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return send(connection, *arguments, **options)
        except (KafkaError, NotImplementedError):
            raise  # RuntimeErrors too: a broker's refusal, and a request that it does not know
        except RuntimeError as error:
            connection.close(reason=CloseReason.CONNECTION_BROKEN)
            raise KafkaConnectionError(f"the connection is closed: {error}") from error

    return noticing


def _hearing_refusals(step: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(step)
    async def hearing(authenticator: Any, payload: bytes | None) -> Any:
        if payload:
            raise SaslAuthenticationFailed("the token was refused")
        return await step(authenticator, payload)

    return hearing


def mend() -> None:
    """Put it right, for every client of this process; once is enough."""
    for name in ("send", "_send_sasl_token"):
        send = getattr(AIOKafkaConnection, name)
        if not hasattr(send, "__wrapped__"):
            setattr(AIOKafkaConnection, name, _noticing_closed_connections(send))
    if not hasattr(OAuthAuthenticator.step, "__wrapped__"):
        OAuthAuthenticator.step = _hearing_refusals(OAuthAuthenticator.step)
