"""The documents as a reader's renderer sees them: headings, links, and fenced blocks with what their info string says.

A block marked ``bash`` is run by a test, unless it calls what needs a cluster or a container engine; ``bash not-run:
why`` is for whatever else no test can have.
"""

from __future__ import annotations

import itertools
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
NOT_RUN = "not-run:"
NEEDS = {"helm": "a cluster", "kubectl": "a cluster", "docker": "a container engine", "podman": "a container engine"}
SHELLS = frozenset({"bash", "sh", "shell", "console"})

_PARSER = MarkdownIt("commonmark").enable("table")


def all_documents() -> list[Path]:
    """Every Markdown file that git knows or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", "*.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return sorted(path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file())


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, what else its info string says, its text, and where it begins."""

    language: str
    info: str
    text: str
    line: int

    @property
    def is_script(self) -> bool:
        return self.language in SHELLS

    @property
    def is_run(self) -> bool:
        return self.is_script and not self.why_not

    @property
    def why_not(self) -> str:
        """Why no test runs it; empty: one does."""
        called = re.search(rf"^\s*(?:{'|'.join(NEEDS)})\b", self.text, flags=re.MULTILINE)
        return self.info or (f"{NOT_RUN} needs {NEEDS[called[0].strip()]}" if called else "")


def blocks(document: Path) -> list[Block]:
    found = []
    for token in _PARSER.parse(document.read_text()):
        if token.type == "fence":
            language, _, info = token.info.strip().partition(" ")
            assert token.map is not None
            found.append(Block(language, info.strip(), token.content, token.map[0] + 1))
    return found


def _inlines(document: Path) -> Iterator[tuple[Token, Token]]:
    """Each piece of running text, with the token before it."""
    tokens = _PARSER.parse(document.read_text())
    for before, token in itertools.pairwise(tokens):
        if token.type == "inline":
            yield before, token


def links(document: Path) -> list[str]:
    """Where links and pictures point."""
    return [
        str(child.attrs["href" if child.type == "link_open" else "src"])
        for _, token in _inlines(document)
        for child in token.children or ()
        if child.type in {"link_open", "image"}
    ]


def anchors(document: Path) -> set[str]:
    """What `#…` may name in it: the headings as GitHub writes them, and ids given by hand."""
    seen: Counter[str] = Counter()
    found: set[str] = set(re.findall(r"""<a (?:id|name)=["']([^"']+)""", document.read_text()))
    for before, token in _inlines(document):
        if before.type != "heading_open":
            continue
        text = "".join(child.content for child in token.children or () if child.type in {"text", "code_inline"})
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found
