"""Rows of patches, multiplied by a kernel, are what the layer gives."""

import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_nisp.channels.registry import rule_of
from keras_nisp.kernels.patches import patches, positions_first, read_positions

PLAIN_KINDS = [(layers.Conv1D, (9,)), (layers.Conv2D, (7, 10)), (layers.Conv3D, (5, 6, 7))]
TRANSPOSED_KINDS = [(layers.Conv1DTranspose, (6,)), (layers.Conv2DTranspose, (4, 5))]
CONV = [
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 2, "padding": "same", "strides": 2},
    {"kernel_size": 4, "padding": "same", "strides": 3},
    {"kernel_size": 3, "dilation_rate": 2},
    {"kernel_size": 3, "padding": "same", "dilation_rate": 2},
]
TRANSPOSED = [
    {"kernel_size": 3},
    {"kernel_size": 2, "strides": 2},
    {"kernel_size": 3, "strides": 2, "padding": "same"},
    {"kernel_size": 5, "strides": 2, "padding": "same"},
    {"kernel_size": 3, "strides": 2, "output_padding": 1},
    {"kernel_size": 2, "strides": 3},
]


def by_patches(layer, x):
    (plain,) = rule_of(layer).plain_kernels(layer)
    made = layer.compute_output_shape(x.shape)
    table = read_positions(plain.window, x.shape[1:-1], made[1:-1])
    taps = len(plain.window.size)
    kernel = np.moveaxis(layer.kernel.numpy(), plain.axis % (taps + 2), taps)
    rows = np.asarray(patches(positions_first(tf.constant(x), x.ndim - 1), table))
    flat = kernel.reshape(-1, *kernel.shape[taps:])
    return np.einsum("rtc,tco->ro", rows, flat).reshape(made)


KINDS = [
    *((kind, size, kwargs) for kwargs in CONV for kind, size in PLAIN_KINDS),
    *((kind, size, kwargs) for kwargs in TRANSPOSED for kind, size in TRANSPOSED_KINDS),
    (layers.Conv1D, (9,), {"kernel_size": 3, "padding": "causal", "dilation_rate": 2}),
]


@pytest.mark.parametrize(("kind", "size", "settings"), KINDS, ids=str)
def test_layers_without_a_bias(kind, size, settings, rng):
    x = rng.normal(size=(2, *size, 3)).astype("float32")
    layer = kind(4, use_bias=False, **settings)
    np.testing.assert_allclose(layer(x), by_patches(layer, x), atol=1e-5)


def test_channels_first_and_a_single_feature(rng):
    x = rng.normal(size=(2, 3, 4, 5)).astype("float32")
    rows = positions_first(tf.constant(x), 1)
    np.testing.assert_array_equal(rows, np.moveaxis(x, 1, -1).reshape(2, 20, 3))
    assert positions_first(tf.constant(x), None).shape == (2, 60, 1)
