"""What the service needs of aiokafka and it does not do by itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvloop
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.admin import ApiVersionRequest

from service.kafka.mends import mend


async def write_to_a_connection_that_is_gone() -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        asked: Any = AIOKafkaConnection("127.0.0.1", port, request_timeout_ms=5_000)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        asked._reader, asked._writer, asked._versions = reader, writer, {}
        asked._read_task = asked._create_reader_task()
        writer.transport.abort()
        # Two rounds of the loop, in which the transport closes its handle.
        for _ in range(2):
            await asyncio.sleep(0)
        try:
            await asked.send(ApiVersionRequest())
        finally:
            assert not asked.connected()


def test_a_write_to_a_closed_connection_is_a_connection_error_under_uvloop_too() -> None:
    mend()
    with pytest.raises(KafkaConnectionError):
        uvloop.run(write_to_a_connection_that_is_gone())
