"""Writes what the chart takes from elsewhere, so that each thing is said in one place: `make chart`.

`helm/values.schema.json` is the chart's own `deploy/chart-values.schema.json` with Convoy's settings as `config`;
`helm/files/` are the alerts, the dashboard and the names of those settings that are secrets; `helm/README.md` is what
helm-docs makes of `helm/values.yaml`, where helm-docs is to be had. With `--check` nothing is written: exit code 1
names what is not as it would be written.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from service.commands.settings_schema import secrets, settings_schema

DEPLOY = Path(__file__).parent
CHART = DEPLOY.parent / "helm"
COPIES = {
    CHART / "files" / "alerts.yaml": DEPLOY / "prometheus" / "alerts.yaml",
    CHART / "files" / "convoy.json": DEPLOY / "grafana" / "convoy.json",
}
README = CHART / "README.md"
SAID_BY_A_TEMPLATE = {("kafka", "bootstrap_servers"): ("minLength", "default")}
"""What the chart refuses in words of its own, which say more than the schema's."""
UNPRIVILEGED_PORT = 1024
"""Below, a user without capabilities cannot listen."""


def values_schema() -> dict[str, Any]:
    """The schema of the chart's values."""
    schema: dict[str, Any] = json.loads((DEPLOY / "chart-values.schema.json").read_text())
    settings = settings_schema()
    groups = {group: _group(group, members) for group, members in settings["properties"].items()}
    groups["ops"]["properties"]["port"]["minimum"] = UNPRIVILEGED_PORT
    schema["properties"]["config"] = {
        "description": "GROUP.NAME becomes CONVOY_GROUP__NAME; null leaves Convoy's own default",
        "type": "object",
        "additionalProperties": False,
        "properties": groups,
    }
    return schema


def _group(group: str, members: dict[str, Any]) -> dict[str, Any]:
    return {
        "description": members["description"],
        "type": ["object", "null"],
        "additionalProperties": False,
        "properties": {name: _setting(group, name, setting) for name, setting in members["properties"].items()},
    }


def _setting(group: str, name: str, setting: dict[str, Any]) -> dict[str, Any]:
    if (group, name) in secrets():
        return {"description": f"{setting['description']} A secret: not here, where everybody could read it."}
    left_out = SAID_BY_A_TEMPLATE.get((group, name), ())
    written = {key: value for key, value in setting.items() if not key.startswith("x-") and key not in left_out}
    types = written["type"] if isinstance(written["type"], list) else [written["type"]]
    written["type"] = [*types, *({"null"} - set(types))]
    if "enum" in written:
        written["enum"] = [*written["enum"], None]
    return written


def generated() -> dict[Path, str]:
    """What is made from other files of this repository alone: path and text."""
    texts = {CHART / "values.schema.json": json.dumps(values_schema(), indent=2, ensure_ascii=False) + "\n"}
    texts[CHART / "files" / "secrets.yaml"] = "".join(f"- {group}.{name}\n" for group, name in sorted(secrets()))
    return texts | {copy: source.read_text() for copy, source in COPIES.items()}


def readme(helm_docs: str) -> str:
    """The chart's README."""
    command = [helm_docs, "--chart-search-root", str(CHART), "--sort-values-order", "file", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - the tool named above
    return done.stdout.strip() + "\n"


def main() -> int:
    """Write, or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, say what differs")
    check = parser.parse_args().check
    texts = generated()
    helm_docs = shutil.which("helm-docs")
    if helm_docs is not None:
        texts[README] = readme(helm_docs)
    else:
        sys.stderr.write(f"no helm-docs on PATH: {README.name} is left as it is (.ci/install-deploy-tools has it)\n")
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        name = path.relative_to(CHART.parent)
        if check:
            sys.stderr.write(f"{name} is not what `make chart` writes\n")
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(texts[path])
            sys.stdout.write(f"{name}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
