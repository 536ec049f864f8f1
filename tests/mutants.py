"""Break the core by hand, one line at a time: a test must notice each (`make mutants`).

A mutant is a small slip that somebody could make and that would hurt. Each is applied to a copy of the package
in a folder of its own, never to the working tree, and the tests of its file run there until the first fails.
A mutant that no test notices, or whose text is no longer in the file, fails the run.

To guard another file, add a `Guarded` to `GUARDED` with the tests that must notice its mutants; these run without
a conftest, so they have to be tests of pure parts. ``python tests/mutants.py WORD`` runs those with WORD in the name.
"""

# ruff: noqa: T201 - what it prints is what it is for

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
AT_ONCE: Final = 2
TIMEOUT_SECONDS: Final = 300.0
"""Nothing is proved by a run that takes longer: a mutant has to fail a test, not to hang it."""

NOTICED: Final = 1
"""What pytest returns when tests ran and one failed; a folder it could not even collect returns something else."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One slip: ``old`` stands exactly once in the file and becomes ``new``; ``hurts`` says whom."""

    name: str
    old: str
    new: str
    hurts: str


@dataclass(frozen=True, slots=True)
class Guarded:
    """A file, the tests that must notice its mutants (in this order), and these."""

    file: str
    tests: tuple[str, ...]
    mutants: tuple[Mutant, ...]


