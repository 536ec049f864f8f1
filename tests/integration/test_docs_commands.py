"""Every block of commands in the documents is run, in the order in which a reader would, against a real Kafka.

A document is one script. In place of the addresses that it names stand this test's own: a Kafka, an emulated API
(also where a vendor's is named: no test has a key), free ports. What serves until it is stopped (`convoy run`,
`convoy emulator`) goes on in the background from when it answers, and has to end well at the end. Blocks marked
`not-run` are counted in tests/unit/test_documents.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from documents import ROOT, all_documents, blocks, name_of
from kafka_server import free_port
from service_process import API_KEY, chat

from service.emulator.faults import FaultScript, Match, Moderation, Rule

if TYPE_CHECKING:
    from conftest import MakeTrial
    from service_process import Trial

DOCUMENTS = [document for document in all_documents() if any(block.is_run for block in blocks(document))]
VENDORS = (
    "https://dashscope-intl.aliyuncs.com/api/v2/apps/protocols/compatible-mode/v1",
    "https://dashscope.aliyuncs.com/api/v2/apps/protocols/compatible-mode/v1",
    "https://api.openai.com/v1",
)
MADE_FOR_REAL = {"help", "env", "version"}
"""Targets of make that a test can run; of the others only the plan is asked for. `make demo` is made smaller."""
SCRIPT_SECONDS = 120

PRELUDE = r"""
set -euo pipefail
trap 'echo "--- failed in the block of line $LINE" >&2' ERR

serve() {  # NAME ADDRESS WORDS…: in the background from when it answers
  local name=$1 address=$2
  shift 2
  "$@" > "$FOLDER/$name.log" 2>&1 &
  echo "$!" > "$FOLDER/$name.pid"
  curl -sS -o /dev/null --fail --retry 60 --retry-delay 1 --retry-all-errors "$address" 2>> "$FOLDER/waiting.log"
}

convoy() {
  case "$1" in
    run) serve run "http://127.0.0.1:$OPS_PORT/readyz" "$BIN/convoy" "$@" ;;
    emulator)
      serve emulator "http://127.0.0.1:$EMULATOR_PORT/_emulator/stats" "$BIN/convoy" "$@" --port "$EMULATOR_PORT" ;;
    *) "$BIN/convoy" "$@" ;;
  esac
}

make() {
  local target
  for target in "$@"; do
    case "$target" in
      demo) command make demo ARGS="--events 400 --rate 400" ;;
      *=*) ;;
      *) if [[ " $MADE_FOR_REAL " = *" $target "* ]]; then command make "$target"
         else command make --dry-run "$@" > /dev/null; fi ;;
    esac
  done
}

