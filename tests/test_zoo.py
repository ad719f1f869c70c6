"""The whole of keras.applications; a fast part is in test_oracle.py."""

import keras
import pytest
import zoo


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.names())
def test_application(name):
    row = zoo.check(name, seed=1)
    keras.backend.clear_session()
    assert row["ok"], row
    assert bool(row["mixing_layers"]) == name.startswith("ConvNeXt")


def test_all_applications_are_in_the_zoo():
    assert len(zoo.names()) >= 38
