"""Waiting for an attempt of unknown fate to settle."""

from __future__ import annotations

from service.core.circuit import Circuit
from service.core.delivery import Action, Delivery, Policy
from service.core.grouper import Grouper
from service.core.model import Event
from service.core.readback import Cursors
from service.core.verdict import Kind, Verdict

CUT = Verdict(Kind.AMBIGUOUS, "connection_cut")
READ = Verdict(Kind.DELIVERED, status=200)
POLICY = Policy(
    max_attempts=8,
    max_age_seconds=900,
    backoff_initial_seconds=0.5,
    backoff_max_seconds=60,
    settle_seconds=27,
    read_cursor_first=False,
)


def test_looking_too_early_does_not_lengthen_the_wait_after_the_next_failure() -> None:
    grouper = Grouper(max_items=20, max_bytes=1 << 20, window_seconds=0)
    grouper.add(grouper.assign(0), Event(0, 0, "c", "", b'{"role":"user","content":"a"}', 9), now=0.0)
    delivery = Delivery(POLICY, Circuit(), Cursors(10), lambda: 1.0)
    delivery.cursors.learn("c", "")
    batch = grouper.take(0.0)
    assert batch is not None
    now = 0.0
    for failures in (1, 2):
        delivery.began(batch, Action.SEND, now)
        result = delivery.sent(batch, CUT, (), "", started_at=now, now=now)
        assert result.again_at == now + 0.5 * 2 ** (failures - 1)
        sent_at, looks = now, 0
        while result.again_at is not None:
            now = result.again_at
            result = delivery.read_back(batch, READ, (), started_at=now, now=now)
            looks += 1
        assert now == sent_at + POLICY.settle_seconds
        assert looks > 4
        assert result.parts == [batch]
