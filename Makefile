# Every target sets up what it needs; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DATA := $(VENV)/.data
# Where it is set, each process compiles all of attnlab anew, and each of the tests' processes all tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo gallery test check docs parity speed clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## */  make \1	/' | expand -t 16

setup: $(INSTALLED) $(DATA)  ## virtual environment, pinned packages, data; skipped when nothing changed

$(INSTALLED): pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "attnlab needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make $(MAKECMDGOALS) PYTHON=python3.12")'
	@echo "setting up $(VENV) (once, a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[dev]'
	@touch $@

$(DATA): $(INSTALLED) conf/data/kjv.yaml
	@$(BIN)/attnlab data prepare kjv
	@touch $@

demo: setup  ## the first study: train six position encodings, compare them, write the page
	@$(BIN)/attnlab sweep position_length

gallery: setup  ## every study that reproduces a published effect, and its page in docs/gallery; hours, and goes on where it was
	@$(BIN)/attnlab gallery --all --to docs/gallery

test: $(INSTALLED)  ## every test, slow ones too
	@$(BIN)/python -m pytest -n auto --dist worksteal

check: $(INSTALLED)  ## format, lint, types, fast tests
	@$(BIN)/ruff format --check src tests experiments
	@$(BIN)/ruff check src tests experiments
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

docs: $(INSTALLED)  ## the documentation, in dist/site; a broken link or a public name without docstring fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "dist/site/index.html"

parity: $(INSTALLED)  ## differences to Hugging Face transformers, of every architecture and of published weights
	@$(BIN)/python experiments/parity/measure.py
	@$(BIN)/python experiments/parity/published.py

speed: $(INSTALLED)  ## training steps, memory, decoding and start-up beside those of other libraries, in turn
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[peers]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt --no-deps vit-pytorch
	@$(BIN)/python experiments/speed/measure.py

clean:  ## remove the virtual environment and caches (never runs/)
	@rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
