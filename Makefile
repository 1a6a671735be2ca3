# Every habit has a name. VENV is created on first use and shared by all targets.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin
EXTRAS = cli,fast,torch,paddle-cpu
# Versions come from locks/, unless LOCKED is empty: then they are the newest of everything.
LOCKED ?= yes
# What `make test-fast` runs; --fast leaves the plain ViTs of the models.
FAST = tests/core tests/backends tests/adapters tests/test_layering.py
# Two processes of one thread each: the models of the tests are tiny, and more threads only wait for each other.
# A file, or a class of laws, stays in one process, so what it builds once is built once.
PARALLEL = -n 2 --dist loadscope
test test-fast test-bare: export OMP_NUM_THREADS ?= 1
# With other versions than the locked ones, warnings of other libraries are listed and are no errors.
WARNINGS = $$(test -n "$$lock" || echo --list-warnings)

.PHONY: demo test test-fast test-bare test-latest lock lint format bench clean

demo: $(VENV)/.demo
	$(RUN)/tomecore demo

test: $(VENV)/.dev
	$(call lock,$(VENV),full) && $(RUN)/python -m pytest $(PARALLEL) $(WARNINGS) --durations=25 tests

test-fast: $(VENV)/.dev
	$(call lock,$(VENV),full) && $(RUN)/python -m pytest $(PARALLEL) $(WARNINGS) --fast $(FAST)

# What must pass with numpy, torch, paddlepaddle, array-api-compat and pytest alone; on the oldest that are supported.
test-bare: $(VENV)-bare/.installed
	$(VENV)-bare/bin/python -m pytest --list-warnings tests --ignore tests/integration

# The newest of everything, in an environment made from nothing.
test-latest:
	rm -rf $(VENV)-latest
	$(MAKE) test VENV=$(VENV)-latest LOCKED=

# Write locks/ from environments made from nothing, and the README's versions from them.
lock:
	rm -rf $(VENV)-lock $(VENV)-lock-bare
	$(MAKE) $(VENV)-lock/.dev $(VENV)-lock-bare/.installed VENV=$(VENV)-lock LOCKED=
	$(VENV)-lock/bin/python tools/lock.py write full
	$(VENV)-lock-bare/bin/python tools/lock.py write bare
	$(VENV)-lock/bin/python tools/lock.py readme
	rm -rf $(VENV)-lock $(VENV)-lock-bare

lint: $(VENV)/.dev
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/python tools/english.py --check

format: $(VENV)/.dev
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

bench: $(VENV)/.dev
	$(RUN)/python benchmarks/matrix.py

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

$(VENV)-bare/.installed: pyproject.toml $(LOCK_FILES)
	$(PYTHON) -m venv $(VENV)-bare
	$(call lock,$(VENV)-bare,bare) && $(VENV)-bare/bin/pip install -q $$lock \
	    "torch==2.8.0" "numpy==1.24.4; python_version < '3.12'" "array-api-compat==1.11" "paddlepaddle==3.3.0" \
	    pytest -e .
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
