"""The whole of keras.applications; a fast part is in test_oracle.py."""

import keras
import numpy as np
import pytest
import zoo

import keras_nisp as kn


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::keras_nisp.DataRangeWarning")  # random numbers, no images
@pytest.mark.parametrize("name", zoo.names())
def test_application(name):
    row = zoo.check(name, seed=1)
    keras.backend.clear_session()
    assert row["ok"], row
    assert bool(row["mixing_layers"]) == name.startswith("ConvNeXt")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResNet152", "DenseNet201", "NASNetLarge", "EfficientNetB7"])
def test_nisp_is_stable_in_float32(name):
    """Fresh BatchNorm, where the product of |W| overflows."""
    model = zoo.build(name)
    images = np.random.default_rng(0).normal(size=(16, *model.input_shape[1:]))
    channel_map = kn.trace(model)
    scores = kn.NISP(images)(channel_map)
    for group in channel_map.groups:
        assert np.isfinite(scores[group.units]).all()
        assert np.ptp(scores[group.units]) > 0
    keras.backend.clear_session()


def test_all_applications_are_in_the_zoo():
    assert len(zoo.names()) >= 38
