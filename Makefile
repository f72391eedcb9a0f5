# Two commands matter: `make demo` and `make test`. Both install what they need, once.
# Needs python3 (3.11 or newer), make, and a package registry that pip can reach.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# uv installs in seconds what takes pip a minute. `make lock` writes this pin, with hashes, to requirements/uv.txt.
UV_VERSION := 0.13.9

# Hundreds of processes load thousands of modules. If the environment disables Python's bytecode cache, the tests take
# half as long again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-proofs test-system screenshots chaos mutants check lint format-check types imports generated lock compose-check wheel sbom audit fuzz clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- Set-up ----------------------------------------------------------------------------------------------------------

# One environment, two sizes: the demo's packages are a subset of the tests' (same pins), so `make demo` downloads about
# half of what `make test` does, and neither removes what the other needs.
setup: $(VENV)/.test ## Make .venv with everything that demo, tests and checks need.
	@:

# `$(call step,label,command,advice)` prints one line with the seconds; the command's output only if it fails.
define step
	@printf '%-58s' '$(1) ...'; began=$$(date +%s); \
	if { $(2); } >$(VENV)/setup.log 2>&1; then echo "$$(( $$(date +%s) - began )) s"; \
	else echo 'failed'; cat $(VENV)/setup.log >&2; printf '\n%s\n' '$(3)' >&2; exit 1; fi
endef

REGISTRY_HINT := Is the package registry reachable? pip and uv use the index that PIP_INDEX_URL or pip.conf name, else PyPI.

# uv does not read pip's settings: pass it pip's index, unless it has its own.
define hand_over_index
	index="$${UV_DEFAULT_INDEX:-$${UV_INDEX_URL:-$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config list | sed -n "s/^global.index-url='\(.*\)'/\1/p")}}}"; \
	if [ -n "$$index" ]; then export UV_DEFAULT_INDEX="$$index"; fi; \
	if [ -n "$${PIP_CERT:-}" ]; then export SSL_CERT_FILE="$${SSL_CERT_FILE:-$$PIP_CERT}"; fi
endef

$(VENV)/.uv: requirements/uv.txt
	@command -v $(PYTHON) >/dev/null || \
	{ echo 'There is no $(PYTHON): install Python 3.11 or newer, or name one: make PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "$$($(PYTHON) --version) is too old: longtake needs 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	{ echo 'This Python cannot make environments: apt-get install python3-venv (on Debian and Ubuntu)' >&2; exit 1; }
	@mkdir -p $(VENV)
	$(call step,making $(VENV),$(PYTHON) -m venv $(VENV),The environment could not be made: see above.)
	$(call step,installing uv,$(BIN)/python -m pip install --require-hashes -r $<,pip could not install uv. $(REGISTRY_HINT))
	@touch $@

# `install`, not `sync`, which would remove the tests' packages.
$(VENV)/.demo: requirements/demo.txt $(VENV)/.uv
	$(call step,installing what the demo needs,$(hand_over_index); \
	  VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --require-hashes -r $<,uv could not install the packages. $(REGISTRY_HINT))
	@touch $@

$(VENV)/.test: requirements/test.txt $(VENV)/.uv
	$(call step,installing what demo$(comma) tests and checks need,$(hand_over_index); \
	  VIRTUAL_ENV=$(VENV) $(BIN)/uv pip sync --require-hashes $<,uv could not install the packages. $(REGISTRY_HINT))
	@touch $@

# Only the tests that drive Debian's programs need these, in addition to the tests' packages.
$(VENV)/.system: requirements/system.txt $(VENV)/.test
	$(call step,installing what the system tests need,$(hand_over_index); \
	  VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --require-hashes -r $<,uv could not install the packages. $(REGISTRY_HINT))
	@touch $@

$(VENV)/.fuzz: requirements/fuzz.txt $(VENV)/.test
	$(call step,installing the fuzzer,$(hand_over_index); \
	  VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --require-hashes -r $<,uv could not install the packages. $(REGISTRY_HINT))
	@touch $@

$(VENV)/.sbom: requirements/sbom.txt $(VENV)/.uv
	$(call step,installing what writes bills of materials,$(hand_over_index); \
	  VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --require-hashes -r $<,uv could not install the packages. $(REGISTRY_HINT))
	@touch $@

comma := ,

# --- Use -------------------------------------------------------------------------------------------------------------

demo: $(VENV)/.demo ## Run four generations against the simulator; KEEP=1 leaves the servers running; LIKE=newapi-2026-07.
	@$(BIN)/python starter.py demo $(if $(KEEP),--keep) $(if $(LIKE),--like $(LIKE))

# Many tests wait for timers and processes, so three at once suit two cores. The tests of a file stay together, in the
# order of `tests/conftest.py`; xdist's own order, most tests first, starts the files that wait longest last.
SIDE_BY_SIDE := -m "not system and not proof" -n 3 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.test ## Run all tests that need no Debian packages; ARGS="-k name" chooses.
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS); ended=$$?; \
	echo; echo 'Not run, of some files in part (see make test-proofs): every instant and interleaving of what is paid:'; \
	grep -rl 'mark\.proof' tests --include='test_*.py' | sort | sed 's/^/  /'; \
	echo 'Not run, of some files in part (see make test-system): a browser, Prometheus and whole installations:'; \
	grep -rl 'mark\.system' tests --include='test_*.py' | sort | sed 's/^/  /'; \
	exit $$ended

test-proofs: $(VENV)/.test ## Test every crash point of payment and delivery, and every interleaving of the ledger: ten minutes.
	@$(BIN)/python -m pytest -m proof -n 2 --dist loadfile $(ARGS)

