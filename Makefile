# Common tasks. VENV is created on first use and shared by all targets.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin
EXTRAS = cli,fast,torch,paddle-cpu
# Versions come from locks/. If LOCKED is empty, the newest versions are installed.
LOCKED ?= yes
# The tests of `make test-fast`; of the models, --fast runs only the plain ViTs.
FAST = tests/core tests/backends tests/adapters tests/test_layering.py
# Two processes of one thread each: the models of the tests are tiny, so more threads would only wait for each other.
# A file, or a class of laws, stays in one process, so its shared objects are built once.
# If a process dies, its test fails and the run ends; a new process would begin with the same test again.
PARALLEL = -n 2 --dist loadscope --max-worker-restart 0
test test-fast test-bare: export OMP_NUM_THREADS ?= 1
# With other versions than the locked ones, warnings of other libraries are listed and are not errors.
WARNINGS = $$(test -n "$$lock" || echo --list-warnings)

.PHONY: demo test test-fast test-bare test-latest lock lint typecheck format bench release-check clean

demo: $(VENV)/.demo
	$(RUN)/tomecore demo

test: $(VENV)/.dev
	$(call lock,$(VENV),full) && $(RUN)/python -m pytest $(PARALLEL) $(WARNINGS) --durations=25 tests

test-fast: $(VENV)/.dev
	$(call lock,$(VENV),full) && $(RUN)/python -m pytest $(PARALLEL) $(WARNINGS) --fast $(FAST)

# The tests that need only numpy, torch, paddlepaddle, array-api-compat and pytest, on their oldest versions.
test-bare: $(VENV)-bare/.installed
	$(VENV)-bare/bin/python -m pytest --list-warnings tests --ignore tests/integration

# The newest version of everything, in a new environment.
test-latest:
	rm -rf $(VENV)-latest
	$(MAKE) test VENV=$(VENV)-latest LOCKED=

# README.md and the tutorials, line by line, from the wheel, with the other packages of the test environment.
.PHONY: wheel-test
wheel-test: $(VENV)/.dev
	$(RUN)/python tools/from_wheel.py --reuse

# Write locks/ from new environments, and the versions in docs/supported.md from the locks.
lock:
	rm -rf $(VENV)-lock $(VENV)-lock-bare $(VENV)-lock-docs
	$(MAKE) $(VENV)-lock/.dev $(VENV)-lock-bare/.installed $(VENV)-lock-docs/.installed \
	    VENV=$(VENV)-lock LOCKED=
	$(VENV)-lock/bin/python tools/lock.py write full
	$(VENV)-lock-bare/bin/python tools/lock.py write bare
	$(VENV)-lock-docs/bin/python tools/lock.py write docs
	$(VENV)-lock/bin/python tools/lock.py table
	rm -rf $(VENV)-lock $(VENV)-lock-bare $(VENV)-lock-docs

lint: $(VENV)/.dev typecheck
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/python tools/english.py --check

# The package strictly, everything else for names and arguments.
typecheck: $(VENV)/.dev
	$(RUN)/mypy
	$(RUN)/mypy --config-file tests/mypy.ini

format: $(VENV)/.dev
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

# The documentation site, in build/site, from an environment of its own. A warning is an error, such as a broken link;
# with --quiet, MkDocs would not count warnings.
.PHONY: docs
docs: $(VENV)-docs/.installed
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build
	@echo "Open build/site/index.html in a browser. While you write, run $(VENV)-docs/bin/mkdocs serve"

bench: $(VENV)/.dev
	$(RUN)/python benchmarks/matrix.py

# Build the files of a release, check them, and try the wheel on every Python found. RELEASE: options of tools/release.py.
release-check: SCHEMA = $(VENV)-release/bin/check-jsonschema -q --builtin-schema vendor
release-check: $(VENV)-release/.installed
	$(SCHEMA).github-workflows .github/workflows/*.yml
	$(SCHEMA).github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	$(SCHEMA).github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(SCHEMA).citation-file-format CITATION.cff
	$(VENV)-release/bin/python tools/release.py $(RELEASE)

# Shell words: set $$lock to pip's options for a lock. $(call lock,ENVIRONMENT,NAME)
lock = lock="$(if $(LOCKED),$$($(1)/bin/python tools/lock.py constraint $(2)))"
LOCK_FILES = tools/lock.py $(if $(LOCKED),$(wildcard locks/*.txt))

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml $(LOCK_FILES)
	$(call lock,$(VENV),full) && $(RUN)/pip install -q $$lock -e ".[$(EXTRAS)]"
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml $(LOCK_FILES) tools/install_browser.py \
    $(wildcard tests/integration/requirements*.txt)
	$(call lock,$(VENV),full) \
	    && $(RUN)/pip install -q $$lock -e ".[$(EXTRAS),dev]" -r tests/integration/requirements.txt \
	    && $(RUN)/pip install -q $$lock --no-deps -r tests/integration/requirements-no-deps.txt
	$(RUN)/python tools/install_browser.py
	touch $@

$(VENV)-docs/.installed: pyproject.toml $(LOCK_FILES)
	$(PYTHON) -m venv $(VENV)-docs
	$(call lock,$(VENV)-docs,docs) && $(VENV)-docs/bin/pip install -q $$lock -e ".[docs]"
	touch $@

$(VENV)-bare/.installed: pyproject.toml $(LOCK_FILES)
	$(PYTHON) -m venv $(VENV)-bare
	$(call lock,$(VENV)-bare,bare) && $(VENV)-bare/bin/pip install -q $$lock \
	    "torch==2.8.0" "numpy==1.24.4; python_version < '3.12'" "array-api-compat==1.11" "paddlepaddle==3.3.0" \
	    pytest -e .
	touch $@

$(VENV)-release/.installed: tools/release-requirements.txt
	$(PYTHON) -m venv $(VENV)-release
	$(VENV)-release/bin/pip install -q -r tools/release-requirements.txt
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
