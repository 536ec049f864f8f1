"""Take rules out of the ledger, one at a time: a scenario, or the schedules, must notice each.

Some rules matter once in thousands of schedules; for those a scenario in `test_crash_points` plays the very case.
How a mutant is applied and judged is `tests/mutants.py`'s; ``python tests/model/mutants.py WORD`` runs those with WORD
in the name.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from mutants import Guarded, Mutant, main

TESTS: Final = ("tests/model/test_crash_points.py", "tests/model/test_schedules.py")

RULES: Final = Guarded(
    "service/core/ledger.py",
    TESTS,
    (
        Mutant(
            "the bookmark is the ledger's end",
            "        start = mentions[0][0] if mentions else self.next\n",
            "        start = self.next\n",
            "what was begun before the last commit is sent again",
        ),
        Mutant(
            "a mention is noted one place too high",
            "            self._mentions.append((self.next, highest))\n",
            "            self._mentions.append((self.next + 1, highest))\n",
            "what was being sent at a crash is sent again",
        ),
        Mutant(
            "what is found in the log is forgotten by the bookmark",
            "        self._mentions = deque(past.mentions)\n",
            "        self._mentions = deque()\n",
            "at the second crash what was begun before the first is sent again",
        ),
        Mutant(
            "a gap is not read",
            "            return Gap(self.next, offset)\n",
            "            self.next = offset + 1\n            return None\n",
            "one who has lost the partition sends, and answers, beside its new owner",
        ),
        Mutant(
            "the claim in force is not in the bookmark",
            "        return start, self._claims[index] if index >= 0 else NO_CLAIM\n",
            "        return start, NO_CLAIM\n",
            "a void record at the head of what is read is believed",
        ),
        Mutant(
            "records of one who had lost the partition count",
            "        if record.claim < self.current:\n            return\n",
            "",
            "an outcome that was answered to nobody hides an open intent",
        ),
        Mutant(
            "absent counts at once, after a take-over",
            "    return max(0, claim.timestamp - intent.timestamp) / 1000\n",
            "    return 1000.0\n",
            "a request that lands late is sent twice",
        ),
        Mutant(
            "an outcome does not close the intent",
            "        self.open.pop(record.conversation_id, None)\n",
            "",
            "what was refused waits for an attempt that is long settled, or is found where it is not",
        ),
    ),
)

LEDGER: Final = Guarded(
    "service/kafka/ledger.py",
    TESTS,
    (
        Mutant(
            "what is settled above is counted from another position",
            "in above.read(committed, text)",
            "in above.read(committed + 1, text)",
            "what nobody sent is passed over",
        ),
        Mutant(
            "a claim hands nothing on of what is settled above",
            "await commit(partition, position, _text(ownership, position, before))\n",
            "await commit(partition, position, _text(ownership, position, ()))\n",
            "the second take-over answers once more what is settled above the position",
        ),
        Mutant(
            "cursors are learned from a ledger that was off for a while",
            "        if whole:\n",
            "        if True:\n",
            "an older message in the same words is taken for a new one, which is lost",
        ),
        Mutant(
            "a mention is noted when it is acknowledged",
            "        ownership.about_to_write(highest)\n"
            "        try:\n"
            "            offset, timestamp = await self._append(partition.number, line)\n",
            "        try:\n"
            "            offset, timestamp = await self._append(partition.number, line)\n"
            "            ownership.about_to_write(highest)\n",
            "an intent written and not yet acknowledged at the last commit lies below the bookmark",
        ),
        Mutant(
            "one intent a batch, not an attempt",
            "        began = self._boot_clock()\n",
            "        began = self._boot_clock()\n        if batch.attempts > 1:\n            return lambda: True\n",
            "the next owner counts S from the first attempt, and sends while the last may still land",
        ),
        Mutant(
            "a stale intent is sent",
            " and self._boot_clock() - began <= INTENT_FRESH_SECONDS",
            "",
            "a process that was stopped sends what its successor has settled",
        ),
        Mutant(
            "an outcome does not say which item is newest",
            "                newest,\n",
            '                batch.after or "",\n',
            "an older message in the same words is taken for a new one, which is lost",
        ),
        Mutant(
            "a gap in the ledger is passed over",
            "        if accepted_until is None or datetime.now(UTC) > accepted_until:\n",
            "        if False:\n",
            "what was being sent is sent again, and nobody was asked",
        ),
    ),
)

DELIVERY: Final = Guarded(
    "service/core/delivery.py",
    TESTS,
    (
        Mutant(
            "absent counts at once, in process",
            "        can_tell = unsettled.last_word or started_at >=",
            "        can_tell = True or started_at >=",
            "a request that lands late is sent twice",
        ),
        Mutant(
            "given up unread",
            "        if self._policy.exact:\n            return False\n",
            "",
            "an event is in the dead letters and stored",
        ),
        Mutant(
            "a refusal as a whole is trusted the next time",
            "(self._policy.exact or not batch.atomic_refusal)",
            "not batch.atomic_refusal",
            "an API that keeps a prefix now and then gets it twice",
        ),
    ),
)

PUMP: Final = Guarded(
    "service/pump.py",
    TESTS,
    (
        Mutant(
            "a dead letter goes out before its outcome",
            "            if result.outcomes and self._journal is not None:\n",
            "            for outcome in [one for one in result.outcomes if isinstance(one, DeadLettered)]:\n"
            "                self._conclude(batch.lane.partition, [outcome])\n"
            "                result.outcomes.remove(outcome)\n"
            "            if result.outcomes and self._journal is not None:\n",
            "the next owner sends what is in the dead letters, and it may pass",
        ),
        Mutant(
            "an outcome that is not recorded is answered",
            "        if not batch.lane.partition.alive:\n            # Its partition was lost meanwhile",
            "        if False:\n            # Its partition was lost meanwhile",
            "two owners say different things of one event",
        ),
        Mutant(
            "a late answer moves the cursor",
            "            if batch.lane.partition.alive:\n                result = self._decide",
            "            if True:\n                result = self._decide",
            "an older message in the same words is taken for a new one, which is lost",
        ),
    ),
)

RECOVERY: Final = Guarded(
    "service/core/recovery.py",
    TESTS,
    (
        Mutant(
            "the digest is ignored",
            "if settled is not None and settled.digest == event.digest:\n",
            "if settled is not None:\n",
            "a topic made anew: its events are answered with the old ones' items",
        ),
        Mutant(
            "the digest of an intent is ignored",
            "    return (event.offset, event.digest) in intent.events\n",
            "    return any(offset == event.offset for offset, _ in intent.events)\n",
            "a topic made anew: old words are taken for new ones",
        ),
        Mutant(
            "events of an open intent go as they come",
            "        elif conversation_id in self._open:\n",
            "        elif False:\n",
            "what was in flight at a crash is stored twice",
        ),
        Mutant(
            "what is settled is sent again",
            "        settled = self._settled.get(event.offset)\n",
            "        settled = None\n",
            "what was settled above the position is stored twice",
        ),
        Mutant(
            "the first intent of a batch is enough to hold",
            "            if not _names(self._open[conversation_id], event):\n",
            "            if True:\n",
            "of an attempt in flight at a crash all but the first item is stored twice",
        ),
    ),
)

INTAKE: Final = Guarded(
    "service/kafka/intake.py",
    TESTS,
    (
        Mutant(
            "what is only read is told to be settled",
            "        settled = partition.watermark.above\n",
            "        settled = set(partition.watermark._open) - {position}\n",
            "the next owner passes over what nobody sent",
        ),
        Mutant(
            "what an earlier owner settled is not passed over",
            "            if recalled and self._settled_before(partition, record.offset):\n",
            "            if False:\n",
            "each take-over answers once more whatever is settled above the position",
        ),
        Mutant(
            "what an earlier owner settled is not handed on",
            "            return settled | before\n",
            "            return settled\n",
            "the second take-over answers once more what is settled above the position",
        ),
        Mutant(
            "cursors outlive the ownership",
            "        self._given_up()\n",
            "",
            "an older message in the same words is taken for a new one, which is lost",
        ),
        Mutant(
            "who is giving a partition up takes it over again",
            "        if not partition.draining:\n            self._begin(partition.number)\n",
            "        self._begin(partition.number)\n",
            "claims without end on a partition that is somebody else's",
        ),
    ),
)

GUARDED: Final = (RULES, LEDGER, DELIVERY, PUMP, RECOVERY, INTAKE)


if __name__ == "__main__":
    sys.exit(main(GUARDED))
