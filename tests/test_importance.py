"""One conformance suite over all importances, and a figure by hand for each."""

import keras
import numpy as np
import pytest
from keras import layers
from nets import example_inputs, plain, randomise, residual

import keras_nisp as kn
from keras_nisp.importance.inf_fs import inf_fs


def labelled(model, count=32):
    labels = np.random.default_rng(1).integers(0, model.output_shape[-1], count)
    return example_inputs(model, count), labels


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
IMPORTANCES = {
    "NISP": lambda model: kn.NISP(example_inputs(model, 32)),
    "NISP, paper's rule": lambda model: kn.NISP(example_inputs(model, 32), propagate_pruned=False),
    "NISPMag": lambda model: kn.NISPMag(),
    "LayerByLayer": lambda model: kn.LayerByLayer(example_inputs(model, 32)),
    "Magnitude": lambda model: kn.Magnitude(),
    "BNScale": lambda model: kn.BNScale(),
    "Taylor": lambda model: kn.Taylor(labelled(model), LOSS),
    "GeometricMedian": lambda model: kn.GeometricMedian(),
    "LRP": lambda model: kn.LRP(example_inputs(model, 32)),
    "SynFlow": lambda model: kn.SynFlow(),
    "SynFlow in steps": lambda model: kn.SynFlow(steps=5),
    "OptimalBrainSurgeon": lambda model: kn.OptimalBrainSurgeon(example_inputs(model, 32)),
    "Random": lambda model: kn.Random(3),
    "callable": lambda model: lambda channel_map: np.arange(channel_map.count),
}


@pytest.mark.parametrize(
    ("net", "allocation"), [(plain, "uniform"), (residual, "uniform"), (residual, "global")]
)
@pytest.mark.parametrize("name", IMPORTANCES)
def test_conformance(net, name, allocation):
    model = randomise(net())
    before = [w.numpy().copy() for w in model.weights]
    importance = IMPORTANCES[name](model)
    plan = kn.plan_pruning(model, importance, ratio=0.4, allocation=allocation)
    assert sum(len(c.removed) for c in plan.creators) > 0
    assert kn.plan_pruning(model, importance, ratio=0.4, allocation=allocation) == plan
    assert kn.verify(kn.rebuild(model, plan), model, plan).ok
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    if name != "callable":
        channel_map = kn.trace(model)
        scores = importance(channel_map)
        assert scores.shape == (channel_map.count,)
        assert not np.isinf(scores).any()


def two_layers():
    model = keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(3, use_bias=False, name="a"),
            layers.BatchNormalization(name="bn"),
            layers.Dense(1, use_bias=False, name="head"),
        ]
    )
    model.get_layer("a").kernel.assign([[3.0, 0, 1], [-4.0, 1, 1]])
    model.get_layer("bn").gamma.assign([0.5, -2, 1])
    model.get_layer("head").kernel.assign([[1.0], [2], [-1]])
    channel_map = kn.trace(model)
    return model, channel_map, channel_map.creators[0].units


@pytest.mark.parametrize("importance", [kn.Magnitude, kn.Random, kn.SynFlow, kn.NISPMag])
def test_importances_by_weights_take_no_data(importance):
    with pytest.raises(TypeError, match=r"Expected `\w+` to be.*ndarray.*`calibration=`"):
        importance(np.ones((8, 4), "float32"))


def test_magnitude_by_hand():
    _, channel_map, a = two_layers()
    np.testing.assert_allclose(kn.Magnitude(1)(channel_map)[a], [7, 1, 2])
    np.testing.assert_allclose(kn.Magnitude(2)(channel_map)[a], [5, 1, 2**0.5])


def test_bn_scale_by_hand():
    _, channel_map, a = two_layers()
    np.testing.assert_allclose(kn.BNScale()(channel_map)[a], [0.5, 2, 1])


def test_geometric_median_by_hand():
    _, channel_map, a = two_layers()
    # Filters (3, -4), (0, 1), (1, 1): distances sqrt(34), sqrt(29) and 1.
    expected = [34**0.5 + 29**0.5, 34**0.5 + 1, 29**0.5 + 1]
    np.testing.assert_allclose(kn.GeometricMedian()(channel_map)[a], expected)


