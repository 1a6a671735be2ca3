# Every habit has a name. VENV is created on first use and shared by all targets.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin
EXTRAS = cli,fast,torch,paddle-cpu

.PHONY: demo test test-bare lint format bench clean

demo: $(VENV)/.demo
	$(RUN)/tomecore demo

test: $(VENV)/.dev
	$(RUN)/python -m pytest tests

# What must pass with numpy, torch, paddlepaddle, array-api-compat and pytest alone; on the oldest that are supported.
test-bare: $(VENV)-bare/.installed
	$(VENV)-bare/bin/python -m pytest tests --ignore tests/integration

lint: $(VENV)/.dev
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

format: $(VENV)/.dev
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

bench: $(VENV)/.dev
	$(RUN)/python benchmarks/matrix.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml
	$(RUN)/pip install -q -e ".[$(EXTRAS)]"
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml tools/install_browser.py $(wildcard tests/integration/requirements*.txt)
	$(RUN)/pip install -q -e ".[$(EXTRAS),dev]" -r tests/integration/requirements.txt
	$(RUN)/pip install -q --no-deps -r tests/integration/requirements-no-deps.txt
	$(RUN)/python tools/install_browser.py
	touch $@

$(VENV)-bare/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-bare
	$(VENV)-bare/bin/pip install -q "torch==2.8.0" "numpy==1.24.4; python_version < '3.12'" "array-api-compat==1.11" \
	    paddlepaddle pytest
	$(VENV)-bare/bin/pip install -q -e .
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-bare build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
