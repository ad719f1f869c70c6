"""widen: the same outputs, the same architecture, and the way back."""

import keras
import numpy as np
import pytest
from keras import layers
from nets import NETS, example_inputs, layer_norm, plain, randomise, residual

import keras_nisp as kn

# A Keras bug gives wrong biases for channels_first where filters == map width (README, limits).
FACTORS = {"channels_first": (1.6, 3.0)}


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
@pytest.mark.parametrize(("which", "noise"), [(0, 0.3), (1, 0.0), (1, 0.3)])
def test_preserve_gives_the_same_outputs(net, which, noise):
    factor = FACTORS.get(net.__name__, (1.6, 2.0))[which]
    model = randomise(net())
    if net is layer_norm and which == 0:
        with pytest.raises(ValueError, match=r"'layer_normalization.*' takes statistics"):
            kn.widen(model, factor, init="preserve")
        return
    wide = kn.widen(model, factor, init="preserve", noise=noise)
    assert wide.count_params() > model.count_params()
    x = example_inputs(model)
    for a, b in zip(*map(keras.tree.flatten, (model(x), wide(x))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())


@pytest.mark.parametrize("net", [n for n in NETS if n is not layer_norm], ids=lambda n: n.__name__)
def test_there_and_back(net):
    """Copies put into clusters with their originals merge into the model they came from."""
    model = randomise(net())
    wide = kn.widen(model, FACTORS.get(net.__name__, (0, 2.0))[1], init="preserve")
    plan = kn.plan_merging(wide, widths=model)
    small = kn.rebuild(wide, plan, verbose=0)  # k-means finds the copies, which are identical
    assert small.count_params() == model.count_params()
    x = example_inputs(model)
    for a, b in zip(*map(keras.tree.flatten, (model(x), small(x))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())


def test_widths_and_limits():
    model = plain()
    wide = kn.widen(model, 1.6)
    assert [wide.get_layer(name).filters for name in "ab"] == [13, 20]
    assert (wide.get_layer("c").units, wide.get_layer("head").units) == (16, 5)
    some = kn.widen(model, {"a": 2.0, "c": 1.5})
    assert [some.get_layer(name).filters for name in "ab"] == [16, 12]
    assert some.get_layer("c").units == 15
    without = kn.widen(model, 2.0, exclude="a")
    assert [without.get_layer(name).filters for name in "ab"] == [8, 24]
    coupled = kn.widen(residual(), 2.0, exclude=["outer0"])
    assert [coupled.get_layer(n).filters for n in ("stem", "inner0", "outer1")] == [8, 12, 8]


def test_fresh_weights_are_fresh():
    model = randomise(plain())
    keras.utils.set_random_seed(1)
    first, second = kn.widen(model, 2.0), kn.widen(model, 2.0)
    kernels = [np.asarray(net.get_layer("a").kernel) for net in (first, second)]
    assert not np.allclose(*kernels)
    # Spread as the initializer does it for this width, not for the old one.
    bound = np.sqrt(6 / (9 * 3 + 9 * 16))
    assert 0.9 * bound < np.abs(kernels[0]).max() <= bound


def test_noise_breaks_the_symmetry():
    """Without it copies stay equal in training; with it they part."""

    def spread(noise):
        model = randomise(plain())
        model.compile("sgd", "mse", jit_compile=False)
        wide = kn.widen(model, 2.0, init="preserve", noise=noise)
        plan = kn.plan_merging(wide, widths=model)
        rng = np.random.default_rng(0)
        next(x for x in wide.layers if isinstance(x, layers.Dropout)).rate = 0.0
        wide.fit(rng.normal(size=(64, 9, 9, 3)), rng.normal(size=(64, 5)), epochs=5, verbose=0)
        return kn.deviation(wide, plan).relative

    assert spread(0.0) < 1e-5 < 1e-3 < spread(0.5)


def test_compile_configuration_goes_along():
    model = plain()
    model.compile(keras.optimizers.Adam(0.02), "mse", jit_compile=False, metrics=["mae"])
    wide = kn.widen(model, 1.5)
    assert float(wide.optimizer.learning_rate) == pytest.approx(0.02)
    assert wide.name == model.name


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"factor": 0.5}, ValueError, "`factor` of at least 1"),
        ({"factor": "big"}, TypeError, "`factor` to be a number"),
        ({"factor": float("inf")}, ValueError, "`factor`"),
        ({"factor": {"nothing": 2.0}}, ValueError, "'nothing'"),
        ({"factor": 2.0, "init": "copy"}, ValueError, "`init`"),
        ({"factor": 2.0, "noise": 0.1}, ValueError, "init='preserve' only"),
        ({"factor": 2.0, "init": "preserve", "noise": -1}, ValueError, "`noise`"),
    ],
)
def test_wrong_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        kn.widen(plain(), **arguments)


def test_layer_names_stay():
    model = residual()
    wide = kn.widen(model, 2.0)
    assert [x.name for x in wide.layers] == [x.name for x in model.layers]