stop() {  # what serves is told to end, and must end well
  local name
  for name in run emulator; do
    if [ -f "$FOLDER/$name.pid" ]; then
      kill "$(cat "$FOLDER/$name.pid")"
      if ! wait "$(cat "$FOLDER/$name.pid")"; then
        echo "--- convoy $name did not end well" >&2
        cat "$FOLDER/$name.log" >&2
        exit 1
      fi
    fi
  done
}
"""


@dataclass(slots=True)
class Reader:
    """Somebody who follows a document: what they have, and where."""

    run: Trial
    ops_port: int = field(default_factory=free_port)
    emulator_port: int = field(default_factory=free_port)
    places: dict[str, str] = field(default_factory=dict)
    """What a document says, by what stands in its place here."""

    def environment(self, folder: Path) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CONVOY_", "DASHSCOPE_"))}
        settings = {f"CONVOY_{name}": value for name, value in self.run.settings(OPS__HOST="127.0.0.1").items()}
        own = Path(sys.executable).parent
        return (
            kept
            | settings
            | {
                "CONVOY_OPS__PORT": str(self.ops_port),
                "PATH": f"{own}:{os.environ['PATH']}",
                "BIN": str(own),
                "FOLDER": str(folder),
                "TMPDIR": str(folder),
                "OPS_PORT": str(self.ops_port),
                "EMULATOR_PORT": str(self.emulator_port),
                "MADE_FOR_REAL": " ".join(MADE_FOR_REAL),
                # Of examples/requester.py.
                "BOOTSTRAP_SERVERS": self.run.bootstrap_servers,
                "EVENTS_TOPIC": self.run.topics.events,
            }
        )

    def here(self, text: str) -> str:
        """A document's commands with this machine's places in them."""
        topics = self.run.topics
        places = {
            "localhost:9092": self.run.bootstrap_servers,
            "conversation.events": topics.events,
            "conversation.replies": topics.replies,
            "conversation.dead-letters": topics.dead_letters,
            "conversation.ledger": topics.ledger,
            "localhost:8080": f"127.0.0.1:{self.ops_port}",
            "127.0.0.1:8090": f"127.0.0.1:{self.emulator_port}",
            "localhost:8090": f"127.0.0.1:{self.emulator_port}",
            "sk-…": API_KEY,
            **dict.fromkeys(VENDORS, self.run.emulator.base_url),
            **self.places,
        }
        return re.sub("|".join(map(re.escape, places)), lambda found: places[found[0]], text)


def script(document: Path, reader: Reader) -> str:
    parts = [PRELUDE]
    runnable = [block for block in blocks(document) if block.is_run]
    text = "\n".join(block.text for block in runnable)
    if "localhost:8080" in text and not re.search(r"^convoy run", text, flags=re.MULTILINE):
        # It speaks of a service that runs.
        parts.append("convoy run\n")
    parts.extend(f"LINE={block.line}\n{reader.here(block.text)}" for block in runnable)
    parts.append("stop\n")
    return "\n".join(parts)


def follow(document: Path, reader: Reader, folder: Path) -> str:
    """Do what a document says; returns what was printed."""
    desk = folder / "desk"
    desk.mkdir()
    for entry in ROOT.iterdir():
        # A clone as the reader's is, where what they make is not left in this one.
        if entry.name not in {".git", "build", "dist"}:
            (desk / entry.name).symlink_to(entry)
    written = folder / "script.sh"
    written.write_text(script(document, reader))
    with subprocess.Popen(
        ["bash", str(written)],
        cwd=desk,
        env=reader.environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, _ = process.communicate(timeout=SCRIPT_SECONDS)
        finally:
            # Whatever a failed script left behind.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, f"{name_of(document)}:\n{out}\n{shlex.quote(str(written))}"
    return out


async def dead_letters(reader: Reader) -> None:
    """An event was refused, and the cause is gone since."""
    run = reader.run
    await run.publish(chat(conversations=1, turns=3))
    async with run.process() as service:
        await service.ready()
        await run.finished()
        assert await service.stop() == 0
    (letter,) = await run.records(run.topics.dead_letters)
    reader.places["3-1207"] = f"{letter.partition}-{letter.offset}"


PREPARED = {"docs/dead-letters.md": dead_letters}
REFUSING = FaultScript(rules=(Rule(Moderation(), Match(text="says 2")),))
SAID = {
    "README.md": [r"nothing lost, nothing doubled, nothing out of order", r"convoy topics|: exists"],
    "docs/dead-letters.md": [r"1 would be sent; nothing was", r"\n1 sent, 0 left"],
    "docs/quick-start.md": [r"✓", r'"status": "delivered"', r'"text": ?"Where is my parcel\?"'],
}
"""What must have been printed, beyond that every command ended well."""


def test_the_documents_have_commands_that_are_run() -> None:
    assert {name_of(document) for document in DOCUMENTS} >= set(SAID) | set(PREPARED)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
async def test_what_a_document_tells_to_do_works(trial: MakeTrial, tmp_path: Path, document: Path) -> None:
    name = name_of(document)
    run = await trial(partitions=4, faults=REFUSING if name in PREPARED else None)
    reader = Reader(run)
    if name in PREPARED:
        await PREPARED[name](reader)
    out = await asyncio.to_thread(follow, document, reader, tmp_path)
    for pattern in SAID.get(name, ()):
        assert re.search(pattern, out), f"{pattern} in:\n{out}"
