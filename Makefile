# `make demo` plans an example, `make test` runs all tests, `make check` adds lint, types and layers.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo setup test check lint types layers docs

demo: .venv/installed
	$(BIN)/sonde plan examples/chat-8b.yaml

setup: .venv/installed-dev

check: lint types layers test

test: .venv/installed-dev
	$(BIN)/pytest -n 2

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev
	$(BIN)/mypy sonde

layers: .venv/installed-dev
	$(BIN)/lint-imports

docs: .venv/installed-dev
	$(BIN)/python -m sonde.cli.docs docs

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.exit('Sonde needs Python 3.11 or later' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch .venv/installed $@
