"""The documents are true as far as they can be without a broker: links, anchors, blocks, commands, settings."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import typer.main
import yaml
from documents import NOT_RUN, ROOT, all_documents, anchors, blocks, links, name_of

from service.cli import cli
from service.commands.reference import reference

DOCS = ROOT / "docs"
DOCUMENTS = all_documents()
NOT_RUN_AT_MOST = 16
"""So many blocks of commands no test runs, each with its reason; one more needs a better one."""

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)


@every_document
def test_a_link_leads_somewhere(document: Path) -> None:
    for link in links(document):
        address = urlsplit(link)
        if address.scheme:
            assert address.scheme == "https", link
            assert address.netloc, link
            continue
        target = (document.parent / unquote(address.path)).resolve() if address.path else document
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        if address.fragment:
            assert unquote(address.fragment) in anchors(target), link


def test_every_page_is_in_the_index() -> None:
    listed = {(DOCS / urlsplit(link).path).resolve() for link in links(DOCS / "README.md")}
    pages = {page for page in DOCUMENTS if page.is_relative_to(DOCS)} - {DOCS / "README.md"}
    assert pages <= listed, sorted(map(name_of, pages - listed))
    assert (DOCS / "README.md").relative_to(ROOT).as_posix() in links(ROOT / "README.md")


@every_document
def test_a_block_is_what_it_says_it_is(document: Path) -> None:
    for block in blocks(document):
        where = f"{name_of(document)}:{block.line}"
        if block.language == "json":
            json.loads(block.text)
        elif block.language in {"yaml", "yml"}:
            list(yaml.safe_load_all(block.text))
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "python":
            compile(block.text, where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        elif block.is_script:
            done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{where}: {done.stderr}"


def test_a_block_that_no_test_runs_says_why_and_there_are_few() -> None:
    skipped = [
        (f"{name_of(document)}:{block.line}", block.why_not)
        for document in DOCUMENTS
        for block in blocks(document)
        if block.is_script and not block.is_run
    ]
    for where, info in skipped:
        assert re.fullmatch(rf"{NOT_RUN} \S.+", info), f"{where}: {info}"
    assert len(skipped) <= NOT_RUN_AT_MOST, skipped


def commands(document: Path) -> list[list[str]]:
    """What is called in its blocks of commands, run or not, line by line: words, without comments and quotes."""
    found = []
    for block in blocks(document):
        if block.is_script:
            text = block.text.replace("\\\n", " ")
            for line in text.splitlines():
                for called in re.split(r"&&|\|\||;|\||\$\(", re.sub(r"(?:^|\s)#.*", "", line)):
                    words = [word.strip("'\"()") for word in called.split()]
                    while words and (re.match(r"[A-Z_]+=", words[0]) or words[0] in {"sudo", "exec", "!"}):
                        words = words[1:]
                    if words:
                        found.append(words)
    return found


@every_document
def test_a_make_target_that_is_named_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = [words[1:] for words in commands(document) if words[0] == "make"]
    # In running text too: `make docs`.
    named += [call.split()[1:] for call in re.findall(r"`(make [^`]+)`", document.read_text())]
    for words in named:
        wanted = [word for word in words if "=" not in word and re.fullmatch(r"[a-z-]+", word) and word != "-s"]
        assert set(wanted) <= targets, words


@every_document
def test_a_command_and_its_options_exist(document: Path) -> None:
    named = [words[1:] for words in commands(document) if words[0] == "convoy"]
    named += [call.split()[1:] for call in re.findall(r"`(convoy [a-z][^`…]*)`", document.read_text())]
    for words in named:
        command: Any = typer.main.get_command(cli)
        for word in words:
            if not hasattr(command, "commands") or word.startswith("-"):
                break
            assert word in command.commands, f"convoy {' '.join(words)}"
            command = command.commands[word]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for option in (word.split("=")[0] for word in words if re.match(r"--[a-z]", word)):
            assert option in known | {"--help"}, f"convoy … {option}"


@every_document
def test_a_setting_that_is_named_exists(document: Path) -> None:
    known = set(re.findall(r"CONVOY_[A-Z_]+", reference()))
    testing = set(re.findall(r"CONVOY_[A-Z_]+", "".join(path.read_text() for path in _sources_of_tests())))
    named = set(re.findall(r"CONVOY_[A-Z_]*[A-Z]", document.read_text())) - {"CONVOY_GROUP__NAME"}
    assert named <= known | testing, sorted(named - known - testing)


def _sources_of_tests() -> list[Path]:
    """What may know variables that are no settings of the service."""
    return [
        *(path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)),
        *(path for path in (ROOT / ".ci").iterdir() if path.is_file()),
        *(ROOT / "deploy").glob("*.sh"),
        ROOT / "Makefile",
    ]


def test_every_target_of_the_makefile_says_what_it_is_for() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = set(" ".join(re.findall(r"^\.PHONY: (.*)", text, flags=re.MULTILINE)).split())
    told = set(re.findall(r"^([a-z-]+):.*## \S", text, flags=re.MULTILINE))
    assert phony == told
    shown = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[1] for line in shown.splitlines()} == told


def test_the_hooks_are_such_as_pre_commit_reads_and_call_what_is_there() -> None:
    config = ROOT / ".pre-commit-config.yaml"
    subprocess.run([str(Path(sys.executable).with_name("pre-commit")), "validate-config", str(config)], check=True)
    for hook in yaml.safe_load(config.read_text())["repos"][0]["hooks"]:
        program, *arguments = hook["entry"].split()
        assert program.startswith(".venv/bin/")
        for path in (word for word in arguments if word.startswith("tests/")):
            assert (ROOT / path).exists(), path
