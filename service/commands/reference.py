"""`convoy config --reference`: every setting as a table in Markdown; `docs/configuration.md` is made of it."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import SecretStr

from service.settings import DELIMITER, groups, variable

INTRODUCTION = """\
# Configuration

Settings are environment variables: `CONVOY_`, the group, two underscores, the name. A `.env` file in the working
directory is read too, and so are mounted secrets: files named like variables in the folder that `CONVOY_SECRETS_DIR`
names. The environment goes before `.env`, and that before the folder. Names in any case; where a setting may have no
value, an empty one is none. A variable with the prefix that is no setting ends the start with one line that says so
and suggests the nearest name; so does a value out of its bounds, or two that contradict.
`convoy config` shows the settings in effect, secrets masked; `convoy check` looks whether they work.

This page is made by `convoy config --reference`, and [configuration.schema.json](configuration.schema.json) by
`convoy config --json-schema`.
"""

RULES = """\
## Rules between settings

- `API__CONNECT_TIMEOUT_SECONDS` ≤ `API__TOTAL_TIMEOUT_SECONDS` < `SHUTDOWN__DRAIN_SECONDS` <
  `KAFKA__REBALANCE_TIMEOUT_SECONDS`: an attempt in flight must be able to end within a drain, and a drain before
  the group gives up on the member.
- `KAFKA__HEARTBEAT_SECONDS` ≤ a third of `KAFKA__SESSION_TIMEOUT_SECONDS`.
- `DELIVERY__BACKOFF_INITIAL_SECONDS` ≤ `DELIVERY__BACKOFF_MAX_SECONDS`.
- `LIMITS__MAX_BUFFERED_EVENTS` ≤ `LIMITS__MAX_UNCOMMITTED_EVENTS`.
- The topics differ. `SASL_*` protocols need user and password, or with `OAUTHBEARER` a token file or a token endpoint
  with client id and secret; other protocols take none of these. A client certificate needs its key, and TLS files need
  `SSL` or `SASL_SSL`. Files of certificates, keys and secrets are opened at the start.
- `API__KEY` and `API__KEY_FILE` exclude each other. For hosts of `aliyuncs.com`, and for no other, `DASHSCOPE_API_KEY`
  serves where neither is set: the key of one vendor must not reach another. A key in a file that changes is
  used from the next request on.
- Nothing switches the checking of certificates off. What is allowed and not safe is told by `convoy check`; see
  [security.md](security.md).
"""


def reference() -> str:
    """Write the reference."""
    parts = [INTRODUCTION]
    for group, model in groups().items():
        parts.append(f"## {group.upper()}{DELIMITER}: {(model.__doc__ or '').strip().rstrip('.').lower()}\n")
        rows = ["| variable | default | bounds | what it does |", "|---|---|---|---|"]
        for name, setting in model.model_fields.items():
            rows.append(
                f"| `{variable(group, name)}`"
                f" | {_default(setting.get_default(call_default_factory=True, validated_data={}))}"
                f" | {_bounds(setting.annotation, setting.metadata)} | {setting.description} |"
            )
        parts.append("\n".join(rows) + "\n")
    parts.append(RULES)
    return "\n".join(parts)


def _default(value: Any) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value in ("", {}):
        return "—"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        value = f"{value:g}"
    return f"`{value}`"


def _bounds(annotation: Any, metadata: list[Any]) -> str:
    if get_origin(annotation) is Literal:
        return " · ".join(f"`{choice}`" for choice in get_args(annotation))
    bounds = []
    for rule in metadata:
        if isinstance(rule, Ge):
            bounds.append(f"≥ {rule.ge:,}")
        elif isinstance(rule, Gt):
            bounds.append(f"> {rule.gt:,}")
        elif isinstance(rule, Le):
            bounds.append(f"≤ {rule.le:,}")
        elif isinstance(rule, Lt):
            bounds.append(f"< {rule.lt:,}")
        elif isinstance(rule, MinLen):
            bounds.append("not empty")
    return ", ".join(bounds)
