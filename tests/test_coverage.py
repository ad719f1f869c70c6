"""Every layer and operation of Keras has a rule, and docs/coverage.md says what it does."""

import importlib.util
from pathlib import Path

import keras
import pytest

FOLDER = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def coverage():
    """docs/coverage.py as a module."""
    spec = importlib.util.spec_from_file_location("coverage", FOLDER / "coverage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_everything_has_a_rule_or_a_reason(coverage):
    rows = coverage.layer_rows() + coverage.operation_rows()[0]
    assert len(rows) > 400
    assert [row[0] for row in rows if row[1] == "NO RULE"] == []


def test_the_page_is_up_to_date(coverage):
    if f"for Keras {keras.__version__};" not in coverage.PAGE.read_text():
        pytest.skip("written for another Keras")
    assert coverage.PAGE.read_text() == coverage.page(), "run `python docs/coverage.py`"
