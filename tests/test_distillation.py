"""Fine-tuning with the original as the teacher."""

import keras
import numpy as np
import pytest
from keras import layers
from scipy.special import rel_entr, softmax

import keras_nisp as kn

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(64, 6)).astype("float32"), RNG.integers(3, size=64)


def network(activation=None):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(12, name="hidden"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dense(3, activation=activation, name="classes"),
        ]
    )
    model.get_layer("classes").kernel.assign(RNG.normal(size=(12, 3)))
    return model


def halved(model):
    return kn.rebuild(model, kn.plan_pruning(model, kn.Magnitude(), ratio=0.5))


def compiled(teaching, from_logits=True):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits)
    teaching.compile(keras.optimizers.SGD(0.05), loss, jit_compile=False)
    return teaching


@pytest.mark.parametrize("ending", [None, "softmax"])
def test_loss_by_hand(ending):
    """KL divergence of softened predictions times temperature squared, from logits and softmax."""
    model = network(ending)
    small, temperature = halved(model), 3.0
    teaching = compiled(kn.distiller(small, model, temperature, 0.0), from_logits=not ending)
    logits = [np.asarray(net(X)) for net in (model, small)]
    if ending:
        logits = [np.log(p) for p in logits]
    teacher, student = (softmax(z / temperature, axis=-1) for z in logits)
    expected = temperature**2 * rel_entr(teacher, student).sum(-1).mean()
    measured = teaching.compute_loss(X, Y, small(X), training=False)
    np.testing.assert_allclose(float(measured), expected, rtol=1e-4)


def test_small_learns_and_the_original_is_left_alone():
    model = network()
    small = halved(model)
    before = [np.array(w) for w in model.get_weights()]
    start = [np.array(w) for w in small.get_weights()]
    teaching = compiled(kn.distiller(small, model, student_loss_weight=0.0))
    history = teaching.fit(X, Y, epochs=30, verbose=0).history["distillation_loss"]
    assert history[-1] < 0.5 * history[0]
    assert min(history) > 0  # a divergence is
    assert model.trainable
    assert halved(model).trainable_weights  # what is pruned later can be trained, too
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert not all(np.array_equal(a, b) for a, b in zip(start, small.get_weights(), strict=True))


def test_it_is_saved(tmp_path):
    model = network("softmax")
    teaching = compiled(kn.distiller(halved(model), model), from_logits=False)
    teaching.fit(X, Y, verbose=0)
    teaching.save(tmp_path / "teaching.keras")
    loaded = keras.models.load_model(tmp_path / "teaching.keras", compile=False)
    np.testing.assert_allclose(loaded(X), teaching(X), rtol=1e-6)
    assert loaded.distillation_losses[0].probabilities


def test_bad_input():
    model = network()
    wide = keras.Sequential([keras.Input((6,)), layers.Dense(400)])
    with pytest.raises(ValueError, match="output shapes"):
        kn.distiller(halved(model), wide)
    two = keras.Model(model.inputs, [model.outputs[0], model.outputs[0]])
    with pytest.raises(ValueError, match="one output"):
        kn.distiller(two, two)
    with pytest.raises(ValueError, match="temperature must be positive"):
        kn.distiller(halved(model), model, temperature=0)


@pytest.mark.parametrize(("count", "ending"), [(1, None), (1, "sigmoid"), (3, "sigmoid")])
def test_what_is_no_distribution_over_classes_is_refused(count, ending):
    """A softmax of it would say nothing: of one logit it is always 1."""
    inputs = keras.Input((6,))
    hidden = layers.Dense(4)(inputs)
    model = keras.Model(inputs, layers.Dense(count, activation=ending)(hidden), name="tagger")
    with pytest.raises(ValueError, match="'tagger', whose output"):
        kn.distiller(halved(model), model)


@pytest.mark.parametrize("loss", ["mse", keras.losses.BinaryCrossentropy(from_logits=True)])
def test_losses_that_know_of_no_distribution_over_classes_are_refused(loss):
    model = network()
    model.compile("sgd", loss)
    with pytest.raises(ValueError, match="no distribution over classes"):
        kn.distiller(halved(model), model)


def test_classes_along_another_axis_are_refused():
    inputs = keras.Input((5, 6))
    model = keras.Model(inputs, layers.Softmax(axis=1)(layers.Dense(3)(layers.Dense(4)(inputs))))
    with pytest.raises(ValueError, match="classes along the last axis"):
        kn.distiller(halved(model), model)


def test_models_that_end_differently_are_refused():
    logits, softmax_ = network(), network("softmax")
    with pytest.raises(ValueError, match=r"ends in logits, .* in softmax"):
        kn.distiller(halved(softmax_), logits)
    nested = keras.Sequential([keras.Input((6,)), network("softmax")])
    kn.distiller(halved(softmax_), nested)  # a softmax inside a nested model is seen


def test_subclassed_models_are_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(TypeError, match="subclassed"):
        kn.distiller(Own(), network())
