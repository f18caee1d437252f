# make demo   makes the environment and runs the whole main job on this machine
# make test   makes the environment and runs the tests
# make lint   style and types     make setup   the environment only
# make docs   rewrites the parts of docs/ that come from the code     make clean   removes all of it
# make soak   random nights, faults and maintenance for SOAK_MINUTES (20) from SOAK_SEED (1)
# make gpu    with a torch for CUDA in PYTHON: GPU tests and benchmarks; GPU_ARGS=--dry-run needs none
# make fuzz   reads damaged files of all formats for FUZZ_SECONDS (1200) and reports what goes wrong
#
# PYTHON names the interpreter (3.11 or newer); PIP_ARGS goes to the installer as it is, for example
# PIP_ARGS="--extra-index-url URL" for an index of CPU-only torch.

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
GPU_ARGS ?=
FUZZ_SECONDS ?= 1200
SOAK_MINUTES ?= 20
SOAK_SEED ?= 1
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.test-installed
DEMO := .demo

.DELETE_ON_ERROR:
.PHONY: setup demo test lint docs fuzz soak gpu clean

setup: $(STAMP)

# uv reads no pip configuration: it is told where else to find packages.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11: name another, as in make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "the module venv does not work: on Debian and Ubuntu install python3-venv" >&2; exit 1; }
	@echo "Installing the packages of requirements.lock into $(VENV)"
	@if command -v uv >/dev/null; then \
	  install="uv pip install --quiet --python $(BIN)/python"; \
	  places=$${PIP_FIND_LINKS:+--find-links $$PIP_FIND_LINKS}; \
	else \
	  install="$(BIN)/python -m pip install --quiet --disable-pip-version-check"; places=; \
	fi; \
	$$install $$places $(PIP_ARGS) -r requirements.lock && \
	$$install --no-deps --no-build-isolation -e .
	@touch $@

# Triton comes with a torch for GPUs; on the CPU its interpreter runs the GPU's kernels in the tests.
$(TEST_STAMP): $(STAMP) requirements-triton.lock
	@echo "Installing the packages of requirements-triton.lock into $(VENV)"
	@if command -v uv >/dev/null; then install="uv pip install --quiet --python $(BIN)/python"; \
	else install="$(BIN)/python -m pip install --quiet --disable-pip-version-check"; fi; \
	$$install $(PIP_ARGS) -r requirements-triton.lock
	@touch $@

demo: setup
	@rm -rf $(DEMO)
	@echo; echo "== 1. The documentation of the installed packages becomes a corpus"
	$(BIN)/elmo corpus --output $(DEMO)/corpus
	@echo; echo "== 2. A small biLM learns from it"
	$(BIN)/elmo pretrain --config configs/demo-pretrain.yaml
	@echo; echo "== 3. Every document gets a vector; one snapshot is committed"
	$(BIN)/elmo embed --config configs/demo.yaml
	@echo; echo "== 4. Search by meaning, and one word in two senses"
	$(BIN)/elmo search $(DEMO)/vectors "return the maximum of an array along an axis" \
	  "parse a document from a string" "raised when a name cannot be found"
	$(BIN)/elmo search $(DEMO)/vectors --word sign "the sign of the number is negative" \
	  "sign the message with the private key"
	@echo; echo "== 5. The same again: nothing changed, nothing is committed"
	$(BIN)/elmo embed --config configs/demo.yaml

test: $(TEST_STAMP)
	@$(BIN)/python -m tests.side_by_side $(PYTEST_ARGS)

soak: setup
	@$(BIN)/python -m tests.soak --minutes $(SOAK_MINUTES) --seed $(SOAK_SEED)

fuzz: setup
	@$(BIN)/python -m tests.pipeline.fuzz_readers --seconds $(FUZZ_SECONDS)

# The lock's torch is for CPUs where only such a build is found: a GPU's machine brings its own.
gpu:
	@$(PYTHON) -m benchmarks.gpu.run $(GPU_ARGS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy

docs: setup
	@$(BIN)/python -m tests.generated_docs

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
