"""The house keeps its shape: imports point one way, and each library is known in one place."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

SERVICE = Path(__file__).parents[2] / "service"

# A part may import itself, what stands here, and nothing else of the service.
MAY_IMPORT = {
    "core": set(),
    "settings": set(),
    "audit": set(),
    "schemas": {"settings"},
    "ops": {"core", "settings"},
    "kafka": {"core", "ops", "settings"},
    "conversations": {"core", "ops", "settings"},
    "emulator": {"ops"},
    "evidence": {"audit", "core", "kafka", "settings"},
    "pump": {"core", "kafka", "conversations", "ops", "settings"},
    "app": {"core", "kafka", "conversations", "ops", "schemas", "settings", "pump"},
    "commands": {
        "app",
        "audit",
        "conversations",
        "core",
        "emulator",
        "evidence",
        "kafka",
        "ops",
        "schemas",
        "settings",
    },
    "cli": {"commands", "settings"},
    "__main__": {"cli"},
}

KNOWN_ONLY_IN = {
    "faststream": {"kafka", "app"},
    "aiokafka": {"kafka"},
    "httpx": {"conversations", "commands"},
    "aiohttp": {"conversations"},
    "confluent_kafka": {"commands"},
    "typer": {"cli"},
    "rich": {"commands"},
    "opentelemetry": {"ops"},
    "uvicorn": {"ops", "emulator"},
    "jinja2": {"emulator"},
    "pytest": {"emulator"},
    "prometheus_client": {"ops", "commands"},
    "pydantic_settings": {"settings"},
}

FILES = sorted(SERVICE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(SERVICE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Every module named in an import statement, those for the type checker alone left out."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(node)
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and isinstance(guard.test, ast.Name) and guard.test.id == "TYPE_CHECKING"
        for node in ast.walk(guard)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SERVICE)))
def test_a_part_imports_only_what_stands_below_it(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return
    for module in imports(path):
        head, _, rest = module.partition(".")
        if head == "service" and rest:
            other = rest.split(".")[0]
            assert other == part or other in MAY_IMPORT[part], f"{part} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SERVICE)))
def test_a_library_is_known_in_one_place(path: Path) -> None:
    part = part_of(path)
    for module in imports(path):
        head = module.split(".")[0]
        assert part in KNOWN_ONLY_IN.get(head, {part}), f"{part} imports {module}"


@pytest.mark.parametrize(
    "path", [path for path in FILES if part_of(path) in {"core", "audit"}], ids=lambda path: path.name
)
def test_the_core_needs_the_standard_library_alone(path: Path) -> None:
    for module in imports(path):
        head = module.split(".")[0]
        assert head in {"service", *sys.stdlib_module_names}
        assert head not in {"asyncio", "logging", "threading", "time", "random", "socket"}, f"{path.name}: {module}"
