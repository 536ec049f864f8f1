"""`convoy config --json-schema`: every setting, its type, bounds, default and unit, as a JSON Schema.

Nested as the settings are: an object of groups, each an object of settings. What a checker of values for a
deployment needs beside the standard words stands under names of its own: ``x-variable`` (the name in the
environment), ``x-unit`` (where the name ends in one) and ``x-secret``.
"""

from __future__ import annotations

import json
from typing import Any, get_args

from pydantic import SecretStr

from service.settings import Settings, groups, variable

DIALECT = "https://json-schema.org/draft/2020-12/schema"
UNITS = {"per_second": "1/s", "seconds": "s", "bytes": "B"}
"""By the end of a setting's name."""


def settings_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of all settings."""
    properties = {}
    for group, model in groups().items():
        schema = model.model_json_schema()
        schema.pop("title")
        for name, setting in schema["properties"].items():
            schema["properties"][name] = _setting(group, name, setting)
            if "default" not in setting:
                field = model.model_fields[name]
                schema["properties"][name]["default"] = field.get_default(call_default_factory=True, validated_data={})
        properties[group] = schema
    return {
        "$schema": DIALECT,
        "title": "Settings of Convoy",
        "description": (Settings.__doc__ or "").strip(),
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }


def document() -> str:
    """The schema as text."""
    return json.dumps(settings_schema(), indent=2, ensure_ascii=False)


def secrets() -> frozenset[tuple[str, str]]:
    """Group and name of each setting that must not be shown."""
    return frozenset(
        (group, name)
        for group, model in groups().items()
        for name, field in model.model_fields.items()
        if SecretStr in {field.annotation, *get_args(field.annotation)}
    )


def _setting(group: str, name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """One setting, in few words: what may be null is a list of types instead of a choice of schemas."""
    written = {key: value for key, value in schema.items() if key not in {"title", "anyOf"}}
    for choice in schema.get("anyOf", []):
        if choice["type"] != "null":
            written |= choice | {"type": [choice["type"], "null"]}
    written["x-variable"] = variable(group, name)
    for end, unit in UNITS.items():
        if name.endswith(end):
            written["x-unit"] = unit
            break
    if (group, name) in secrets():
        written |= {"writeOnly": True, "x-secret": True}
    return written
