"""What aiokafka 0.14 gets wrong in a way that nothing around it can make good, put right where it is wrong.

A write to a connection that is closed: asyncio's transports say nothing, uvloop's raise ``RuntimeError``, and aiokafka
expects ``OSError`` alone (aio-libs/aiokafka#1038). Its coordination then ends for good: the process stays up, polls
fail for ever, and no partition is read again. It happens when a broker goes away under load.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError, KafkaError

if TYPE_CHECKING:
    from collections.abc import Callable


def _noticing_closed_connections(send: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(send)
    def noticing(connection: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return send(connection, *arguments, **options)
        except KafkaError:
            raise  # a RuntimeError too
        except RuntimeError as error:
            connection.close(reason=CloseReason.CONNECTION_BROKEN)
            raise KafkaConnectionError(f"the connection is closed: {error}") from error

    return noticing


def mend() -> None:
    """Put it right, for every client of this process; once is enough."""
    for name in ("send", "_send_sasl_token"):
        send = getattr(AIOKafkaConnection, name)
        if not hasattr(send, "__wrapped__"):
            setattr(AIOKafkaConnection, name, _noticing_closed_connections(send))
