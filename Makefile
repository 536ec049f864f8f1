# One folder, two commands: `make demo` shows it, `make test` proves it. Everything they need is made here, from the lock file.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help env demo test unit check lint types format lock mutants bench docs soak faults-table clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

env: $(READY) ## the virtual environment, from the lock file (with uv where present)

$(READY): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Convoy needs Python 3.11 or newer; name one: make PYTHON=python3.12 …" >&2; exit 2; }
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv -q --clear --python "$(PYTHON)" $(VENV) && \
	  uv pip install -q --python $(BIN)/python --require-hashes -r requirements-dev.lock && \
	  uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .; \
	else \
	  $(PYTHON) -m venv --clear $(VENV) && \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock && \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	fi
	@touch $@

demo: env ## the whole service on this machine: embedded broker, emulated API, live view, audit
	$(BIN)/convoy demo $(ARGS)

test: env ## every test, the real Kafka included
	$(BIN)/python -m pytest $(ARGS)

unit: env ## the fast tests of the pure parts
	$(BIN)/python -m pytest tests/unit $(ARGS)

mutants: env ## break the core and the ledger by hand, one rule at a time: each mutant must be caught
	$(BIN)/python tests/mutants.py
	$(BIN)/python tests/model/mutants.py

lint: env ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env ## mypy, strict
	$(BIN)/mypy

format: env ## put the formatting right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint types test ## what must be green before a commit lands

soak: env ## the long forms: outages of minutes, 40,000 schedules of the ledger's model, 100,000 broken records
	CONVOY_SOAK=1 $(BIN)/python -m pytest tests/model tests/integration/test_fuzz.py tests/fault $(ARGS)

faults-table: env ## run the faults and make docs/faults.md of their figures (CONVOY_SOAK=1: of the long forms)
	$(BIN)/python tests/fault_run.py --table

bench: env ## measure everything beside a floor and a plain program, in one run (half an hour; ARGS="--only dense")
	$(BIN)/python bench/run.py --json bench/figures.json $(ARGS)
	$(BIN)/python bench/plot.py bench/figures.json bench/figures.png

docs: env ## write the pages that are made from the code
	$(BIN)/convoy config --reference > docs/configuration.md
	$(BIN)/convoy asyncapi --schemas docs/schemas
	$(BIN)/convoy config --json-schema > docs/configuration.schema.json
	$(BIN)/python -m service.commands.metrics_page > docs/metrics.md

lock: ## compile the lock files anew (needs uv)
	uv pip compile pyproject.toml --universal --generate-hashes --python-version 3.11 -q -o requirements.lock
	uv pip compile pyproject.toml --universal --generate-hashes --python-version 3.11 --extra demo --group dev -q -c requirements.lock -o requirements-dev.lock

clean: ## remove what was made here
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache dist build
