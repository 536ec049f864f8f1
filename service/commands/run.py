"""`convoy run`: the service, until told to stop."""

from __future__ import annotations

import errno
import gc
import logging
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import uvloop

from service import __version__
from service.app import make
from service.ops import logs
from service.settings import unsafe

if TYPE_CHECKING:
    from service.settings import Settings

log = logging.getLogger(__name__)

GC_THRESHOLD = 50_000
"""Allocations of container objects between two looks at the youngest."""


def run(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT, drain, and return the exit code: 0 drained, 1 a fault or not all of it."""
    logs.set_up(settings.log)
    app, service = make(settings)
    _say_what_it_does(settings)
    # Events live for about a window, by the ten thousand, and form no cycles: looking through them for
    # some every 700 allocations costs more than decoding them.
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 20)
    try:
        uvloop.run(app.run())
    except OSError as error:
        if error.errno not in {errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES}:
            raise
        log.critical(
            "cannot listen: choose another CONVOY_OPS__HOST or CONVOY_OPS__PORT",
            extra={"host": settings.ops.host, "port": settings.ops.port, "error": error.strerror},
        )
        return 1
    if service.error is not None:
        return 1
    if not service.finished:
        log.warning("stopped; not all that was in flight could be stored and committed: it is read again")
        return 1
    log.info("stopped")
    return 0


def _say_what_it_does(settings: Settings) -> None:
    kafka, batch, api = settings.kafka, settings.batch, settings.api
    log.info("convoy starts", extra={"version": __version__})
    log.info(
        "reads events",
        extra={"topic": kafka.events_topic, "group": kafka.group_id, "brokers": kafka.bootstrap_servers},
    )
    log.info(
        "sends batches",
        extra={
            "to": urlsplit(api.base_url).hostname,
            "max_items": batch.max_items,
            "window_seconds": batch.window_seconds,
            "max_in_flight": settings.delivery.max_concurrency,
        },
    )
    log.info(
        "stores outcomes",
        extra={
            "replies": kafka.reply_topic,
            "dead_letters": kafka.dead_letter_topic,
            "ledger": kafka.ledger_topic or "none: what is in flight at a kill -9 may be sent again",
        },
    )
    log.info(
        "shows itself",
        extra={"at": f"{settings.ops.host}:{settings.ops.port}", "pages": "/metrics /livez /readyz /status"},
    )
    for line in unsafe(settings):
        log.warning("allowed, and not safe", extra={"what": line})
