# One folder, two commands: `make demo` shows it, `make test` proves it. Everything they need is made here, from the lock file.
.DEFAULT_GOAL := help
SHELL := /bin/bash
# The newest that it is tested with, which the image has: what is tested and measured here is what ships.
PYTHON ?= $(shell for name in python3.13 "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.13.*/bin/python python3.12 python3.11; do \
  "$$name" -c 'import ensurepip, ssl, venv' 2>/dev/null && echo "$$name" && exit; done; echo python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
IMAGE ?= localhost/convoy:test

.PHONY: help env demo test unit check lint types format lock mutants bench bench-emulator bench-cost dashboard-picture image image-test docs chart screenshots soak faults-table clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

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

soak: env ## the long forms: outages of minutes, 40,000 schedules of the ledger's model, 1,000,000 broken records
	CONVOY_SOAK=1 $(BIN)/python -m pytest tests/model tests/unit/test_settings_fuzz.py tests/integration/test_fuzz.py tests/fault $(ARGS)

faults-table: env ## run the faults and make docs/faults.md of their figures (CONVOY_SOAK=1: of the long forms, an hour)
	$(BIN)/python tests/fault_run.py --table

bench: env ## measure everything beside a floor and a plain program, in one run (half an hour; ARGS="--only dense")
	$(BIN)/python bench/run.py --json bench/figures.json $(ARGS)
	$(BIN)/python bench/plot.py bench/figures.json docs/images/performance.png
	$(BIN)/python bench/page.py bench/figures.json docs/performance.md

bench-emulator: env ## measure the emulator, empty and with a million items
	$(BIN)/python bench/emulator.py $(ARGS)

screenshots: env ## make the pictures of the documentation (needs Chromium: .ci/install-browser)
	$(BIN)/python tests/screenshots.py

bench-cost: env ## what metrics, logs and traces cost on a dense backlog
	$(BIN)/python bench/cost.py $(ARGS)

dashboard-picture: env ## docs/dashboard.png, from a real run
	$(BIN)/python tests/dashboard_picture.py

image: ## build the image (Docker, else buildah)
	deploy/image-build.sh $(IMAGE)

image-test: env image ## build the image and run it as the chart does, against a real Kafka and the emulator
	CONVOY_TEST_IMAGE=$(IMAGE) $(BIN)/python -m pytest tests/deploy/test_image.py $(ARGS)

docs: env ## write the pages that are made from the code
	$(BIN)/convoy config --reference > docs/configuration.md
	$(BIN)/convoy asyncapi --schemas docs/schemas
	$(BIN)/convoy config --json-schema > docs/configuration.schema.json
	$(BIN)/python -m service.commands.metrics_page > docs/metrics.md

# What is shipped, and in which version.
RUNTIME := build/runtime
SUPPLY := build/supply
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' service/__init__.py)
# What may be shipped with an Apache-2.0 program, by the names that packages give their licences.
LICENSES := MIT;MIT License;BSD License;3-Clause BSD License;BSD-2-Clause;BSD-3-Clause;ISC License (ISCL);Apache Software License;Apache-2.0
LICENSES := $(LICENSES);Apache-2.0 AND MIT;Apache-2.0 AND BSD-2-Clause;Apache-2.0 OR BSD-2-Clause
LICENSES := $(LICENSES);Python Software Foundation License;PSF-2.0;Mozilla Public License 2.0 (MPL 2.0)

.PHONY: hooks dist sbom licenses audit version set-version release-notes

hooks: env ## have git look at what is committed (.pre-commit-config.yaml)
	$(BIN)/pre-commit install

dist: env ## the wheel and the source, in dist/
	rm -rf dist
	$(BIN)/python -m hatchling build

$(SUPPLY)/.ready: requirements-supply.lock
	@$(PYTHON) -m venv --clear $(SUPPLY)
	@$(SUPPLY)/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-supply.lock
	@touch $@

# What is installed where the service runs, and nothing else, pip neither.
$(RUNTIME)/.ready: requirements.lock $(SUPPLY)/.ready
	@$(PYTHON) -m venv --clear --without-pip $(RUNTIME)
	@$(SUPPLY)/bin/python -m pip --python $(RUNTIME)/bin/python install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

sbom: $(RUNTIME)/.ready ## the bill of materials (CycloneDX), in build/convoy.cdx.json
	@sed 's/^dynamic = .*/version = "$(VERSION)"/' pyproject.toml > build/pyproject.toml
	$(SUPPLY)/bin/cyclonedx-py environment $(RUNTIME)/bin/python --pyproject build/pyproject.toml \
	  --mc-type application --output-reproducible --validate --output-file build/convoy.cdx.json

licenses: $(RUNTIME)/.ready ## the licences of all that is shipped, in build/licenses.md; a new one fails
	$(SUPPLY)/bin/pip-licenses --python $(RUNTIME)/bin/python --from=mixed --with-urls --format=markdown \
	  --allow-only="$(LICENSES)" --output-file=build/licenses.md
	@cat build/licenses.md

audit: $(SUPPLY)/.ready ## known weaknesses of the locked versions (asks PyPI); one that cannot be looked up fails
	@for lock in requirements.lock requirements-dev.lock requirements-supply.lock; do \
	  $(SUPPLY)/bin/pip-audit --strict --require-hashes --disable-pip --progress-spinner off -r $$lock || exit 1; done

version: ## the version, of which service/__init__.py is the one source
	@echo $(VERSION)

set-version: ## make NEW=1.2.3 set-version: there, and in what has to repeat it (chart, compose)
	@[[ "$(NEW)" =~ ^[0-9]+\.[0-9]+\.[0-9]+$$ ]] || { echo "say which: make NEW=1.2.3 set-version" >&2; exit 2; }
	sed -i 's/^__version__ = .*/__version__ = "$(NEW)"/' service/__init__.py
	sed -i -e 's/^version: .*/version: $(NEW)/' -e 's/^appVersion: .*/appVersion: "$(NEW)"/' helm/Chart.yaml
	sed -i 's/image: convoy:.*/image: convoy:$(NEW)/' deploy/compose.yaml

release-notes: ## what the changelog says of this version
	@awk '/^## / { wanted = ($$2 == "$(VERSION)"); next } wanted' CHANGELOG.md

chart: env ## write what the chart takes from elsewhere: schema, alerts, dashboard, README (with helm-docs on PATH)
	$(BIN)/python deploy/chart.py

lock: ## compile the lock files anew (needs uv)
	uv pip compile pyproject.toml --universal --generate-hashes --python-version 3.11 --extra otel -q -o requirements.lock
	uv pip compile pyproject.toml --universal --generate-hashes --python-version 3.11 --extra demo --extra otel --group dev -q -c requirements.lock -o requirements-dev.lock
	uv pip compile --group supply --universal --generate-hashes --python-version 3.11 -q -o requirements-supply.lock

clean: ## remove what was made here
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache dist
