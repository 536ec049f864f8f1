"""One line an event, as JSON or for people, and libraries no louder than they deserve."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from service.ops import logs
from service.ops.logs import KINDS, REPEATS, REPEATS_SECONDS, ConsoleFormatter, JsonFormatter, Repetition
from service.settings import LogSettings

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in logs.QUIET}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def broken(words: str) -> logging.LogRecord:
    """A record of an exception that was caught."""
    made = record()
    error = ValueError(words)
    made.exc_info = (ValueError, error, error.__traceback__)
    return made


def record(message: str = "something happened", *args: Any, **extra: Any) -> logging.LogRecord:
    made = logging.getLogger("service.x").makeRecord(
        "service.x", logging.WARNING, "f", 1, message, args, None, None, extra
    )
    made.created = 1_700_000_000.25
    return made


def test_a_line_of_json_has_time_level_logger_message_and_its_fields() -> None:
    line = JsonFormatter().format(record("%d things", 3, partition=7, conversations=["a"], detail=None))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "logger": "service.x",
        "message": "3 things",
        "partition": 7,
        "conversations": ["a"],
        "detail": None,
    }


STRANGE = [float("nan"), float("inf"), {1, 2}, b"\xff", object(), ValueError("x"), {1: 2}, 10**40, "a\nb\u2028\x00", 1j]


@pytest.mark.parametrize("value", STRANGE)
def test_whatever_a_field_holds_the_line_is_one_and_is_json(value: Any) -> None:
    line = JsonFormatter().format(record(field=value))
    assert "\n" not in line
    assert "field" in json.loads(line)


def test_a_lone_surrogate_does_not_break_the_log() -> None:
    line = JsonFormatter().format(record("half \ud800", field="\udfff"))
    assert json.loads(line)["level"] == "warning"
    line.encode()


def test_an_exception_is_told_with_its_stack_in_the_same_line() -> None:
    line = JsonFormatter().format(broken("broken\nin two"))
    assert "\n" not in line
    told = json.loads(line)["exception"]
    assert told == "ValueError: broken\nin two"


def test_a_line_for_people_is_short() -> None:
    line = ConsoleFormatter().format(record("%d things", 3, partition=7))
    assert line == "22:13:20.250 warning 3 things  partition=7"
    assert ConsoleFormatter().format(broken("broken")).endswith("ValueError: broken")


@pytest.mark.parametrize("form", ["json", "console"])
def test_all_logs_go_to_standard_error_in_the_form_chosen(capsys: pytest.CaptureFixture[str], form: Any) -> None:
    logs.set_up(LogSettings(format=form))
    logging.getLogger("service.app").info("hello", extra={"n": 1})
    logging.getLogger("service.app").debug("not at this level")
    logging.getLogger("somebody.else").warning("as well")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert (json.loads(lines[0])["n"] == 1) if form == "json" else lines[0].endswith("info    hello  n=1")


def test_setting_up_twice_does_not_write_twice(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        logs.set_up(LogSettings())
    logging.getLogger("service.app").info("hello")
    assert capsys.readouterr().err.count("hello") == 1


@pytest.mark.parametrize("name", logs.QUIET)
def test_a_library_is_heard_from_its_own_level_on_and_never_below_the_one_chosen(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    logs.set_up(LogSettings(level="debug"))
    logging.getLogger(name).log(logs.QUIET[name] - 1, "chatter")
    logging.getLogger(name).log(logs.QUIET[name], "news")
    logging.getLogger(f"{name}.part").log(logs.QUIET[name], "more news")
    assert capsys.readouterr().err.count("\n") == 2
    logs.set_up(LogSettings(level="error"))
    logging.getLogger(name).warning("not asked for")
    assert capsys.readouterr().err == ""


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_repeats_is_told_a_few_times_and_then_counted() -> None:
    clock = Clock()
    repetition = Repetition(clock)
    assert [repetition.filter(record("broken %d", n)) for n in range(REPEATS + 7)] == [True] * REPEATS + [False] * 7
    clock.now += REPEATS_SECONDS
    next_one = record("broken %d", 99)
    assert repetition.filter(next_one)
    assert json.loads(JsonFormatter().format(next_one))["left_out"] == 7
    following = record("broken %d", 100)
    assert repetition.filter(following)
    assert "left_out" not in json.loads(JsonFormatter().format(following))


def test_one_kind_of_line_does_not_silence_another() -> None:
    repetition = Repetition(Clock())
    while repetition.filter(record("broken")):
        pass
    assert repetition.filter(record("something else"))
    louder = record("broken")
    louder.levelno = logging.ERROR
    assert repetition.filter(louder)


def test_critical_lines_are_never_left_out() -> None:
    repetition = Repetition(Clock())
    for _ in range(3 * REPEATS):
        last = record("stopping")
        last.levelno = logging.CRITICAL
        assert repetition.filter(last)


def test_kinds_without_end_take_no_memory_without_end() -> None:
    repetition = Repetition(Clock())
    for number in range(3 * KINDS):
        assert repetition.filter(record(f"value {number}"))
    assert len(repetition._told) <= KINDS


def test_repetition_is_limited_where_the_service_logs(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(LogSettings())
    for _ in range(10 * REPEATS):
        logging.getLogger("service.kafka.outlet").warning("outcomes cannot be stored, trying again")
    assert len(capsys.readouterr().err.splitlines()) == REPEATS