def test_taylor_by_hand():
    model, channel_map, a = two_layers()
    x, y = np.array([[1.0, 0.0], [0.0, 2.0]]), np.zeros((2, 1))
    scores = kn.Taylor((x, y), "mean_squared_error")(channel_map)
    hidden = x @ model.get_layer("a").kernel.numpy() * [0.5, -2, 1] / np.sqrt(1 + 1e-3)
    head = model.get_layer("head").kernel.numpy()
    gradient = 2 * (hidden @ head) * head.T
    np.testing.assert_allclose(scores[a], np.abs(gradient * hidden).mean(0), rtol=1e-5)


def test_taylor_takes_the_loss_of_the_model():
    model, channel_map, _ = two_layers()
    x, y = np.ones((4, 2)), np.zeros((4, 1))
    with pytest.raises(ValueError, match="not compiled"):
        kn.Taylor((x, y))(channel_map)
    model.compile("sgd", "mse", jit_compile=False)
    expected = kn.Taylor((x, y), "mse")(channel_map)
    np.testing.assert_allclose(kn.Taylor((x, y))(channel_map), expected, rtol=1e-5)
    with pytest.raises(TypeError, match="labels"):
        kn.Taylor(x)(channel_map)


def test_taylor_leaves_what_fit_shows():
    """The means of the losses of several outputs took its batches in, too."""
    inputs = keras.Input((4,))
    h = layers.Dense(6)(inputs)
    model = keras.Model(inputs, {"a": layers.Dense(2)(h), "b": layers.Dense(3)(h)})
    model.compile("sgd", {"a": "mse", "b": "mae"}, jit_compile=False)
    x, y = np.ones((32, 4)), {"a": np.ones((32, 2)), "b": np.ones((32, 3))}
    model.train_on_batch(x, y)
    shown = model.get_metrics_result()
    kn.plan_pruning(model, kn.Taylor((10 * x, y)), ratio=0.5)
    assert model.get_metrics_result() == shown


def test_layer_by_layer_ranks_each_layers_own_responses():
    model, channel_map, a = two_layers()
    x = np.random.default_rng(0).normal(size=(40, 2)).astype("float32")
    responses = np.asarray(model.get_layer("bn")(model.get_layer("a")(x)))
    expected = kn.inf_fs(responses)
    np.testing.assert_allclose(kn.LayerByLayer(x)(channel_map)[a], expected, rtol=1e-4)


def test_coupled_layers_are_summed():
    inputs = keras.Input((2,))
    a, b = layers.Dense(3, name="a"), layers.Dense(3, name="b")
    model = keras.Model(inputs, layers.Dense(1)(layers.Add()([a(inputs), b(inputs)])))
    a.kernel.assign(np.ones((2, 3)))
    b.kernel.assign([[1.0, 2, 3], [0, 0, 0]])
    channel_map = kn.trace(model)
    scores = kn.Magnitude()(channel_map)
    np.testing.assert_allclose(scores[channel_map.creators[0].units], [3, 4, 5])


def test_groups_without_a_score_stay():
    """BNScale knows nothing of layers without BatchNorm."""
    model = randomise(plain())
    plan = kn.plan_pruning(model, kn.BNScale(), ratio=0.5)
    by_layer = {c.layer: c for c in plan.creators}
    assert by_layer["a"].kept == 4
    assert by_layer["c"].kept == 10
    assert "no score" in plan.explain("c")


def test_random_depends_on_its_seed():
    channel_map = kn.trace(plain())
    with pytest.raises(TypeError, match="an integer"):
        kn.Random(None)
    assert (kn.Random(1)(channel_map) == kn.Random(1)(channel_map)).all()
    assert (kn.Random(1)(channel_map) != kn.Random(2)(channel_map)).any()


@pytest.mark.parametrize(
    ("importance", "error", "message"),
    [
        (kn.NISP, TypeError, "call it"),
        ("nisp", TypeError, "importance"),
        (lambda channel_map: [1, 2], ValueError, "one score per unit"),
        (lambda channel_map: np.full(channel_map.count, np.inf), ValueError, "finite"),
    ],
)
def test_bad_importance(importance, error, message):
    with pytest.raises(error, match=message):
        kn.plan_pruning(plain(), importance, ratio=0.5)
    with pytest.raises(ValueError, match="`p`"):
        kn.Magnitude(0)


