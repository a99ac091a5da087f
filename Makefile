# Every command of the project; `make` alone lists them. The environment is made when it is needed.
#
#   make train ARGS="model=small moe=switch"     overrides, as `python -m llm.train` takes them
#   make env PIP_ARGS="--extra-index-url URL"    another package index, e.g. one with CPU builds
#   make env PYTHON3=python3.12                  another Python (3.11 or newer)

PYTHON3 ?= python3
PIP_ARGS ?=
ARGS ?=
# For the benchmarks against nanoGPT: a clone of it (git clone https://github.com/karpathy/nanoGPT),
# of which nothing is copied, and its text of Shakespeare's.
NANOGPT ?= nanoGPT
TEXT ?= $(NANOGPT)/data/shakespeare_char/input.txt
# Where benchmarks write their figures, a .json each.
BENCH := outputs/bench
# Processes of `make test`: a number, or "auto" for one a core (eight at most, since each imports
# torch). A process computes with one thread (tests/conftest.py).
JOBS ?= auto

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.made
# Messages go to standard error: the last line on standard output belongs to the command.
SAY := @echo >&2

.DEFAULT_GOAL := help
.PHONY: help env train prepare data test test-all chat sweep plan report runs bench bench-moe bench-data
.PHONY: bench-steps bench-nanogpt bench-race bench-head parity sizes lint format clean distclean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(STAMP) ## Make the environment in .venv (again when dependencies change)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $(PYTHON3) is missing or older than 3.11; install Python 3.11 or newer, or name one: make env PYTHON3=python3.12" >&2; exit 1; }
	@$(PYTHON3) -m venv $(VENV) >/dev/null 2>&1 || { \
	  echo "make: $(PYTHON3) -m venv failed; on Debian or Ubuntu install it first: apt install python3-venv" >&2; exit 1; }
	$(SAY) "Installing the pinned dependencies into $(VENV): two to four minutes on two cores, with nothing printed."
	@$(PYTHON) -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt torch >&2
	@$(PYTHON) -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[dev]" >&2
	@touch $(STAMP)

train: env ## Train a model; its last line is the run's directory
	@$(PYTHON) -m llm.train $(ARGS)

prepare: env ## Prepare a corpus without training: make prepare ARGS="data=tinystories"
	@$(PYTHON) -m llm.prepare $(ARGS)

data: env ## List what is prepared
	@$(PYTHON) -m llm.data $(or $(ARGS),ls)

chat: env ## Talk to the newest finished run
	@$(PYTHON) -m llm.chat $(ARGS)

sweep: ARGS = model=tiny moe=dense,switch,topk
sweep: env ## Train several configurations, as many at a time as fit; again: go on
	@$(PYTHON) -m llm.train -m $(ARGS)

plan: ARGS = model=tiny moe=dense,switch,topk
plan: env ## Show what a sweep would train and cost
	@$(PYTHON) -m llm.plan $(ARGS)

report: ARGS = $(shell ls -td outputs/sweeps/*/ 2>/dev/null | head -1)
report: env ## Write the report of the newest sweep (or of ARGS=FOLDER)
	@$(PYTHON) -m llm.report $(ARGS)

runs: env ## List the runs
	@$(PYTHON) -m llm.runs $(ARGS)

sizes: env ## Print parameters and FLOPs of every model
	@$(PYTHON) -m llm.sizes $(ARGS)

test: env ## Run the fast tests
	@$(PYTHON) -m pytest -n $(JOBS) --maxprocesses 8 -m "not slow" $(ARGS)

test-all: env ## Run every test, the slow ones too
	@$(PYTHON) -m pytest -n $(JOBS) --maxprocesses 8 $(ARGS)

bench: env ## Measure all speeds into outputs/bench/*.json (NANOGPT=folder; ARGS="--rounds 3" for all)
	@$(MAKE) --no-print-directory bench-steps
	@$(MAKE) --no-print-directory bench-head
	@$(MAKE) --no-print-directory bench-moe
	@if [ -f "$(NANOGPT)/model.py" ]; then \
	  $(MAKE) --no-print-directory bench-nanogpt && \
	  if [ -f "$(TEXT)" ]; then $(MAKE) --no-print-directory bench-race; else \
	    echo "no race: $(TEXT) is missing; run $(NANOGPT)/data/shakespeare_char/prepare.py, or say TEXT=file"; fi; \
	else echo "not against nanoGPT: git clone https://github.com/karpathy/nanoGPT, or say NANOGPT=folder"; fi

bench-steps: env ## Time a training step of the default models, dense and with experts
	@$(PYTHON) experiments/speed/bench.py --json $(BENCH)/steps.json $(ARGS)

parity: env ## Compare six architectures with transformers, number for number
	$(PYTHON) -m pytest -q tests/hf/test_parity.py

bench-moe: env ## Measure what experts cost
	@$(PYTHON) experiments/speed/moe.py --json $(BENCH)/moe.json $(ARGS)

bench-data: env ## Measure preparing and loading text (ARGS=--quick for a minute's worth)
	@$(PYTHON) experiments/speed/data.py $(ARGS)

bench-nanogpt: env ## Time a step against nanoGPT's (NANOGPT=folder; ARGS="--losses 300 --text FILE" compares losses)
	@$(PYTHON) experiments/speed/nanogpt.py --nanogpt $(NANOGPT) --json $(BENCH)/nanogpt.json $(ARGS)

bench-race: env ## Race nanoGPT to a validation loss of 1.88 on Shakespeare (NANOGPT=folder TEXT=file)
	@$(PYTHON) experiments/speed/race.py --nanogpt $(NANOGPT) --text $(TEXT) --json $(BENCH)/race.json $(ARGS)

bench-head: env ## Measure the output head with its cross-entropy: time and memory
	@$(PYTHON) experiments/speed/head.py --json $(BENCH)/head.json $(ARGS)

lint: env ## Check style and types
	@$(PYTHON) -m ruff check
	@$(PYTHON) -m ruff format --check
	@$(PYTHON) -m mypy

format: env ## Mend style where a tool can
	@$(PYTHON) -m ruff check --fix
	@$(PYTHON) -m ruff format

clean: ## Remove caches and build products (never outputs/)
	@rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -path ./$(VENV) -prune -o -path ./outputs -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

distclean: clean ## Remove the environment as well
	@rm -rf $(VENV)
