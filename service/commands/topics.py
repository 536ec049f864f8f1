"""`convoy topics`: create the topics; those that exist are left as they are."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from service.kafka.admin import create_topics
from service.kafka.connection import KafkaError

if TYPE_CHECKING:
    from service.settings import KafkaSettings


def topics(settings: KafkaSettings, *, partitions: int, replication_factor: int | None) -> int:
    """Create what is missing and print a line for each topic; returns the exit code."""
    try:
        outcome = asyncio.run(create_topics(settings, partitions=partitions, replication_factor=replication_factor))
    except (KafkaError, OSError) as error:
        sys.stderr.write(f"convoy topics: {settings.bootstrap_servers}: {error}\n")
        return 1
    for name, what in sorted(outcome.items()):
        sys.stdout.write(f"{name}: {what}\n")
    return 0