GROUPER: Final = Guarded(
    "service/core/grouper.py",
    ("tests/unit/test_grouper_properties.py", "tests/unit/test_grouper.py"),
    (
        Mutant(
            "the body's frame is not counted",
            "BODY_OVERHEAD_BYTES = len(b'{\"items\":[]}') - 1",
            "BODY_OVERHEAD_BYTES = 0",
            "requests a few bytes larger than allowed are refused with 413",
        ),
        Mutant(
            "a comma is not counted",
            "        lane.bytes += len(event.item) + 1\n",
            "        lane.bytes += len(event.item)\n",
            "a lane of many small items is sent late and too large",
        ),
        Mutant(
            "a full lane waits for one item more",
            "if len(waiting) >= self._max_items or",
            "if len(waiting) > self._max_items or",
            "twenty items wait for the window although they could go",
        ),
        Mutant(
            "a lane full to the byte waits",
            "or lane.bytes >= self._max_bytes or self._window <= 0:",
            "or lane.bytes > self._max_bytes or self._window <= 0:",
            "bytes that could go wait for the window",
        ),
        Mutant(
            "a new event jumps the back-off",
            "if lane.state is LaneState.WAITING and not lane.parts:",
            "if lane.state is LaneState.WAITING:",
            "a locked conversation is hammered as fast as its events come in",
        ),
        Mutant(
            "the window counts from each new event",
            "            elif len(waiting) == 1:\n",
            "            else:\n",
            "a trickle of events keeps the first one waiting for ever",
        ),
        Mutant(
            "the window begins anew behind a batch",
            "            due = lane.waiting[0].read_at + self._window\n",
            "            due = now + self._window\n",
            "an event that waited behind a batch in flight waits a whole window more",
        ),
        Mutant(
            "no window behind a batch",
            "            if due <= now:\n",
            "            if due:\n",
            "a busy conversation is sent in batches of one or two",
        ),
        Mutant(
            "a full lane is not noticed behind a batch",
            "        elif len(lane.waiting) >= self._max_items or lane.bytes >= self._max_bytes:\n",
            "        elif len(lane.waiting) > self._max_items or lane.bytes > self._max_bytes:\n",
            "a full batch waits for the window",
        ),
        Mutant(
            "a superseded timer still counts",
            "            if lane.token == token:\n",
            "            if lane.token >= 0:\n",
            "two batches of one conversation in flight: order is lost",
        ),
        Mutant(
            "a lane that is ready keeps its timer",
            "        lane.token = 0\n        lane.state = LaneState.READY\n",
            "        lane.state = LaneState.READY\n",
            "the timer fires behind the batch in flight: order is lost",
        ),
        Mutant(
            "the last one ready goes first",
            "lane = self._ready.popleft()",
            "lane = self._ready.pop()",
            "two busy conversations starve all others",
        ),
        Mutant(
            "a lane with more goes to the front",
            "        self._ready.append(lane)",
            "        self._ready.appendleft(lane)",
            "a busy conversation starves all others",
        ),
        Mutant(
            "who became ready by an answer overtakes the window",
            "            return\n        self._wake(now)\n        if lane.parts:",
            "            return\n        if lane.parts:",
            "with few permits, busy conversations go ahead of those whose time has come",
        ),
        Mutant(
            "who became full overtakes the window",
            "        if self._timers and self._timers[0][0] <= now:\n            self._wake(now)\n",
            "",
            "with few permits, bursts go ahead of those whose time has come",
        ),
        Mutant(
            "a revoked partition is still served",
            "            if not partition.alive:\n                continue\n",
            "",
            "two owners send the same events",
        ),
        Mutant(
            "a revoke leaves the object alive",
            "        partition.alive = False\n",
            "",
            "what is revoked is still sent: its next owner sends it again",
        ),
        Mutant(
            "a second assignment leaves the first alive",
            "        if number in self.partitions:\n            self.revoke(number)\n",
            "",
            "a partition taken over again is sent twice by one process",
        ),
        Mutant(
            "a drain starts new batches",
            "if partition.draining and not (lane.parts and lane.parts[0].unsettled):",
            "if partition.draining and not lane.parts and not lane.waiting:",
            "a drain never ends, and the partition is taken away in mid-flight",
        ),
        Mutant(
            "a drain forgets attempts of unknown fate",
            "if partition.draining and not (lane.parts and lane.parts[0].unsettled):",
            "if partition.draining:",
            "what may have been stored is not read back: duplicates at each deployment",
        ),
        Mutant(
            "a drain resends what was put back",
            "if partition.draining and not (lane.parts and lane.parts[0].unsettled):",
            "if partition.draining and not lane.parts:",
            "a drain starts attempts it has no time to finish",
        ),
        Mutant(
            "an attempt of unknown fate does not keep a drain waiting",
            "        if batch.unsettled:\n            lane.partition.unsettled += 1\n",
            "",
            "a partition is given up while an attempt may still land",
        ),
        Mutant(
            "an attempt of unknown fate keeps a drain waiting for ever",
            "            if batch.unsettled:\n                partition.unsettled -= 1\n",
            "",
            "every stop uses up its whole budget",
        ),
        Mutant(
            "a batch is not counted as in flight",
            "            partition.in_flight += 1\n",
            "            partition.in_flight += not batch.attempts and not lane.waiting\n",
            "a drain does not wait for what is in flight",
        ),
        Mutant(
            "a split loses what an earlier one left",
            "        lane.parts = (*parts, *lane.parts[1:])\n",
            "        lane.parts = tuple(parts)\n",
            "the second half of a refused batch is never sent, and its partition never moves",
        ),
        Mutant(
            "the parts of a split go last",
            "        lane.parts = (*parts, *lane.parts[1:])\n",
            "        lane.parts = (*lane.parts[1:], *parts)\n",
            "the halves of a refused batch change places: order is lost",
        ),
        Mutant(
            "done means all parts",
            "        lane.parts = lane.parts[1:]\n",
            "        lane.parts = ()\n",
            "the second half of a refused batch is never sent",
        ),
        Mutant(
            "an idle conversation keeps its lane",
            "            del lane.partition.lanes[lane.conversation_id]\n",
            "            pass\n",
            "memory grows with every conversation ever seen",
        ),
        Mutant(
            "one item too many",
            "for event in waiting[: self._max_items]:",
            "for event in waiting[: self._max_items + 1]:",
            "21 items: the API refuses the request as a whole",
        ),
        Mutant(
            "a batch larger than allowed",
            "                if count and taken + size > max_bytes:\n",
            "                if count and taken > max_bytes:\n",
            "the request that crosses the limit is refused with 413",
        ),
        Mutant(
            "an item too large for any batch travels with others",
            "                if count and taken + size > max_bytes:\n",
            "                if count > 1 and taken + size > max_bytes:\n",
            "a good item is dead-lettered with the one that is too large",
        ),
        Mutant(
            "what was cut still counts",
            "            lane.bytes -= taken\n",
            "            lane.bytes -= 0\n",
            "a lane is full for ever: batches of one",
        ),
        Mutant(
            "all that was cut out counts as the window's",
            "            if taken > max_bytes:\n                reason = FlushReason.BYTES\n",
            "",
            "who reads the metrics widens the window, and it does not help",
        ),
        Mutant(
            "the deadline trusts old timers",
            "        while timers and not _is_live(timers[0]):\n            heapq.heappop(timers)\n",
            "",
            "the loop wakes for nothing with each batch that was full before its window",
        ),
        Mutant(
            "the deadline forgets who is ready",
            '        if self._ready:\n            return float("-inf")\n',
            "",
            "what is due sleeps until the next window",
        ),
        Mutant(
            "the sweep takes live timers too",
            "            timers[:] = filter(_is_live, timers)\n",
            "            timers.clear()\n",
            "thousands of conversations wait for a window that never ends",
        ),
        Mutant(
            "the sweep leaves no heap",
            "            heapq.heapify(timers)\n",
            "            timers.reverse()\n",
            "windows end in the wrong order, some of them late",
        ),
        Mutant(
            "a lane put down counts as in flight",
            "        lane.partition.in_flight -= 1\n        lane.state = LaneState.WAITING\n",
            "        lane.partition.in_flight -= 1\n",
            "behind a batch no lane is ever full: every one waits for its window",
        ),
        Mutant(
            "the deadline trusts timers of revoked partitions",
            "    return lane.token == token and lane.partition.alive\n",
            "    return lane.token == token\n",
            "the loop wakes for nothing after every rebalance",
        ),
        Mutant(
            "a timer fires a moment early",
            "        while timers and timers[0][0] <= now:\n",
            "        while timers and timers[0][0] <= now + 0.2:\n",
            "back-off and Retry-After are cut short",
        ),
        Mutant(
            "a timer fires only after its moment",
            "        while timers and timers[0][0] <= now:\n",
            "        while timers and timers[0][0] < now:\n",
            "the loop sleeps until the deadline, finds nothing due and spins",
        ),
        Mutant(
            "a late result revives a lane",
            "        if not lane.partition.alive:\n            return\n        self._wake(now)",
            "        self._wake(now)",
            "the first late answer after a rebalance ends the process",
        ),
        Mutant(
            "what an earlier owner began is not in its drain",
            "        partition.unsettled += 1\n        self._make_ready(lane)\n",
            "        self._make_ready(lane)\n",
            "a partition is handed on with an attempt nobody has read back",
        ),
        Mutant(
            "what an earlier owner began is sent without a look",
            "            unsettled=unsettled,\n",
            "            unsettled=None,\n",
            "every take-over sends again what the earlier owner may have stored",
        ),
        Mutant(
            "what an earlier owner began is never taken",
            "        partition.unsettled += 1\n        self._make_ready(lane)\n",
            "        partition.unsettled += 1\n",
            "a conversation stands still from the take-over on, and its partition with it",
        ),
        Mutant(
            "nobody notes when an event was read",
            "        event.read_at = now\n",
            "",
            "what waits behind a batch goes without a window",
        ),
        Mutant(
            "who only names its next request goes to the end",
            "            self._ready.appendleft(lane)\n",
            "            self._ready.append(lane)\n",
            "with many conversations a read-back waits a whole round before its batch is sent",
        ),
        Mutant(
            "a stored outcome frees no bytes",
            "        self.buffered_bytes -= sum([event.size for event in events])\n",
            "",
            "the buffer is full for ever: consumption stops",
        ),
        Mutant(
            "a stored outcome frees one event only",
            "        self.buffered_events -= len(events)\n",
            "        self.buffered_events -= 1\n",
            "the buffer is full for ever: consumption stops",
        ),
    ),
)

