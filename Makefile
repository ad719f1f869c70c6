# Each target sets up what it needs: a virtual environment in .venv, from the package registry.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo demo-centripetal test test-slow lint format clean

demo: $(VENV)/.examples
	$(BIN)/python examples/quickstart.py $(ARGS)

demo-centripetal: $(VENV)/.examples
	$(BIN)/python examples/centripetal.py $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info out

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.examples: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[examples]"
	touch $@

$(VENV)/.test: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@
