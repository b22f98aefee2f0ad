# make demo and make test are all that is needed; each sets up .venv by itself the first time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test test-slow test-gpu check clean

help:
	@echo "make demo       pre-train, benchmark, report: a few minutes, no download of data"
	@echo "make test       the test suite"
	@echo "make check      ruff and mypy"
	@echo "make test-slow  the tests that take minutes; make test-gpu: those that need a CUDA device"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "clipdg needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/clipdg demo

test: setup
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile
	@echo "The tests passed. What they check stands in tests/, which mirrors clipdg/; the slow ones: make test-slow."

test-slow: setup
	$(BIN)/python -m pytest -m slow

test-gpu: setup
	$(BIN)/python -m pytest -m gpu

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy experiments

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