GROUPER_MEMORY: Final = Guarded(
    "service/core/grouper.py",
    # The model sees what is taken and when, not what is held meanwhile.
    ("tests/unit/test_grouper.py",),
    (
        Mutant(
            "what was revoked keeps its events",
            "            lane.waiting = []\n        partition.lanes = {}\n",
            "            lane.waiting = lane.waiting\n        partition.lanes = {}\n",
            "every rebalance holds a buffer's worth of memory until the last timer has passed",
        ),
        Mutant(
            "what was revoked keeps its lanes",
            "        partition.lanes = {}\n        partition.buffered_events",
            "        partition.buffered_events",
            "a revoked partition keeps its conversations in memory as long as an attempt of it lasts",
        ),
        Mutant(
            "old timers are never swept out",
            "if len(timers) >= self._sweep_at:",
            "if len(timers) < 0:",
            "with a window of an hour the heap outgrows all limits",
        ),
    ),
)

WATERMARK: Final = Guarded(
    "service/core/watermark.py",
    ("tests/unit/test_watermark.py", "tests/unit/test_grouper_properties.py"),
    (
        Mutant(
            "the position follows the last outcome",
            "        if waiting[0] not in settled:\n            return\n",
            "        if waiting[0] not in settled:\n            self.position = offsets[-1] + 1\n            return\n",
            "a crash loses what was in flight before it",
        ),
        Mutant(
            "the position passes an open offset",
            "        while waiting and waiting[0] in settled:\n",
            "        while waiting and settled:\n",
            "a crash loses what was in flight between two outcomes",
        ),
        Mutant(
            "outcomes out of order are not made up for",
            "        while waiting and waiting[0] in settled:\n",
            "        if waiting and waiting[0] in settled:\n",
            "the position stands still for ever: all is read again after a restart",
        ),
        Mutant(
            "the position stays on what is settled",
            "        self.position = waiting[0] if waiting else offset + 1\n",
            "        self.position = waiting[0] if waiting else offset\n",
            "the last event is sent again after every restart",
        ),
        Mutant(
            "the position is reckoned, not looked up",
            "        self.position = waiting[0] if waiting else offset + 1\n",
            "        self.position = offset + 1\n",
            "in a log with gaps the position is one nobody was told of",
        ),
        Mutant(
            "a settled offset is kept",
            "            settled.remove(offset)\n",
            "            settled.add(offset)\n",
            "memory grows with every event ever delivered out of order",
        ),
        Mutant(
            "each record moves the position",
            "        if not self._open:\n            self.position = offset\n",
            "        self.position = offset\n",
            "what is buffered is committed: a crash loses all of it",
        ),
        Mutant(
            "only the first record sets the position",
            "        if not self._open:\n            self.position = offset\n",
            "        if self.position is None:\n            self.position = offset\n",
            "behind a gap the lag never comes to zero",
        ),
    ),
)