test-system: $(VENV)/.system ## Run the tests that need Debian packages (which it installs) or whole installations: some minutes.
	@sh tests/system/install.sh
	@$(BIN)/python -m pytest -m system -n 2 --dist loadfile $(ARGS)

screenshots: $(VENV)/.system ## Make docs/screenshots/*.png anew, in a real browser.
	@sh tests/system/install.sh
	@mkdir -p docs/screenshots && SCREENSHOTS=docs/screenshots $(BIN)/python -m pytest -m system tests/system/test_ui.py $(ARGS)

chaos: $(VENV)/.test ## Run hundreds of generations while everything breaks, some 5 minutes; SEED=7 (or SEEDS="1 2 3") GENERATIONS=300 S3=1.
	@$(BIN)/python -m tests.chaos $(if $(SEEDS)$(SEED),--seeds $(SEEDS) $(SEED)) $(if $(GENERATIONS),--generations $(GENERATIONS)) $(if $(S3),--s3) $(ARGS)

# In a copy and a separate environment, because the tool writes mutants beside the code. A second run continues.
MUTANTS := .mutants

$(MUTANTS)/.ready: requirements/test.txt requirements/mutants.txt $(VENV)/.uv
	@mkdir -p $(MUTANTS)
	$(call step,making $(MUTANTS)/venv,$(PYTHON) -m venv $(MUTANTS)/venv,The environment could not be made: see above.)
	$(call step,installing what the mutants need,$(hand_over_index); \
	  VIRTUAL_ENV=$(MUTANTS)/venv $(BIN)/uv pip install --require-hashes -r requirements/test.txt -r requirements/mutants.txt,uv could not install the packages. $(REGISTRY_HINT))
	@touch $@

mutants: $(MUTANTS)/.ready ## Mutate the code that decides about money and list what no test notices: hours; ARGS="longtake.submission.ledger.*".
	@mkdir -p $(MUTANTS)/work && git ls-files -z | xargs -0 cp --parents --preserve=timestamps -t $(MUTANTS)/work
	@cd $(MUTANTS)/work && export PATH="$(CURDIR)/$(MUTANTS)/venv/bin:$$PATH" && mutmut run --max-children 2 $(ARGS) && mutmut results

check: lint test ## Run lint, types, import rules and tests, as CI does.

lint: format-check types imports generated audit ## Run ruff, mypy, import-linter, bandit, the audit of packages; compare generated tables.

audit: $(VENV)/.test ## Run bandit, search for secrets, compare installed packages with the locked ones; needs no network.
	@$(BIN)/bandit --quiet --recursive --configfile pyproject.toml longtake activities workflows cli simulator worker.py starter.py
	@$(BIN)/python -m tests.packaging.locked
	@$(BIN)/python -m tests.packaging.forbidden

format-check: $(VENV)/.test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.test
	@$(BIN)/mypy

imports: $(VENV)/.test
	@$(BIN)/lint-imports --no-logo

generated: $(VENV)/.test
	@$(BIN)/python -m docs.generate --check

compose-check: $(VENV)/.test ## Check docker-compose.yml with Compose and with the specification's schema.
	@$(BIN)/docker-compose --env-file .env.example --profile '*' config --quiet
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

wheel: $(VENV)/.uv ## Build the wheel into dist/, with the build backend of requirements/build.txt.
	@$(hand_over_index); $(BIN)/uv build --quiet --wheel --require-hashes --build-constraints requirements/build.txt

fuzz: $(VENV)/.fuzz ## Fuzz every reader of foreign bytes, coverage-guided, for MINUTES=60 in all; ONLY="mp4 query" chooses.
	@$(BIN)/python -m tests.hostile.fuzzing --minutes $(or $(MINUTES),60) $(if $(ONLY),--only $(ONLY))

# Python's packages only; the base image's publisher has a bill of materials for the rest (deploy/README.md).
sbom: $(VENV)/.sbom ## Write bills of materials (CycloneDX) of wheel and images into dist/.
	@mkdir -p dist
	@for part in wheel run simulator; do \
	  $(BIN)/cyclonedx-py requirements --output-reproducible --of JSON --mc-type application --pyproject pyproject.toml \
	    -o dist/longtake-$$part.cdx.json requirements/$$part.txt || exit 1; done

# No uv.lock, because it records the host of the registry. These files contain names, versions and hashes only, for every
# platform and Python from 3.11 on. All take their versions from test.txt, so that what runs is what was tested.
COMPILE = VIRTUAL_ENV=$(VENV) $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header
PART = $(COMPILE) pyproject.toml --no-annotate -c requirements/test.txt

lock: $(VENV)/.uv ## Write requirements/*.txt anew from pyproject.toml; UPGRADE=1 takes the newest versions.
	@echo 'uv==$(UV_VERSION)' | $(COMPILE) --no-annotate - -o requirements/uv.txt
	@$(COMPILE) pyproject.toml --extra test $(if $(UPGRADE),--upgrade) -o requirements/test.txt
	@$(PART) --extra cli --extra encryption --extra otel -o requirements/run.txt
	@$(PART) --extra simulator -o requirements/simulator.txt
	@$(PART) --extra cli --extra embedded --extra encryption --extra otel --extra simulator -o requirements/demo.txt
	@$(PART) --extra system -o requirements/system.txt
	@$(PART) --extra sbom -o requirements/sbom.txt
	@$(PART) --extra fuzz -o requirements/fuzz.txt
	@$(PART) -o requirements/wheel.txt
	@sed -n 's/^requires = \["\(.*\)"\]/\1/p' pyproject.toml | $(COMPILE) --no-annotate - -o requirements/build.txt
	@$(PART) --extra mutants -o requirements/mutants.txt

clean: ## Remove .venv and caches, never videos/ or the data folder, which were paid for.
	@rm -rf $(VENV) $(MUTANTS) .fuzz .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
