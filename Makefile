# Two commands matter: `make demo` and `make test`. Both set the environment up first (once; silent after that).

SETUP_PYTHON ?= python3
VENV := .venv/bin
ARGS ?=

.PHONY: help setup demo test lint bench clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 16

setup:
	@command -v $(SETUP_PYTHON) >/dev/null || { echo "setup: There is no python3 here; install Python 3.11, 3.12 or 3.13." >&2; exit 1; }
	@$(SETUP_PYTHON) .ci/setup.py

demo: setup ## a mesh on this machine; its host is killed in mid-sentence, and the sentence goes on
	@$(VENV)/meshnode demo failover $(ARGS)

test: setup ## all tests (ARGS="-k wire" for some)
	@$(VENV)/python -m pytest $(ARGS)

lint: setup ## format, lint, types and layers
	@$(VENV)/ruff format --check .
	@$(VENV)/ruff check .
	@$(VENV)/mypy
	@$(VENV)/lint-imports

bench: setup ## every bench beside its targets (ARGS=--quick within minutes)
	@$(VENV)/python -m bench --targets $(ARGS)

clean: ## remove the environment and every cache
	rm -rf .venv .bench .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