VERDICT: Final = Guarded(
    "service/core/verdict.py",
    ("tests/unit/test_verdict.py",),
    (
        Mutant(
            "a list of fewer items is as good",
            "len(answer.items) == sent:",
            "len(answer.items) <= sent:",
            "items that were not stored are reported as delivered",
        ),
        Mutant(
            "an error code outweighs a 5xx",
            "    if status >= 500 or status < 200:\n",
            "    if (status >= 500 and not answer.error) or status < 200:\n",
            "a 500 that names a lock is sent again without a look: duplicates",
        ),
        Mutant(
            "codes are taken letter by letter",
            "_kind_of_code(error.code.lower(), overrides or {})",
            "_kind_of_code(error.code, overrides or {})",
            "an unpaid account dead-letters everything",
        ),
        Mutant(
            "settings come second",
            "return overrides.get(code) or CODE_KINDS.get(code) or",
            "return CODE_KINDS.get(code) or overrides.get(code) or",
            "a vendor's own meaning of a known code can not be told",
        ),
        Mutant(
            "a gateway's 404 is the API's",
            "    if status == 404 and _own_form(status, error):\n",
            "    if status == 404 and error is not None:\n",
            "a wrong base URL dead-letters everything",
        ),
        Mutant(
            "a bare phrase in OpenAI's form is the API's",
            "    return error.form is not ErrorForm.FLAT and _letters(error.code) not in",
            "    return error.form is not ErrorForm.FLAT or _letters(error.code) not in",
            "a wrong base URL dead-letters everything",
        ),
        Mutant(
            "a wrong URL is known by 404 alone",
            '    400: ("url error, please check url", "invalid url provided in your request"),\n',
            "",
            "a wrong path at Alibaba's dead-letters everything",
        ),
        Mutant(
            "a gateway's 502 is the last word",
            "    if error is None or status in RELAYED_STATUSES or error.code == str(status):\n",
            "    if error is None:\n",
            "what the API is still storing is sent again: duplicates",
        ),
        Mutant(
            "a 5xx without a body is the last word",
            "        last_word=kind is not Kind.AMBIGUOUS or _is_last_word(status, error),\n",
            "        last_word=True,\n",
            "what the API is still storing is sent again: duplicates",
        ),
        Mutant(
            "silence is taken for a refused connection",
            "    if answer.fate is Fate.UNKNOWN:\n",
            "    if answer.fate is Fate.UNKNOWN and not answer.code:\n",
            "whatever was cut is sent again without a look: duplicates",
        ),
        Mutant(
            "a culprit one beyond is believed",
            "error.culprit in range(sent)",
            "error.culprit in range(sent + 1)",
            "a batch is cut behind its end",
        ),
        Mutant(
            "a TLS failure is a passing one",
            '    if answer.code == "tls_error":\n',
            '    if answer.code == "":\n',
            "nobody is told that the certificate has run out",
        ),
        Mutant(
            "a 3xx refuses the item",
            "        Kind.OPERATOR if status < 400 else",
            "        Kind.OPERATOR if status < 300 else",
            "a redirected base URL dead-letters everything",
        ),
    ),
)

