# Each target sets up what it needs: a virtual environment in .venv, from the package registry.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 2

# The oldest versions that setup.cfg allows.
OLDEST = "keras==3.12.0" "tensorflow==2.18.*" "tf_keras==2.18.*" "tensorflow-serving-api==2.18.*"
# Later ones need a protobuf that this TensorFlow does not take.
OLDEST += "tensorflow-metadata<1.18"
# Tests that fail with the nightly of Keras, with the reason. (Warnings that only the nightly gives are
# named in conftest.py.)
# keras-hub imports a function that the nightly has moved.
NIGHTLY_EXCEPTIONS = "tests/test_documentation.py::test_blocks_run_as_they_are_printed[language_models.md]"

# Tests run in this many processes, which need up to 3 GB each: `make test WORKERS=8`. Each takes the
# next file; the smallest, which keep both busy to the end, come last.
WORKERS ?= 2
PYTEST = python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
FAST = -m "not slow and not bridges and not tutorials and not training"

.PHONY: demo demo-centripetal test test-training test-tutorials test-bridges test-slow test-oldest test-nightly lint format docs dist clean

demo: $(VENV)/.examples
	$(BIN)/python examples/quickstart.py $(ARGS)

demo-centripetal: $(VENV)/.examples
	$(BIN)/python examples/centripetal.py $(ARGS)

test: $(VENV)/.test
	$(BIN)/$(PYTEST) $(FAST) $(ARGS)

test-training: $(VENV)/.test
	$(BIN)/$(PYTEST) -m "training and not slow" $(ARGS)

test-tutorials: $(VENV)/.test
	$(BIN)/$(PYTEST) -m tutorials $(ARGS)

test-bridges: $(VENV)/.test
	$(BIN)/$(PYTEST) -m "bridges and not slow" $(ARGS)

test-slow: $(VENV)/.test
	$(BIN)/$(PYTEST) -m slow $(ARGS)

test-oldest: .venv-oldest/.test
	.venv-oldest/bin/$(PYTEST) -m "not slow" $(ARGS)

test-nightly: .venv-nightly/.test
	.venv-nightly/bin/$(PYTEST) -m "not slow" $(NIGHTLY_EXCEPTIONS:%=--deselect %) $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "site/index.html; with search: $(BIN)/python -m http.server -d site"

# A wheel and a source distribution in dist/, with descriptions that an index can show.
dist: $(VENV)/.dist
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf $(VENV) .venv-oldest .venv-nightly build dist site *.egg-info out

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.examples: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[examples]"
	touch $@

$(VENV)/.test: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

$(VENV)/.docs: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

$(VENV)/.dist: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[dist]"
	touch $@

.venv-oldest/.test: setup.cfg pyproject.toml Makefile
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --editable ".[test]" $(OLDEST)
	touch $@

# The nightly is a package of another name: both in one environment overwrite each other.
.venv-nightly/.test: setup.cfg pyproject.toml Makefile
	$(PYTHON) -m venv .venv-nightly
	.venv-nightly/bin/python -m pip install --quiet --upgrade --editable ".[test]"
	.venv-nightly/bin/python -m pip uninstall --quiet --yes keras keras-nightly
	.venv-nightly/bin/python -m pip install --quiet --no-deps --pre keras-nightly
	touch $@
