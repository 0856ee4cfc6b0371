# Everything a newcomer or CI needs. `make help` lists it. Needs Linux x86_64, Python 3.11, make
# and a C++ compiler; `make setup` does the rest and says what is missing.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON      ?= python3.11
VENV        ?= .venv
LOCK        ?= requirements/cpu-py311.lock
TORCH_INDEX ?=
PYTEST_ARGS ?=
SUITE       ?=
QUICK       ?=
export TORCH_INDEX

BIN := $(VENV)/bin
# Stamps are named after what they were made from: a changed lock, packaging part of pyproject.toml
# (down to its "-- tools" line) or C++ source sets up again, anything else doesn't.
digest = $(shell $(1) | sha256sum | cut -c1-12)
DEPS_STAMP    := $(VENV)/.stamp-deps-$(call digest,cat $(LOCK) requirements/bootstrap.lock)
PROJECT_STAMP := $(VENV)/.stamp-project-$(call digest,{ sed '/^\# -- tools/q' pyproject.toml; \
  cat /dev/null $(wildcard setup.py) $(sort $(shell find kernels -name '*.cpp' -o -name '*.h')); })
LINTED := serving transfer kernels tests benchmarks examples
STUBS  := pb2.py pb2.pyi pb2_grpc.py pb2_grpc.pyi

# Tests and demo never reach for a model hub.
export HF_HUB_OFFLINE := 1

##@ Use

.PHONY: help
help: ## Show this list.
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(PROJECT_STAMP) ## Create .venv with everything in it (TORCH_INDEX=<url> if torch's CPU wheel isn't found).

.PHONY: demo
demo: setup ## Upgrade the base under live traffic; ends with demo-report.html.
	$(BIN)/python -m examples.tinyworld.demo $(DEMO_ARGS)

.PHONY: bench
bench: setup ## Run one benchmark suite: make bench SUITE=swap [QUICK=1] [BENCH_ARGS=...].
	@test -n "$(SUITE)" || { echo "Name a suite: make bench SUITE=swap [QUICK=1]" >&2; exit 2; }
	$(BIN)/python -m benchmarks.run $(SUITE) $(if $(QUICK),--quick) $(BENCH_ARGS)

##@ Test

.PHONY: test
test: setup ## All tests: what shares no machine-wide state in two processes, then the whole system.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder \
	  --session-timeout=3600 $(PYTEST_ARGS) tests/guards tests/unit tests/integration
	$(BIN)/python -m pytest -q --session-timeout=3600 $(PYTEST_ARGS) tests/e2e

.PHONY: unit
unit: setup ## Guards and unit tests: no Ray, no vLLM, no network; half a minute on 4 cores.
	$(BIN)/python -m pytest -q -n auto --dist loadfile $(PYTEST_ARGS) tests/guards tests/unit

.PHONY: integration
integration: setup ## Tests with one real part each.
	$(BIN)/python -m pytest -q $(PYTEST_ARGS) tests/integration

.PHONY: e2e
e2e: setup ## Tests of the whole system.
	$(BIN)/python -m pytest -q $(PYTEST_ARGS) tests/e2e

##@ Check

.PHONY: lint
lint: setup ## Style, import contracts, protos.
	$(BIN)/ruff check $(LINTED)
	$(BIN)/ruff format --check $(LINTED)
	PYTHONPATH=.typing $(BIN)/lint-imports --no-logo
	$(BIN)/buf lint

.PHONY: format
format: setup ## Let ruff fix what it can.
	$(BIN)/ruff check --fix-only $(LINTED)
	$(BIN)/ruff format $(LINTED)

.PHONY: types
types: setup ## mypy --strict, and pyright as second opinion.
	$(BIN)/mypy
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

.PHONY: contracts
contracts: setup protos-check ## Guards over the repository: layout, imports, protos, no machine paths.
	PYTHONPATH=.typing $(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -q tests/guards

.PHONY: ci
ci: ## What CI runs.
	.ci/run

##@ Make again

.PHONY: protos
protos: setup ## Regenerate the gRPC stubs beside the protos.
	$(call generate,protos)

.PHONY: protos-check
protos-check: setup ## Fail if the stubs are not what the protos generate.
	@out=$$(mktemp -d); trap 'rm -rf "$$out"' EXIT; \
	$(call generate,$$out); \
	for stub in $(foreach s,$(STUBS),protos/lorebase/v1/*_$(s)); do \
	  cmp "$$stub" "$$out/$${stub#protos/}" || { echo "Stale stubs: run 'make protos'." >&2; exit 1; }; \
	done; \
	test "$$(find "$$out" -type f | wc -l)" = "$$(ls $(foreach s,$(STUBS),protos/lorebase/v1/*_$(s)) | wc -l)" \
	  || { echo "Missing or left-over stubs: run 'make protos'." >&2; exit 1; }; \
	echo "Stubs are up to date."

# mypy-protobuf reports each file on stderr; keep it for failures only.
define generate
log=$$(PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=$(1) \
  --grpc_python_out=$(1) --mypy_out=$(1) --mypy_grpc_out=$(1) protos/lorebase/v1/*.proto 2>&1) \
  || { echo "$$log" >&2; exit 1; }
endef

.PHONY: lock
lock: $(BIN)/uv ## Resolve requirements/*.in again into hashed locks.
	.ci/lock $(VENV) $(LOCK)

.PHONY: clean
clean: ## Remove what building and testing left (the .venv too).
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
	  .import_linter_cache .lorebase demo-report.html demo-report.json
	find kernels -name '*.so' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# -- set-up ------------------------------------------------------------------------------------

$(BIN)/uv: requirements/bootstrap.lock
	.ci/preflight $(PYTHON) $(LOCK)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r $<
	touch $@

$(DEPS_STAMP): $(BIN)/uv
	.ci/install $(VENV) $(LOCK)
	rm -f $(VENV)/.stamp-deps-*
	touch $@

# No build isolation: setuptools is in the lock, so nothing unpinned is fetched. The build's
# egg-info would hide the installed metadata (entry points) whenever this folder is on sys.path.
$(PROJECT_STAMP): $(DEPS_STAMP)
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install -q --no-deps --no-build-isolation -e .
	rm -rf lorebase.egg-info $(VENV)/.stamp-project-*
	touch $@