READBACK: Final = Guarded(
    "service/core/readback.py",
    ("tests/unit/test_readback.py",),
    (
        Mutant(
            "a string is not a part",
            '[{"type": "text", "text": content}] if isinstance(content, str) else content',
            "[content] if isinstance(content, str) else content",
            "nothing sent as a string is found again: duplicates",
        ),
        Mutant(
            "what the API adds counts",
            "if name not in ADDED_BY_THE_API and value is not None}",
            "if value is not None}",
            "an image is never found again: duplicates",
        ),
        Mutant(
            "a null counts",
            "if name not in ADDED_BY_THE_API and value is not None}",
            "if name not in ADDED_BY_THE_API}",
            "an image is never found again: duplicates",
        ),
        Mutant(
            "the order of keys counts",
            "json.dumps(part, sort_keys=True,",
            "json.dumps(part, sort_keys=False,",
            "a file is never found again: duplicates",
        ),
        Mutant(
            "the role does not count",
            'str(item.get("role", ""))',
            'str(item.get("roles", ""))',
            "the assistant's echo is taken for the user's message: a loss",
        ),
        Mutant(
            "items are found in any order",
            "        if item == sent[len(matches)]:\n",
            "        if item in sent:\n",
            "what was not stored is reported as delivered",
        ),
        Mutant(
            "nobody writes in between",
            "        if item == sent[len(matches)]:\n            matches.append(index)\n",
            "        if item != sent[len(matches)]:\n            break\n        matches.append(index)\n",
            "another writer's item hides ours: duplicates",
        ),
        Mutant(
            "the oldest cursor is not the one forgotten",
            "self._of.popitem(last=False)",
            "self._of.popitem(last=True)",
            "the conversations in use are the ones not remembered",
        ),
        Mutant(
            "learning does not refresh",
            "        self._of.move_to_end(conversation_id)\n",
            "",
            "the conversations in use are the ones not remembered",
        ),
        Mutant(
            "one cursor too many is kept",
            "if len(self._of) > self._limit:",
            "if len(self._of) > self._limit + 1:",
            "the memory's bound is not the one given",
        ),
    ),
)

