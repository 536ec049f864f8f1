"""The AsyncAPI document, judged by the schema of AsyncAPI's own tools."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jsonschema import Draft7Validator

from service.commands.asyncapi import document
from service.settings import KafkaSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn


def test_the_document_is_such_as_asyncapi_asks_for(missing: Callable[[str], NoReturn]) -> None:
    linter = shutil.which("actionlint")
    schemas = Path(linter).parent / "asyncapi" if linter is not None else None
    if schemas is None or not schemas.is_dir():
        missing("AsyncAPI's schemas are not beside the tools on the PATH (.ci/install-docs-tools)")
    whole = json.loads(document(KafkaSettings()))
    judge = Draft7Validator(json.loads((schemas / f"{whole['asyncapi']}.json").read_text()))
    assert [f"{list(error.path)}: {error.message}" for error in judge.iter_errors(whole)] == []
    # It would be noticed.
    whole["channels"]["events"]["adress"] = whole["channels"]["events"].pop("address")
    assert not judge.is_valid(whole)


def test_the_command_prints_it() -> None:
    done = subprocess.run([sys.executable, "-m", "service", "asyncapi"], capture_output=True, text=True, check=True)
    shown = json.loads(done.stdout)
    headers = shown["components"]["messages"]["event"]["headers"]["properties"]
    assert {"correlation_id", "reply_to", "kafka_replyTopic", "ce_id"} <= set(headers)
