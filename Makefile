# Every job of this repository. `make help` lists them; `make demo` and `make test` need only
# Python >= 3.11 and a package index, and make the two environments by themselves.
PYTHON ?= python3
VENV   := .venv
TRITON := .venv-triton
BIN    := $(VENV)/bin
LOCKS  := deploy/locks
export PYTHONDONTWRITEBYTECODE := 1

.DEFAULT_GOAL := help
.PHONY: help env demo up jaeger test unit contract integration chaos drill mutants bench lint format types proto locks clean

help:  ## list the jobs
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---- environments -------------------------------------------------------------------------
# uv installs in seconds; where it can't reach the index that pip is configured for, pip does it.
define install
	@$(1)/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r $(LOCKS)/uv.txt
	@$(1)/bin/uv pip install -q --compile-bytecode --python $(1)/bin/python --require-hashes -r $(2) \
	  || $(1)/bin/python -m pip install -q --require-hashes -r $(2)
endef

$(VENV)/.ready: $(LOCKS)/project.txt $(LOCKS)/uv.txt pyproject.toml
	@echo "making $(VENV) from $(LOCKS)/project.txt"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Twinpath needs Python 3.11 or newer (PYTHON=... make)"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "no venv module: install it (Debian: apt install python3-venv)"; exit 2; }
	$(call install,$(VENV),$(LOCKS)/project.txt)
	@$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

$(TRITON)/.ready: $(LOCKS)/triton.txt $(LOCKS)/uv.txt
	@echo "making $(TRITON) from $(LOCKS)/triton.txt"
	@$(PYTHON) -m venv $(TRITON)
	$(call install,$(TRITON),$(LOCKS)/triton.txt)
	@touch $@

env: $(VENV)/.ready $(TRITON)/.ready  ## make both environments

# ---- use ----------------------------------------------------------------------------------
demo: env  ## the whole story on real parts, in minutes; exits 0 only if every point held
	@$(BIN)/twinpath demo

up: env  ## start the mesh and keep it running
	@$(BIN)/twinpath up

jaeger: env  ## build the real Jaeger (needs Go, half an hour); `make up` starts it where it is built
	@sh deploy/jaeger/build.sh

# ---- tests --------------------------------------------------------------------------------
test: env lint types  ## everything: lint, types, unit, contract, integration
	@$(BIN)/python -m pytest tests/unit tests/contract tests/integration

unit: env  ## pure tests, seconds
	@$(BIN)/python -m pytest tests/unit

contract: env  ## one suite on each implementation of a contract
	@$(BIN)/python -m pytest tests/contract

integration: env  ## real processes
	@$(BIN)/python -m pytest tests/integration

mutants: env  ## apply each invariant's sabotage patch and show that the tests turn red
	@$(BIN)/python tests/mutants/run.py

drill: env  ## break each part of a mesh of its own under load; exits 0 only if every target was met
	@$(BIN)/twinpath drill all

chaos: env  ## faults against invariants, at length, in one table; goes on where it was stopped
	@$(BIN)/python -m tests.chaos

bench: env  ## what things cost, as ratios in one run; JSON in .twinpath/bench
	@status=0; for bench in mesh_bench audit_bench features_bench remote_bench local_bench bench_plan; do \
	  $(BIN)/python -m tests.load.$$bench || status=1; done; exit $$status

# ---- care ---------------------------------------------------------------------------------
lint: env  ## ruff, import directions, protos
	@$(BIN)/ruff check -q . && $(BIN)/ruff format -q --check .
	@out=$$($(BIN)/lint-imports --config .importlinter 2>&1) || { echo "$$out"; exit 1; }
	@$(BIN)/python protos/generate.py --lint

format: env  ## ruff format and its safe fixes
	@$(BIN)/ruff check -q --fix . ; $(BIN)/ruff format -q .

types: env  ## mypy, strict
	@$(BIN)/mypy

proto: env  ## regenerate the code beside the protos
	@$(BIN)/python protos/generate.py

locks: env  ## resolve the locks anew
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url --all-extras pyproject.toml -o $(LOCKS)/project.txt
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url $(LOCKS)/triton.in -o $(LOCKS)/triton.txt

clean:  ## remove what can be made again
	rm -rf $(VENV) $(TRITON) .twinpath feature_repo/data dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
