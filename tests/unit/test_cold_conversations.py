"""Many conversations whose cursor is not known yet: reading them must neither shut the host off nor put off writing."""

from __future__ import annotations

from service.core.circuit import Circuit, CircuitReason
from service.core.grouper import AT_ONCE, Grouper
from service.core.model import Event


def test_reads_that_fail_now_and_then_do_not_open_the_circuit_while_others_work() -> None:
    circuit = Circuit()
    for number in range(500):
        if number % 20:
            circuit.reads_work(number)
        else:
            circuit.trouble(f"cold_{number}", number, "500", reading=True)
    assert not circuit.is_open


def test_what_only_reads_opened_a_good_read_closes() -> None:
    circuit = Circuit()
    for number in range(3):
        circuit.trouble(f"cold_{number}", 0.0, "503", reading=True)
    assert circuit.reason is CircuitReason.API_UNAVAILABLE
    circuit.reads_work(1.0)
    assert not circuit.is_open
    assert not circuit.others_failing("another")


def test_a_good_read_does_not_make_up_for_writes_that_failed() -> None:
    circuit = Circuit()
    for number in range(3):
        circuit.trouble(f"written_{number}", 0.0, "503")
    circuit.reads_work(1.0)
    assert circuit.is_open


def test_a_good_read_does_not_mend_what_an_operator_has_to() -> None:
    circuit = Circuit()
    for number in range(3):
        circuit.trouble(f"cold_{number}", 0.0, "503", reading=True)
    circuit.trip(0.5, CircuitReason.KEY_REJECTED, "invalid_api_key")
    circuit.reads_work(1.0)
    assert circuit.reason is CircuitReason.KEY_REJECTED


def test_failed_reads_and_failed_writes_count_together() -> None:
    circuit = Circuit()
    circuit.trouble("a", 0.0, "503")
    circuit.trouble("b", 0.0, "503", reading=True)
    assert not circuit.is_open
    circuit.trouble("c", 0.0, "503")
    assert circuit.is_open


def test_a_batch_that_goes_on_at_once_goes_before_the_lanes_that_wait() -> None:
    grouper = Grouper(max_items=20, max_bytes=1 << 20, window_seconds=0)
    partition = grouper.assign(0)
    for offset, name in enumerate("abc"):
        grouper.add(partition, Event(0, offset, name, "", b"{}", 2), now=0.0)
    first = grouper.take(0.0)
    assert first is not None
    grouper.again(first, AT_ONCE)
    assert grouper.deadline() == AT_ONCE
    taken = [grouper.take(0.0) for _ in "abc"]
    assert [batch.conversation_id for batch in taken if batch] == ["a", "b", "c"]
