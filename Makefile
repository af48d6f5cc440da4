# Everything a developer or CI types. `make` alone lists it; each target sets up what it needs first.

# The first of these that is a Python 3.11 makes .venv/.  To name another: make PYTHON=/path/to/python3.11 setup
PYTHON ?= python3.11 python3
BIN := .venv/bin
# One test process a core; a file's tests stay together. One process for debugging: make test WORKERS=0
WORKERS ?= 2
FUZZ_SECONDS ?= 600
BENCH ?=
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# Tools keep what they remember in the checkout, never in the home directory.
export MYPY_CACHE_DIR := .cache/mypy
export RUFF_CACHE_DIR := .cache/ruff
export PYRIGHT_PYTHON_CACHE_DIR := $(CURDIR)/.cache/pyright
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
# pip asks rustc for its version, and rustup then makes a folder in the home directory.
export RUSTUP_HOME ?= $(CURDIR)/.cache/rustup
# setup leaves modules uncompiled; where a shell forbids to keep them compiled, every process would do it again, seven seconds long.
export PYTHONDONTWRITEBYTECODE :=
# A run in a terminal and one in CI with no terminal do the same.
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo example test check crash fuzz bench-store bench-merge bench-methods bench-export bench-serve soak bench-train bench-eval bench-tui bench-tui-start pictures format lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv/ from requirements/dev.lock; does nothing where it is up to date
	@for python in $(PYTHON); do \
	    if $$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then \
	        exec $$python scripts/setup_env.py; \
	    fi; \
	done; \
	echo "setup: needs Python 3.11, and none of these is one: $(PYTHON)" >&2; \
	echo "setup: install it, or say where it is: make PYTHON=/path/to/python3.11 setup" >&2; \
	exit 1

demo: setup ## from nothing to a merged adapter that answers, on a real model
	@$(BIN)/python examples/demo.py

example: setup ## two desks' adapters: trained, evaluated, merged, gated, served and rolled back; a tutorial in examples/harbor-support
	@$(BIN)/python examples/harbor-support/run.py

test: setup ## the whole suite, slow tests too; what CI runs
	$(PYTEST) </dev/null

check: setup ## the fast loop before every commit: format, lint, types, import contracts, fast tests
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/pyright --warnings
	$(BIN)/python scripts/lint_imports.py
	$(PYTEST) -m "not slow" -q </dev/null

crash: setup ## every command killed and without power at every point; about an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.crash --all

fuzz: setup ## every reader of foreign or stored bytes fuzzed, guided by coverage, for FUZZ_SECONDS in all
	$(BIN)/python -m tests.fuzz.run --seconds $(FUZZ_SECONDS)

bench-store: setup ## how fast a store of 10,000 adapters is searched, and bytes go in and are checked
	$(BIN)/python -m tests.bench.bench_store
	$(BIN)/python -m tests.bench.bench_bytes

bench-merge: setup ## what merging costs, beside PEFT: BENCH="--quick", "--scaling", "--all-peers" or "--help"
	$(BIN)/python -m tests.bench.bench_merge $(BENCH)

bench-methods: setup ## every merge method on the demo's two adapters: perplexity on both tasks (after make demo)
	$(BIN)/python -m tests.bench.bench_methods $(BENCH)

bench-export: setup ## what exporting 4 GB costs, beside cp and PEFT: BENCH="--growth", "--gb 2" or "--help"
	$(BIN)/python -m tests.bench.bench_export $(BENCH)

bench-serve: setup ## tokens a second of 1 to 32 adapters, through the door and past it (after make demo)
	$(BIN)/python -m tests.bench.bench_serve $(BENCH)

soak: setup ## ten minutes of everything at once against one real server, every answer checked
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.soak_serve $(BENCH)

bench-tui-start: setup ## start of the terminal UI to its first paint, beside a bare Textual application
	$(BIN)/python -m tests.bench.bench_tui_start $(BENCH)

bench-eval: setup ## four adapters on one loaded base beside four runs of transformers + peft, and beside lm-eval: BENCH="--quick"
	$(BIN)/python -m tests.bench.bench_eval $(BENCH)

pictures: setup ## the two pictures of README, drawn by the application itself
	$(BIN)/python scripts/pictures.py

bench-train: setup ## tokens a second and memory beside a plain SFTTrainer script (after make demo)
	$(BIN)/python -m tests.bench.bench_train $(BENCH)

bench-tui: setup ## from the start to 10,000 adapters on the screen, and what a key costs there
	$(BIN)/python -m tests.bench.bench_tui

format: setup ## let ruff write the format and the fixes that are safe
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

lock: setup ## write requirements/dev.lock from pyproject.toml and what is installed
	$(BIN)/python scripts/lock.py

clean: ## remove .venv/ and everything tools and builds left in the checkout
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info snapshot_report.html
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