CIRCUIT: Final = Guarded(
    "service/core/circuit.py",
    ("tests/unit/test_circuit.py", "tests/unit/test_delivery_health.py"),
    (
        Mutant(
            "two are enough",
            "FAILING_CONVERSATIONS = 3",
            "FAILING_CONVERSATIONS = 2",
            "two sick conversations stop all others",
        ),
        Mutant(
            "a success forgives nobody",
            "            self._failing.clear()\n",
            "            pass\n",
            "three failures a day stop everything",
        ),
        Mutant(
            "any number of probes",
            "        self._probe_at = now + PROBE_MAX_SECONDS\n",
            "",
            "a host that comes up is met by everybody at once",
        ),
        Mutant(
            "a probe given up makes room for another",
            "        if not probe or probe != self._latest_probe or",
            "        if not probe or",
            "two probes at a time",
        ),
        Mutant(
            "a slow probe is followed by a whole wait",
            "self._probe_at = min(self._probe_at, now + self._interval)",
            "self._probe_at = now + self._interval",
            "recovery takes longer than five seconds",
        ),
        Mutant(
            "probes write into the silence",
            "return self.reason in _SILENT and not self._heard and",
            "return self.reason is None and not self._heard and",
            "who was written to in vain waits half a minute after the host has healed",
        ),
        Mutant(
            "probes never write unheard",
            " and self._reads_in_vain < READS_BEFORE_A_WRITE",
            "",
            "a host that can not list is never used again",
        ),
        Mutant(
            "what was heard is heard for ever",
            "        self._good_reads = 0\n        self._heard = False\n",
            "        self._good_reads = 0\n",
            "probes write into the silence",
        ),
        Mutant(
            "the wait between probes has no bound",
            "min(self._interval * 2, PROBE_MAX_SECONDS)",
            "self._interval * 2",
            "a healed host is found after as long again as it was away",
        ),
        Mutant(
            "a good read is followed by a wait",
            " or self.reason is None or self._read_worked:",
            " or self.reason is None:",
            "recovery takes longer than five seconds",
        ),
        Mutant(
            "one good read closes",
            "self._good_reads >= READS_THAT_CLOSE:",
            "self._good_reads >= 1:",
            "while only writes fail, everybody writes again and again",
        ),
        Mutant(
            "good reads close again and again",
            "            self._reads_trusted = False\n",
            "",
            "while only writes fail, everybody writes again and again",
        ),
        Mutant(
            "a conversation accepted stays suspect",
            "        self._forbidden.pop(conversation_id, None)\n"
            "        if conversation_id != self._last_success_of:\n",
            "        if conversation_id != self._last_success_of:\n",
            "the second time a key loses its rights, everything is dead-lettered",
        ),
        Mutant(
            "any acceptance clears the key",
            "self._accepted_start = max(self._accepted_start, started_at)",
            "self._accepted_start = now",
            "what was under way when a key lost its rights gets others dead-lettered",
        ),
        Mutant(
            "somebody is blamed while it is open",
            "        if self.reason is None and self._accepted_start > first:\n",
            "        if self._accepted_start > first:\n",
            "the probes of an outage are dead-lettered",
        ),
        Mutant(
            "one's own success shows the host healthy for others",
            "            return self._before_last_success > since\n",
            "            return self._last_success > since\n",
            "a conversation alone is given up",
        ),
        Mutant(
            "healthy though open",
            "        if self.reason is not None:\n            return False\n        if self._last_success_of",
            "        if self._last_success_of",
            "an outage gives conversations up",
        ),
        Mutant(
            "the time it was open is forgotten",
            "        self._open_seconds += now - self._opened_at\n",
            "",
            "an outage makes every batch too old",
        ),
    ),
)