def test_scores_that_are_not_finite():
    model, _, a = two_layers()

    def broken(value, everywhere=False):
        def scores(channel_map):
            scores = np.arange(channel_map.count, dtype=float)
            scores[a if everywhere else a[1]] = value
            return scores

        return scores

    for importance, message in (
        (broken(np.nan), "NaN for 1 of 3 channels of 'a'"),
        (broken(np.inf), "infinity for channels of 'a'"),
        (broken(np.nan, everywhere=True), "NaN for all of them"),
    ):
        with pytest.raises(ValueError, match=message):
            kn.plan_pruning(model, importance, ratio=0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(value):
    """Whatever is to be done, the variable is named before any work."""
    model, _, _ = two_layers()
    model.get_layer("a").kernel.assign([[3.0, 0, value], [-4.0, 1, 1]])
    model.compile("sgd", "mse", jit_compile=False)
    x, y = np.ones((4, 2)), np.zeros((4, 1))
    for act in (
        lambda: kn.prune(model, kn.NISP(x), ratio=0.5),
        lambda: kn.plan_pruning(model, kn.Magnitude(), ratio=0.5),
        lambda: kn.plan_merging(model, ratio=0.5),
        lambda: kn.sensitivity(model, kn.Magnitude(), (x, y)),
        lambda: model.fit(x, y, verbose=0, callbacks=[kn.NISPPruner(x, ratio=0.5)]),
    ):
        with pytest.raises(ValueError, match=r"1 of 6 values of .*a/kernel"):
            act()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, 2, 9]), "from 0 to 9"),
        (np.array([0, -1, 2, 1]), "from -1 to 2"),
        (np.zeros((3, 2, 2)), "one length|labels of shape"),
        (np.array([0, 1, np.nan, 1]), "labels. Received NaN or infinity in 1 of 4"),
    ],
)
def test_labels_that_do_not_fit(labels, message):
    model = randomise(keras.Sequential([keras.Input((2,)), layers.Dense(4), layers.Dense(3)]))
    x = np.ones((len(labels), 2))
    with pytest.raises(ValueError, match=message):
        kn.plan_pruning(model, kn.Taylor((x, labels), LOSS), ratio=0.5)


def test_half_precision():
    """Sums over many positions stay finite; activations that overflow are an error."""
    model = keras.Sequential(
        [
            keras.Input((64, 64, 2)),
            layers.Conv2D(4, 1, dtype="float16"),
            layers.Conv2D(3, 1, dtype="float16"),
            layers.GlobalAveragePooling2D(dtype="float32"),
        ]
    )
    x = np.random.default_rng(0).uniform(100, 200, (4, 64, 64, 2))
    for importance in (kn.NISP(x), kn.LayerByLayer(x), kn.Taylor((x, np.zeros((4, 3))), "mse")):
        assert kn.plan_pruning(model, importance, ratio=0.5).creators[0].kept == 2
    model.layers[0].kernel.assign(np.full((1, 1, 2, 4), 1000))
    with pytest.raises(ValueError, match=r"what enters 'conv2d.*overflow"):
        kn.plan_pruning(model, kn.NISP(x), ratio=0.5)


SAME = np.ones((64, 9, 9, 3), "float32")


@pytest.mark.parametrize("importance", [kn.NISP(SAME), kn.LayerByLayer(SAME)])
def test_samples_that_are_all_alike(importance):
    model = randomise(plain())
    with pytest.raises(ValueError, match="the calibration samples or the weights are all alike"):
        kn.plan_pruning(model, importance, ratio=0.5)


@pytest.mark.parametrize("importance", [kn.Magnitude(), kn.GeometricMedian(), kn.SynFlow()])
def test_weights_that_are_all_alike(importance):
    model = plain()
    model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
    with pytest.raises(ValueError, match=r"tell channels apart.*'plain' score 0"):
        kn.plan_pruning(model, importance, ratio=0.5)


def test_a_response_that_only_rounding_moves_is_constant():
    responses = np.random.default_rng(0).normal(size=(100, 3)).astype("float32")
    responses[:, 1] = 1000 + np.arange(100) % 2 * 1e-4
    assert (inf_fs(responses) > 0).tolist() == [True, False, True]


def test_bn_scale_without_batch_normalization():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match=r"Expected BatchNormalization .* such as Magnitude\(\)"):
        kn.plan_pruning(model, kn.BNScale(), ratio=0.5)
