# `make help` lists the targets. Everything is installed into .venv, nothing outside this folder.

PYTHON ?= python3
ARGS ?=
# Tests spend much of their time waiting: four at a time keep two processors busy.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); echo $$((n < 2 ? 2 : 4)))

# Let Python cache compiled modules, so that commands start faster; `make clean` removes the caches.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Python compiles what is imported; compiling everything took as long as the rest of the installation.
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --quiet --no-compile

.DEFAULT_GOAL := help
.PHONY: help install run demo test check fmt bench upgrade clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## Set up .venv with everything, including `.venv/bin/squad`

run: $(STAMP) ## Start the service on 127.0.0.1:3001 with its embedded Postgres; options in ARGS="..."
	@exec $(BIN)/squad up $(ARGS)

demo: $(STAMP) ## Watch e-mails arrive and get classified and drafted; options in ARGS="..."
	@exec $(BIN)/python -m examples.demo $(ARGS)

test: $(STAMP) ## Run all the tests, on several cores; pytest options in ARGS="..."
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal $(ARGS)

check: $(STAMP) ## Check format, lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(STAMP) ## Format the code, and apply ruff's safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## Run the benchmarks
	$(BIN)/python -m benchmarks $(ARGS)

upgrade: ## Install the newest versions of everything and pin them in constraints.txt
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP_INSTALL) --editable '.[dev]'
	{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable; } > constraints.new
	mv constraints.new constraints.txt
	touch $(STAMP)

clean: ## Remove .venv and all caches; keep data folders
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Checked only when .venv is created: an existing one keeps its Python.
define CHECK_PYTHON
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo "squad needs Python 3.11 or later, and '$(PYTHON)' is" \
		"$$($(PYTHON) --version 2>/dev/null || echo 'not there'):" \
		"choose another one with PYTHON=, for example make $(or $(MAKECMDGOALS),install) PYTHON=python3.12" >&2; \
	exit 1; }
endef

$(STAMP): pyproject.toml constraints.txt
	@$(CHECK_PYTHON)
	@echo "Installing into $(VENV), which takes about a minute ..."
	@$(PYTHON) -m venv $(VENV)
	@# The pip that comes with Python 3.11 takes almost twice as long as the newest, but will do.
	@$(PIP_INSTALL) --upgrade pip || true
	@$(PIP_INSTALL) --constraint constraints.txt --editable '.[dev]'
	@touch $@
