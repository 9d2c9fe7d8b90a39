# Two commands: `make demo` and `make test`. Both set up all they need in .venv and .cache, once.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps
CACHE := .cache
MODELS := $(CACHE)/tiny-models
DEMO_RESULTS ?= results/demo
TRACES ?= traces
PARTS ?=
ROWS ?=

export SGLANG_MARCONI_CACHE ?= $(CURDIR)/$(CACHE)
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

# The fork of SGLang 0.5.4 has an environment of its own: see patches/README.md.
FORK := .venv-0.5.4
FORK_BASE := $(CACHE)/sglang-0.5.4-py3-none-any.whl
FORK_UV := $(BIN)/uv pip install --quiet --python $(FORK)/bin/python --no-deps

OUR_FILES := $(shell find python -name '*.py' 2>/dev/null) pyproject.toml
PLATFORM_FILES := $(shell find test/cpu_platform -name '*.py' 2>/dev/null) test/cpu_platform/pyproject.toml
FORK_FILES := $(shell find patches -name '*.py' -o -name '*.patch' -o -name '*.toml') $(OUR_FILES)

.PHONY: help demo matrix test quick-test test-fork lint docs format setup setup-fork wheel fork clean results results-pages

help:
	@echo "make demo        stock LRU, the paper and policy 3 on real servers on this CPU (6 to 15 minutes)"
	@echo "make test        lint, types and all tests, real servers included"
	@echo "make quick-test  lint, types and the tests that start no server"
	@echo "make test-fork   the tests of the fork of SGLang 0.5.4 alone"
	@echo "make docs        build the documentation in build/site"
	@echo "make wheel       build dist/sglang_marconi-*.whl"
	@echo "make fork        build dist/sglang-0.5.4+marconi.*.whl"
	@echo "make format      format the code"
	@echo "make matrix      serve the launches that operators make, with stock beside (an hour; ROWS=\"--rows 3\")"
	@echo "make results     measure every figure of the docs again (hours; PARTS=..., TRACES=folder)"
	@echo "make results-pages  write tables, figures and pictures of the docs from results/*.jsonl"

demo: setup
	$(BIN)/python benchmark/marconi/demo.py --models $(MODELS) --out $(DEMO_RESULTS)

test: quick-test setup-fork
	$(BIN)/python -m pytest test/srt -m server --numprocesses 2 --dist loadgroup
	$(MAKE) --no-print-directory test-fork

test-fork: setup-fork
	$(FORK)/bin/python -m pytest -c test/v0.5.4/pytest.ini test/v0.5.4

quick-test: lint setup
	$(BIN)/python -m pytest test/srt -m "not server" --numprocesses 2

lint: $(VENV)/.deps
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file patches/v0.5.4/mypy.ini
	$(BIN)/python test/check_imports.py
	$(BIN)/python benchmark/marconi/results.py pages --check
	$(MAKE) --no-print-directory docs

matrix: setup
	$(BIN)/python benchmark/marconi/matrix.py $(ROWS)

docs: $(VENV)/.deps
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(VENV)/.deps
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# PARTS chooses parts, TRACES is the folder of the traces; `results.py run --list` names the parts.
results: setup
	$(BIN)/python benchmark/marconi/results.py run --traces $(TRACES) $(PARTS)

results-pages: $(VENV)/.deps
	$(BIN)/python benchmark/marconi/results.py pages

setup: $(VENV)/.package $(VENV)/.platform $(MODELS)/.done

setup-fork: $(FORK)/.fork $(FORK)/.platform

wheel: $(VENV)/.deps
	$(BIN)/uv build --quiet --wheel --out-dir dist --python $(BIN)/python .
	@ls dist/*.whl

fork: $(FORK_BASE)
	$(BIN)/python patches/build_fork.py --base $(FORK_BASE) --wheel dist

clean:
	rm -rf $(VENV) $(FORK) $(CACHE) dist build

# Only a CPU's dependencies, each pinned; the CUDA-only ones of SGLang are left out.
$(VENV)/.deps: requirements-cpu.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and f"Python 3.11 is needed, $(PYTHON) is {sys.version.split()[0]}; set PYTHON=/path/to/python3.11")'
	@echo "Setting up $(VENV): PyTorch, SGLang and what they need (several GB, some minutes, once)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' requirements-cpu.lock)"
	$(UV) --compile-bytecode -r requirements-cpu.lock
	@touch $@

$(VENV)/.package: $(VENV)/.deps $(OUR_FILES)
	$(UV) --reinstall-package sglang-marconi .
	@touch $@

$(VENV)/.platform: $(VENV)/.deps $(PLATFORM_FILES)
	$(UV) --reinstall-package sglang-cpu-reference ./test/cpu_platform
	@touch $@

$(MODELS)/.done: $(VENV)/.platform test/cpu_platform/sglang_cpu_reference/tiny_models.py
	@echo "Making the tiny models"
	$(BIN)/python -m sglang_cpu_reference.tiny_models $(MODELS)
	@touch $@

$(FORK_BASE): | $(VENV)/.deps
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps \
		--only-binary :all: --dest $(CACHE) sglang==0.5.4

$(FORK)/.deps: patches/v0.5.4/requirements-cpu.lock | $(VENV)/.deps
	@echo "Setting up $(FORK): what SGLang 0.5.4 needs"
	test -x $(FORK)/bin/python || $(BIN)/uv venv --quiet --python $(BIN)/python $(FORK)
	$(FORK_UV) --compile-bytecode -r $<
	@touch $@

$(FORK)/.fork: $(FORK)/.deps $(FORK_BASE) $(FORK_FILES)
	rm -rf $(FORK)/wheel
	$(BIN)/python patches/build_fork.py --base $(FORK_BASE) --wheel $(FORK)/wheel
	$(FORK_UV) --compile-bytecode --reinstall-package sglang $(FORK)/wheel/*.whl
	@touch $@

$(FORK)/.platform: $(FORK)/.deps $(PLATFORM_FILES)
	$(FORK_UV) --reinstall-package sglang-cpu-reference ./test/cpu_platform
	@touch $@
