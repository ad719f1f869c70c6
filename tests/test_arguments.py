"""Arguments of the wrong kind, or out of range, have errors that name them."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_nisp as kn

X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")


@pytest.fixture(scope="module")
def dense():
    return keras.Sequential([keras.Input((4,)), layers.Dense(8, name="a"), layers.Dense(3)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kn.NISP(X, frl=3), "`frl` to be the name of a layer"),
        (lambda: kn.NISP(X, frl=[]), "`frl` to be the name of a layer"),
        (lambda: kn.NISP(X, frl=layers.ReLU()), "`frl` to be the name of a layer"),
        (lambda: kn.NISP(X, alpha="a"), "`alpha` to be a number"),
        (lambda: kn.inf_fs(X, alpha="a"), "`alpha` to be a number"),
        (lambda: kn.OptimalBrainSurgeon(X, ridge="a"), "`ridge` to be a number above 0"),
        (lambda: kn.OptimalBrainSurgeon(X, ridge=np.inf), "`ridge` to be a number above 0"),
        (lambda: kn.SynFlow(np.inf), "`steps` to be a number that is whole"),
        (lambda: kn.Magnitude(True), "`p` to be a number above 0"),
        (lambda: kn.PolynomialSchedule("a", 0, 5), "`final` to be a number"),
        (lambda: kn.PolynomialSchedule(0.5, "a", 5), "`begin_step` to be a number that is whole"),
        (lambda: kn.PolynomialSchedule(0.5, 0, 5.5), "`end_step` to be a number that is whole"),
        (lambda: kn.PolynomialSchedule(0.5, 0, 5, power="a"), "`power` to be a number above 0"),
        (lambda: kn.NISPPruner(X, ratio=0.5, schedule=kn.PolynomialSchedule), "be a function"),
    ],
)
def test_settings(call, message):
    with pytest.raises((TypeError, ValueError), match=f"Expected .*{message}"):
        call()


@pytest.mark.parametrize("shape", [6, "ab", (-1, 4), (2.5, 4), ("a", 4), [3, [4]]])
def test_input_shape(shape):
    model = keras.Sequential([keras.Input((None, 4)), layers.Dense(8), layers.Dense(3)])
    for call in (kn.trace, kn.profile, kn.as_functional):
        with pytest.raises(ValueError, match="`input_shape` to be the shape of one sample"):
            call(model, input_shape=shape)
    with pytest.raises(ValueError, match=r"`input_shape` to fit .*Received: \(\)"):
        kn.trace(model, ())
    assert kn.trace(model, np.array([5, 4])).input_shapes == [(5, 4)]


def test_names_of_layers(dense):
    with pytest.raises(TypeError, match="`whole_groups` to be the name or pattern"):
        kn.trace(dense, whole_groups=3)
    plan = kn.plan_pruning(dense, kn.Magnitude(), ratio=0.5)
    with pytest.raises(TypeError, match="`layer` to be the name of a layer"):
        plan.explain(dense.layers[0])


@pytest.mark.parametrize("tolerance", [-1, np.nan, "a"])
def test_tolerance(dense, tolerance):
    plan = kn.plan_pruning(dense, kn.Magnitude(), ratio=0.5)
    with pytest.raises((TypeError, ValueError), match="`tolerance` to be a number of at least 0"):
        kn.verify(kn.rebuild(dense, plan), dense, plan, tolerance=tolerance)


@pytest.mark.parametrize("answer", [None, "a", (1, 2, 3), (True, None)])
def test_answers_of_schedules(answer):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.Dense(3)])
    model.compile("sgd", "mse")
    pruner = kn.NISPPruner(
        importance=kn.Magnitude(), ratio=0.5, schedule=lambda step: answer, verbose=0
    )
    with pytest.raises(TypeError, match="schedule to give an amount"):
        model.fit(X, X[:, :3], verbose=0, callbacks=[pruner])
