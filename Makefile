# Needs Python 3.11 or newer with pip, and make. Everything is installed into .venv; nothing else is touched.
# Tests of the report's page also need a Chromium (Debian, Ubuntu: apt install chromium); without one they are skipped.

PYTHON ?= $(shell command -v python3 || command -v python || echo python3)
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo check test test-all bench format vendor clean

help:
	@echo "make demo      set up .venv (light) and run 'narrowgauge demo'"
	@echo "make test      add the test tools to .venv; check style, types and layers; run the tests"
	@echo "make test-all  the same, and the slow tests"
	@echo "make check     style, types and layers only"
	@echo "make format    let ruff repair style and layout"
	@echo "make bench     run the scripts of benchmarks/"
	@echo "make vendor    fetch the chart library of the report again (tools/vendor.py says which version)"
	@echo "make setup     set up .venv for both demo and test, and run nothing"
	@echo "make clean     remove .venv and what the tools left behind"
	@echo "Another interpreter: make PYTHON=python3.13 ...    More test processes: make WORKERS=8 test"

setup: $(VENV)/.test

demo: $(VENV)/.demo
	$(BIN)/narrowgauge demo

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(BIN)/pytest -n $(WORKERS)

test-all: check
	$(BIN)/pytest -n $(WORKERS) -m ""

bench: $(VENV)/.test
	@for script in benchmarks/[!_]*.py; do \
		if [ ! -e "$$script" ]; then echo "There is nothing in benchmarks/ to run."; break; fi; \
		echo "== $$script"; $(BIN)/python "$$script" || exit 1; \
	done

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

vendor:
	$(PYTHON) tools/vendor.py

clean:
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps .created, .demo and .test say what .venv holds; a change of pyproject.toml installs again.

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "narrowgauge needs Python 3.11 or newer, and '$(PYTHON)' is not: name one with  make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip --version >/dev/null || { \
		echo "'$(PYTHON) -m venv' made no environment with pip: install its venv and pip (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@touch $@

$(VENV)/.demo: pyproject.toml | $(VENV)/.created
	@echo "Installing narrowgauge and what its demo needs into $(VENV) ..."
	@$(INSTALL) --editable ".[demo]"
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/.created
	@echo "Installing narrowgauge and its test tools into $(VENV) ..."
	@$(INSTALL) --editable ".[test]"
	@touch $(VENV)/.demo $@