DELIVERY: Final = Guarded(
    "service/core/delivery.py",
    (
        "tests/unit/test_delivery.py",
        "tests/unit/test_delivery_health.py",
        "tests/unit/test_delivery_properties.py",
    ),
    (
        Mutant(
            "absent counts at once",
            "can_tell = unsettled.last_word or started_at >=",
            "can_tell = unsettled.last_word or now >=",
            "a request that lands while it is looked for is sent again: duplicates",
        ),
        Mutant(
            "an unheard attempt is sent again without a look",
            "        if kind is Kind.AMBIGUOUS:\n",
            "        if kind is Kind.AMBIGUOUS and verdict.last_word:\n",
            "every answer lost is a duplicate",
        ),
        Mutant(
            "the whole batch is sent again",
            "        missing = events[stored:]\n",
            "        missing = events\n",
            "a stored prefix is doubled",
        ),
        Mutant(
            "it is read behind what is newest now",
            "Unsettled(started_at, batch.after, last_word=verdict.last_word)",
            "Unsettled(started_at, self.cursors.get(batch.conversation_id), last_word=verdict.last_word)",
            "what another lane stored meanwhile hides ours: duplicates",
        ),
        Mutant(
            "no id means empty",
            "        if newest:\n            self.cursors.learn(batch.conversation_id, newest)\n        else:\n",
            "        if True:\n            self.cursors.learn(batch.conversation_id, newest)\n        else:\n",
            "old messages are taken for new ones: losses",
        ),
        Mutant(
            "a refused batch has stored nothing",
            "if batch.after is not None and (self._policy.exact",
            "if batch.after is None and (self._policy.exact",
            "what stands before a culprit is doubled",
        ),
        Mutant(
            "nothing stored once is nothing stored ever",
            "        first, rest = self._part(batch, events[:1]), self._part(batch, events[1:])\n",
            "        batch.atomic_refusal = stored == 0\n"
            "        first, rest = self._part(batch, events[:1]), self._part(batch, events[1:])\n",
            "what stands between two culprits is doubled",
        ),
        Mutant(
            "what is known to be guilty is sent all the same",
            "        if batch.known_guilty and len(batch.events) > 1:\n",
            "        if batch.known_guilty and len(batch.events) > 20:\n",
            "a culprit costs more requests than promised",
        ),
        Mutant(
            "the culprit named is off by the prefix",
            "culprit = verdict.culprit - (stored or 0)",
            "culprit = verdict.culprit",
            "a culprit costs more requests than promised",
        ),
        Mutant(
            "halves",
            "cut = (len(events) * 3 + 4) // 8",
            "cut = len(events) // 2",
            "a culprit costs more requests than promised",
        ),
        Mutant(
            "the parts of a split change places",
            "        return [first, second]\n",
            "        return [second, first]\n",
            "order is lost",
        ),
        Mutant(
            "a stored batch leaves the circuit open",
            "            self.circuit.success(batch.conversation_id, now, started_at=unsettled.started_at)\n",
            "",
            "with nothing left to probe with, partitions stay paused for ever",
        ),
        Mutant(
            "a lock ages",
            "            self.circuit.success(batch.conversation_id, now)\n            self._excuse(batch, now)\n",
            "            self.circuit.success(batch.conversation_id, now)\n",
            "the first trouble after a long lock is a dead letter",
        ),
        Mutant(
            "whom nobody reaches is to blame",
            "        if verdict.kind is Kind.TRANSIENT and verdict.status is None:\n",
            "        if False:\n",
            "a flaky network fills the dead letters",
        ),
        Mutant(
            "an outage uses attempts up",
            "        if others_got_through:\n            batch.troubles += 1\n",
            "        if True:\n            batch.troubles += 1\n",
            "the first trouble after an outage is a dead letter",
        ),
        Mutant(
            "age alone gives up",
            "            and batch.troubles >= policy.max_attempts\n",
            "",
            "the first trouble after a long hold is a dead letter",
        ),
        Mutant(
            "attempts alone give up",
            "            and batch.troubled_seconds >= policy.max_age_seconds\n",
            "",
            "a shard that is away for a minute fills the dead letters",
        ),
        Mutant(
            "a firewall's refusal is taken for the API's",
            "            if verdict.foreign:\n                return",
            "            if verdict.foreign and verdict.kind is Kind.FORBIDDEN:\n                return",
            "a gateway that refuses everybody fills the dead letters",
        ),
        Mutant(
            "a firewall's refusal is believed at once",
            "        if len(batch.events) == 1 and not circuit.accepted_since(batch.refused_at):\n",
            "        if circuit.is_open:\n",
            "a gateway that refuses everybody fills the dead letters before the circuit opens",
        ),
        Mutant(
            "a gateway's refusal of a read forgets the cursor",
            "if gone and not verdict.foreign and unsettled.after:",
            "if gone and unsettled.after:",
            "an old message in the same words is taken for the new one: a loss",
        ),
        Mutant(
            "a spent batch is given up in company",
            "            result.parts = [self._part(batch, [event], last_chance=True) for event in missing]\n",
            "            result.outcomes.append(DeadLettered(missing, Dead(Reason.EXHAUSTED)))\n",
            "nineteen good messages go with the bad one",
        ),
        Mutant(
            "what a prefix left is given up unsent",
            "        elif len(batch.events) == 1:\n",
            "        elif len(missing) == 1:\n",
            "a good message is given up for having been the last of its batch",
        ),
        Mutant(
            "an empty 2xx stops everybody",
            "            if repeated and (others_too or not healthy):\n",
            "            if repeated:\n",
            "one odd conversation pauses all others, again and again",
        ),
        Mutant(
            "a 403 when asked for the cursor is any trouble",
            "        if verdict.kind is Kind.FORBIDDEN:\n            return self._forbidden(batch, verdict, now)\n"
            "        if verdict.kind in {",
            "        if verdict.kind in {",
            "a key without rights is told as an outage",
        ),
        Mutant(
            "the cursor survives what was given up unread",
            "            self.cursors.forget(batch.conversation_id)\n        dead = ",
            "        dead = ",
            "what it may have stored is taken for the next in the same words: a loss",
        ),
        Mutant(
            "what may still land is given up",
            "        return over and unsettled.reads >= UNREADABLE_READS\n",
            "        return unsettled.reads >= UNREADABLE_READS\n",
            "what lands afterwards is taken for the next in the same words: a loss",
        ),
        Mutant(
            "what waits for the host waits long",
            "return HOST_BACKOFF_MAX_SECONDS if self.circuit.is_open else self._policy.backoff_max_seconds",
            "return self._policy.backoff_max_seconds",
            "nothing is at hand when a probe is due: recovery takes longer than five seconds",
        ),
    ),
)

