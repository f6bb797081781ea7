# Everything a developer or a user does with this repository. `make` alone prints the list.
# Needs python3 (3.11 or newer) with venv, and make; all else goes into .venv and a cache folder.

PYTHON ?= python3
VENV := .venv
COMPILED := .venv-compiled
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

# A test that hangs shows where before somebody kills it.
PYTEST := $(BIN)/python -m pytest -o faulthandler_timeout=240

.DEFAULT_GOAL := help
.PHONY: help install run test test-compiled compiled test-unit provision check format proto bench constraints clean

help: ## Print this list
	@echo "make <target> [ARGS=...]"
	@echo
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## Create .venv with the package and all tools, versions and hashes as in constraints.txt

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; name it as PYTHON=..." if sys.version_info < (3, 11) else 0)'
	@echo "Setting up $(VENV) (once, about a minute) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: install ## Run a whole mesh on this machine: registry, discovery, gateway, health monitor, samples (ARGS="--consul URL" ...)
	@$(BIN)/toska up $(ARGS)

test: install provision ## Run all tests against a real Consul, RabbitMQ and Redis (ARGS="-k name" ...)
	@$(BIN)/python tools/run_tests.py $(ARGS)

compiled: install ## Build .venv-compiled: the same package, its data path compiled by mypyc (needs a C compiler)
	@test -x $(COMPILED)/bin/python || $(PYTHON) -m venv $(COMPILED)
	@$(COMPILED)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r constraints.txt
	@rm -rf build
	@TOSKA_MESH_COMPILE=1 $(COMPILED)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall .

test-compiled: compiled provision ## Run the tests of the data path against the compiled build
	@$(COMPILED)/bin/python -m pytest -n 2 --dist loadfile tests/integration/gateway tests/unit/router tests/unit/resilience \
		--ignore tests/integration/gateway/test_own_bugs.py $(ARGS)

test-unit: install ## Run the unit tests: no servers, seconds; property tests with fewer examples than in `test`
	@$(PYTEST) tests/unit --hypothesis-profile=quick $(ARGS)

provision: install ## Find or fetch Consul, RabbitMQ and Redis for the tests
	@$(BIN)/python -m tests.support.provision

check: install ## Check formatting, lint, types, import order and generated code
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python tools/generate_pb.py --check

format: install ## Format the code and apply safe lint fixes
	@$(BIN)/ruff check --fix --exit-zero --quiet .
	@$(BIN)/ruff format .

proto: install ## Generate src/toska_mesh/pb from proto/
	@$(BIN)/python tools/generate_pb.py

bench: install ## Measure (ARGS="--help" lists what)
	@$(BIN)/python -m bench $(ARGS)

constraints: ## Resolve pyproject.toml anew into constraints.txt (ARGS="--upgrade" for newest versions)
	@PYTHON=$(PYTHON) tools/update_constraints $(ARGS)
	@$(MAKE) --no-print-directory install

clean: ## Remove .venv, caches and build results
	rm -rf $(VENV) $(COMPILED) .cache build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
