# Two commands do everything on a machine with Python 3.11 and make: `make demo` and `make test`.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test check test-all test-lowest test-newest mutants lint types bench docs package clean

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
CORE := $(addprefix src/gradnorm/,_numerics.py _balancer.py capture functional.py _history.py) tests/distributed \
	tests/oracle $(addprefix tests/unit/,capture test_balancer.py test_functional.py test_history.py test_properties.py)
FAILED = { echo; echo "make $@ stopped: $(1)"; exit 1; }

help:  ## This list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# torch first and pinned, so that nothing after it can pull another build; then the packages with all they need.
PARTS_studies := -e . -e ./studies
PARTS_dev := -e '.[dev]' -e './studies[vision,rl,molecules,ray]'
PARTS_bench := -e '.[bench]' -e ./studies
PARTS_docs := -e '.[docs]'
$(VENV)/.ready-%: pyproject.toml studies/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || $(call FAILED,Python 3.11 or newer is needed; name one with PYTHON=/path/to/python3.11)
	@echo "Setting up $(VENV) ($*)"
	@$(PYTHON) -m venv $(VENV) || $(call FAILED,no virtual environment could be made; on Debian: apt-get install python3-venv)
	@$(PIP_INSTALL) -c constraints.txt torch || $(call FAILED,torch could not be installed; is a package index reachable?)
	@$(PIP_INSTALL) -c constraints.txt $(PARTS_$*) || $(call FAILED,the packages for $* could not be installed; is a package index reachable?)
	@touch $@

demo: $(VENV)/.ready-studies  ## Environment, install, the paper's toy problem: table and picture at the end
	@$(BIN)/gradnorm reproduce toy --steps 2500 --record-every 25 --methods gradnorm,closed-form,equal,divided,uncertainty,static --out runs/demo || $(call FAILED,the study did not finish; run it again and it resumes where it stopped)

test: lint types $(VENV)/.ready-dev  ## Environment, lint, types, all fast tests
	@$(BIN)/python -m pytest -q -n 2 || $(call FAILED,a test failed; see above)

check: lint types $(VENV)/.ready-dev  ## Lint, types, the core's tests: what to run before each commit
	@$(BIN)/python -m pytest -q -n 2 $(CORE) || $(call FAILED,a test failed; see above)

test-all: $(VENV)/.ready-dev  ## The slow tests as well
	@$(BIN)/python -m pytest -q -n 2 -m ''

# The two workers have a core each.
test check test-all: export OMP_NUM_THREADS := 1

# Environments of their own, with no extra of this package.
alone = $(PYTHON) -m venv $(1) && $(1)/bin/python -m pip install --quiet $(2) 'numpy<3' pytest pytest-xdist hypothesis \
	&& $(1)/bin/python -m pip install --quiet --no-deps -e . && $(1)/bin/python -m pytest -q -n 2 $(CORE)

test-lowest:  ## The core's tests on the lowest torch that pyproject.toml declares (downloads gigabytes)
	@$(call alone,.venv-lowest,'torch==2.6.0')

test-newest:  ## The core's tests beside the newest torch and nothing else (downloads gigabytes)
	@$(call alone,.venv-newest,torch)

mutants: $(VENV)/.ready-dev  ## Break one line of the core at a time: which breaks does no test notice? ONLY=word takes some
	@$(BIN)/python tests/mutants.py $(ONLY) || $(call FAILED,write the test that is missing, or remove what does nothing)

lint: $(VENV)/.ready-dev  ## ruff: rules and format
	@$(BIN)/ruff check . || $(call FAILED,fix what ruff found; many with .venv/bin/ruff check --fix .)
	@$(BIN)/ruff format --check . || $(call FAILED,run .venv/bin/ruff format .)

types: $(VENV)/.ready-dev  ## pyright
	@$(BIN)/pyright --pythonpath $(BIN)/python || $(call FAILED,fix the types pyright found)

bench: $(VENV)/.ready-bench  ## What GradNorm costs: benchmarks/results/overhead.md
	@$(BIN)/python benchmarks/overhead.py

docs: $(VENV)/.ready-docs  ## The documentation site: build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet || $(call FAILED,fix what mkdocs warned about)
	@echo "Open build/site/index.html, or serve it while writing: $(BIN)/mkdocs serve"

package: $(VENV)/.ready-dev  ## Wheel and sdist of both packages in dist, after trying them
	@$(BIN)/python -m pytest -q tests/package || $(call FAILED,what would be released does not work; see above)
	@rm -rf dist
	@for folder in . studies; do (cd $$folder && $(abspath $(BIN))/python -m hatchling build -d $(CURDIR)/dist); done

clean:  ## Remove environments, caches and runs
	rm -rf .venv .venv-lowest .venv-newest .pytest_cache .ruff_cache .hypothesis runs dist build