GUARDED: Final = (GROUPER, GROUPER_MEMORY, WATERMARK, VERDICT, READBACK, CIRCUIT, DELIVERY)


@dataclass(frozen=True, slots=True)
class Ran:
    """What pytest said of one copy of the package."""

    status: int | None
    """Its exit status; ``None`` when it went on for too long."""
    seconds: float
    first_failed: str
    output: str


def run_tests(tests: tuple[str, ...], file: str = "", text: str = "") -> Ran:
    """Run ``tests`` on a copy of the package in which ``file`` has become ``text``."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder)
        bytecode = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "service", copy / "service", ignore=bytecode)
        for tests_of in ("unit", "model"):
            shutil.copytree(ROOT / "tests" / tests_of, copy / "tests" / tests_of, ignore=bytecode)
        shutil.copy(ROOT / "tests" / "switches.py", copy / "tests")
        shutil.copy(ROOT / "pyproject.toml", copy)
        if file:
            (copy / file).write_text(text)
        # The package is installed editable: only what stands before it on the path is the copy.
        environment = os.environ | {
            "PYTHONPATH": folder,
            "PYTHONDONTWRITEBYTECODE": "1",
            "HYPOTHESIS_PROFILE": "mutants",
            "EXPECTED_PACKAGE": folder,
        }
        check = "import os, service; assert service.__file__.startswith(os.environ['EXPECTED_PACKAGE'] + os.sep)"
        run = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
        command = [sys.executable, "-c", f"{check}\n{run}", "-x", "-q", "--noconftest", "-p", "no:cacheprovider"]
        started = time.monotonic()
        try:
            done = subprocess.run(
                [*command, "--tb=line", "--no-header", *tests],
                cwd=copy, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Ran(None, time.monotonic() - started, "", "")
        failed = re.search(r"^FAILED \S+?::(\w+)", done.stdout, re.MULTILINE)
        return Ran(
            done.returncode,
            time.monotonic() - started,
            failed[1] if failed else "",
            done.stdout + done.stderr,
        )


def judge(guarded: Guarded, mutant: Mutant) -> tuple[bool, str]:
    """Whether ``mutant`` was noticed, and how; or why not."""
    source = (ROOT / guarded.file).read_text()
    if source.count(mutant.old) != 1:
        return False, f"DOES NOT APPLY: its text stands {source.count(mutant.old)} times in the file"
    ran = run_tests(guarded.tests, guarded.file, source.replace(mutant.old, mutant.new))
    if ran.status is None:
        return False, f"NOT JUDGED: still running after {ran.seconds:.0f} s"
    if ran.status == NOTICED and ran.first_failed:
        return True, f"{ran.seconds:4.1f} s  {ran.first_failed}"
    if ran.status == 0:
        return False, "SURVIVED"
    return False, f"NOT RUN: pytest returned {ran.status}\n{ran.output}"


def main(table: tuple[Guarded, ...]) -> int:
    """Judge all mutants of a table, or those with a word in their name; 0 when every one was noticed."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    started = time.monotonic()
    chosen = [(guarded, mutant) for guarded in table for mutant in guarded.mutants if word in mutant.name]
    ran = run_tests(tuple(dict.fromkeys(test for guarded, _ in chosen for test in guarded.tests)))
    if ran.status != 0:
        print(f"Without any mutant the tests already fail:\n{ran.output}")
        return 1
    failures = 0
    width = max((len(mutant.name) for _, mutant in chosen), default=0)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for (guarded, mutant), (noticed, how) in zip(chosen, pool.map(lambda pair: judge(*pair), chosen), strict=True):
            failures += not noticed
            print(
                f"{'ok  ' if noticed else 'FAIL'} {Path(guarded.file).stem:10} {mutant.name:{width}}  {how}", flush=True
            )
            if not noticed:
                print(f"     it would hurt: {mutant.hurts}")
    noticed_count = len(chosen) - failures
    print(f"{noticed_count} of {len(chosen)} mutants noticed, in {time.monotonic() - started:.0f} s")
    return 1 if failures or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(GUARDED))
