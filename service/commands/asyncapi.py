"""`convoy asyncapi`: topics, headers and payloads of this deployment as a document; `--schemas` the JSON Schemas."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from service import __version__
from service.schemas import asyncapi, json_schemas

if TYPE_CHECKING:
    from pathlib import Path

    from service.settings import KafkaSettings


def document(settings: KafkaSettings) -> str:
    """The AsyncAPI document as JSON."""
    return json.dumps(asyncapi(settings, __version__), indent=2)


def write_schemas(folder: Path) -> None:
    """Write one JSON Schema a file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, schema in json_schemas().items():
        (folder / f"{name}.schema.json").write_text(json.dumps(schema, indent=2) + "\n")
