# `make quickstart` and `make test` install all they need into .venv and then run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EVOMERGE := $(BIN)/evomerge
OUT ?= quickstart

export HF_HUB_OFFLINE ?= 1
export HF_DATASETS_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
# The programs that tests start would compile the whole package anew, each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test test-slow test-all lint docs mutants install lock dist clean

install: $(STAMP)

# The lock's versions need Python 3.11; on 3.10 the ranges of pyproject.toml decide.
LOCK := $(shell $(PYTHON) -c "import sys; print('-c requirements.lock' if sys.version_info >= (3, 11) else '')")
$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(LOCK) -e '.[dev]'
	touch $@

# Continues where an earlier one was stopped; `make clean` removes it.
quickstart: $(STAMP)
	$(EVOMERGE) demo $(OUT)

# The wheel and the sdist in dist/, checked; the release checklist is in CONTRIBUTING.md.
dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

# The tests of one file share a process, so that what they set up together is made once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

# All but what takes minutes.
test: $(STAMP)
	$(PYTEST) -m "not slow"

# What takes minutes, and the property tests again with ten times the examples.
test-slow: $(STAMP)
	$(PYTEST) -m "slow or hypothesis" --hypothesis-profile=thorough

# Everything, once.
test-all: $(STAMP)
	$(PYTEST) --hypothesis-profile=thorough

# Changes lines of the core one at a time and runs the tests on each: an hour or more, not in CI.
mutants: $(STAMP)
	$(BIN)/pip install -q cosmic-ray coverage
	$(BIN)/python -m experiments.mutants --go-on

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as a site, in site/; fetches nothing.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lock: $(STAMP)
	$(BIN)/pip freeze --exclude-editable | sed '1i # Exact versions for development and CI; made by `make lock`.' | sed 's/+cpu$$//' > requirements.lock

clean:
	rm -rf $(VENV) $(OUT) dist
