"""NISP against matrices written down by hand and against explicit |W| propagation."""

import keras
import numpy as np
import pytest
from keras import layers
from nets import NETS, example_inputs, randomise

import keras_nisp as kn
from keras_nisp.importance.final_response import collect_responses, find_final_responses
from keras_nisp.importance.nisp import Ranking, propagate


def ranking(channel_map, scores):
    (final,) = find_final_responses(channel_map)
    return Ranking(final, np.unique(final.tensor.names), np.asarray(scores, float))


def of_layer(channel_map, scores, path):
    (creator,) = [c for c in channel_map.creators if c.layer == path]
    return scores[creator.units]


def relative(values):
    return np.asarray(values) / np.mean(values)


def chain():
    """3 -> 3 -> 2 -> 1, with weights small enough to multiply in the head."""
    model = keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(3, activation="relu", name="a"),
            layers.Dense(2, activation="tanh", name="b"),
            layers.Dense(1, name="head"),
        ]
    )
    model.get_layer("b").kernel.assign([[1.0, -2.0], [-3.0, 0.5], [0.0, 4.0]])
    return model


def test_chain_by_hand():
    channel_map = kn.trace(chain())
    scores = propagate(channel_map, [ranking(channel_map, [2.0, 1.0])])
    np.testing.assert_allclose(of_layer(channel_map, scores, "b"), relative([2, 1]))
    # |W| s = [1*2 + 2*1, 3*2 + .5*1, 0*2 + 4*1]
    np.testing.assert_allclose(of_layer(channel_map, scores, "a"), relative([4, 6.5, 4]), rtol=1e-6)


def test_pruned_scores_are_not_propagated():
    channel_map = kn.trace(chain())
    rank = ranking(channel_map, [2.0, 1.0])
    removed = np.zeros(channel_map.count, bool)
    removed[channel_map.creators[1].units[1]] = True
    scores = propagate(channel_map, [rank], removed)
    # Its own score stays: it is what says that it goes.
    np.testing.assert_allclose(of_layer(channel_map, scores, "b"), relative([2, 1]))
    np.testing.assert_allclose(of_layer(channel_map, scores, "a"), relative([2, 6, 0]), rtol=1e-6)


def test_the_papers_rule_changes_the_plan():
    """Half of b goes (its second unit), so the third unit of a feeds nothing that stays."""
    model, x = chain(), np.random.default_rng(0).normal(size=(50, 2))
    calls = []

    class FixedRanks(kn.NISP):
        def rank(self, channel_map):
            calls.append(1)
            return [ranking(channel_map, [2.0, 1.0])]

    further = kn.plan_pruning(model, FixedRanks(x), ratio=0.4)
    paper = kn.plan_pruning(model, FixedRanks(x, propagate_pruned=False), ratio=0.4)
    assert further.creators[1].removed == paper.creators[1].removed == (1,)
    assert paper.creators[0].removed == (2,)
    assert further.creators[0].removed == (0,)  # a tie of 4 and 4, the first goes
    assert len(calls) == 2  # responses are ranked once


ENDINGS = {
    "masked": (["x"], lambda x, y: layers.GRU(4, return_sequences=True)(layers.Masking()(x))),
    "both directions": (["x"], lambda x, y: layers.Bidirectional(layers.LSTM(3))(x)),
    "a state": (
        ["x", "state"],
        lambda x, y: layers.GRU(4)(
            x, layers.Dense(4, name="state")(layers.GlobalMaxPooling1D()(y))
        ),
    ),
    "attention to itself": (
        ["x"],
        lambda x, y: layers.MultiHeadAttention(2, 3, output_shape=2)(x, x),
    ),
    "attention": (["x", "y"], lambda x, y: layers.MultiHeadAttention(2, 3, output_shape=2)(x, y)),
    "each step": (["x"], lambda x, y: layers.TimeDistributed(layers.Dense(3))(x)),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_what_the_last_layers_read(name):
    """Layers with several inputs, or inside of wrappers."""
    read, ending = ENDINGS[name]
    inputs = keras.Input((5, 3))
    x = layers.Conv1D(8, 3, padding="same", activation="relu", name="x")(inputs)
    y = layers.Conv1D(6, 3, padding="same", name="y")(inputs)
    model = randomise(keras.Model(inputs, ending(x, y)))
    data = kn.NISP(np.random.default_rng(0).normal(size=(24, 5, 3)).astype("float32"))
    channel_map = kn.trace(model)
    finals = find_final_responses(channel_map)
    wanted = [c.units.tolist() for c in channel_map.creators if c.layer in read]
    found = [np.unique(final.tensor.names).tolist() for final in finals]
    assert sorted(found) == sorted(map(sorted, wanted))
    for importance in (data, kn.NISPMag()):
        scores = importance(channel_map)
        assert all(np.isfinite(scores[units]).all() for units in wanted)
    # Each sample counts once, however often a layer reads the tensor.
    samples = data.calibration.samples(model)
    units, responses = collect_responses(channel_map, finals[0], samples.batches())
    assert responses.shape == (24 * finals[0].tensor.batch, len(units))


def brute_force_net():
    inputs = keras.Input((6, 6, 2))
    a = layers.Conv2D(4, 3, padding="same", name="a")(inputs)
    a = layers.BatchNormalization(name="bn")(a)
    a = layers.ReLU()(a)
    b = layers.Conv2D(4, 3, strides=1, padding="same", name="b")(a)
    x = layers.Add()([a, b])
    pooled = layers.MaxPooling2D(2, name="max")(x)
    averaged = layers.AveragePooling2D(3, 2, padding="same", name="avg")(x)
    x = layers.Concatenate()([pooled, averaged])
    x = layers.Conv2D(5, 2, name="c")(x)
    x = layers.Flatten()(x)
    x = layers.Dense(6, activation="relu", name="frl")(x)
    return randomise(keras.Model(inputs, layers.Dense(3, name="head")(x)))


def matrix_of(function, shape):
    """The matrix of a linear function of one sample, column by column."""
    basis = np.eye(int(np.prod(shape)), dtype="float32").reshape(-1, *shape)
    return np.asarray(function(basis)).reshape(len(basis), -1).T.astype(np.float64)


def absolute_matrix(layer, shape):
    """|W| of a layer as an explicit matrix over flattened maps."""
    config = {**layer.get_config(), "use_bias": False, "activation": None}
    copy = type(layer).from_config(config)
    copy.build((None, *shape))
    copy.set_weights([np.abs(layer.get_weights()[0])])
    return matrix_of(copy, shape)


def window_matrix(size, stride, channels, window, padding_before, average):
    """Pooling: 1 for each cell of a window, or one over the number of its cells."""
    length = -(-size // stride)
    matrix = np.zeros((length, length, channels, size, size, channels))
    for i in range(length):
        for j in range(length):
            rows = [
                r for r in range(i * stride - padding_before, i * stride - padding_before + window)
            ]
            columns = [
                c for c in range(j * stride - padding_before, j * stride - padding_before + window)
            ]
            cells = [(r, c) for r in rows for c in columns if 0 <= r < size and 0 <= c < size]
            for r, c in cells:
                for k in range(channels):
                    matrix[i, j, k, r, c, k] = 1 / len(cells) if average else 1
    return matrix.reshape(length * length * channels, -1)


def test_equals_explicit_matrices():
    """Conv, BN, Add, max and average pooling, Concatenate, Flatten and Dense."""
    model = brute_force_net()
    layer = model.get_layer
    s = np.array([3.0, 1, 4, 1, 5, 9])
    dense = np.abs(layer("frl").get_weights()[0].astype(np.float64))
    c = absolute_matrix(layer("c"), (3, 3, 8))
    pool = np.stack(
        [
            window_matrix(6, 2, 4, 2, 0, False).reshape(9, 4, -1),
            # 6 -> 3 with window 3 and stride 2 pads one row at the end.
            window_matrix(6, 2, 4, 3, 0, True).reshape(9, 4, -1),
        ],
        1,
    ).reshape(9 * 8, -1)
    gamma, variance = layer("bn").gamma.numpy(), layer("bn").moving_variance.numpy()
    assert min(gamma.min(), variance.min()) > 0
    b = absolute_matrix(layer("b"), (6, 6, 4))

    at_c_output = dense @ s
    at_c_input = c.T @ at_c_output
    at_sum = pool.T @ at_c_input
    at_b_input = b.T @ at_sum

    channel_map = kn.trace(model)
    scores = propagate(channel_map, [ranking(channel_map, s)])
    per_channel = at_c_output.reshape(-1, 5).sum(0)
    np.testing.assert_allclose(of_layer(channel_map, scores, "c"), relative(per_channel), rtol=1e-5)
    # The names of a and b are one: read by c (through both pools) and by b.
    edges = at_c_input.reshape(9, 2, 4).sum((0, 1)) + at_b_input.reshape(36, 4).sum(0)
    np.testing.assert_allclose(of_layer(channel_map, scores, "a"), relative(edges), rtol=1e-5)
    np.testing.assert_allclose(of_layer(channel_map, scores, "frl"), relative(s), rtol=1e-6)


def test_batch_norm_weighs_by_gamma_over_deviation():
    inputs = keras.Input((3,))
    x = layers.Dense(4, name="a")(inputs)
    x = layers.Dense(2, name="b")(layers.BatchNormalization(name="bn")(x))
    x = layers.Dense(2, name="head")(layers.BatchNormalization(name="bn2", epsilon=0.0)(x))
    model = randomise(keras.Model(inputs, x))
    model.get_layer("bn2").gamma.assign([-2.0, 3.0])
    model.get_layer("bn2").moving_variance.assign([4.0, 0.25])
    channel_map = kn.trace(model)
    scores = propagate(channel_map, [ranking(channel_map, [1.0, 1.0])])
    kernel = np.abs(model.get_layer("b").get_weights()[0])
    expected = kernel @ [2 / 2, 3 / 0.5]
    np.testing.assert_allclose(of_layer(channel_map, scores, "a"), relative(expected), rtol=1e-5)


def test_scale_of_weights_does_not_overflow():
    """60 layers whose |W| multiply far beyond float32, with the same ranks as unscaled."""

    def deep(factor):
        x = inputs = keras.Input((8,))
        for i in range(60):
            x = layers.Add()([x, layers.Dense(8, name=f"d{i}")(x)])
        model = randomise(keras.Model(inputs, layers.Dense(2)(layers.Dense(8, name="out")(x))))
        for i in range(60):
            kernel = model.get_layer(f"d{i}").kernel
            kernel.assign(kernel * factor)
        channel_map = kn.trace(model)
        return propagate(channel_map, [ranking(channel_map, np.arange(1.0, 9))]), channel_map

    scores, channel_map = deep(1e4)
    assert np.isfinite(scores[channel_map.free]).all()
    assert np.ptp(scores[channel_map.free]) > 0.01


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_absolute_network_is_linear_and_scores_every_channel(net):
    model = randomise(net())
    if net.__name__ == "transposed":
        importance = kn.NISP(example_inputs(model), frl="mix")
    else:
        importance = kn.NISP(example_inputs(model, 16))
    channel_map = kn.trace(model)
    scores = importance(channel_map)
    for group in channel_map.groups:
        assert np.isfinite(scores[group.units]).all()
        assert (scores[group.units] >= 0).all()
        assert scores[group.units].mean() == pytest.approx(1)


def test_final_response_is_found_and_can_be_named():
    model = brute_force_net()
    channel_map = kn.trace(model)
    (final,) = find_final_responses(channel_map)
    assert final.classifier.path == "head"
    (named,) = find_final_responses(channel_map, "frl")
    assert named.tensor is channel_map.calls[-1].inputs[0]


def test_convolutional_classifier():
    """MobileNet's: pooling that keeps dimensions, a 1x1 convolution, a reshape, a softmax."""
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, name="features")(inputs)
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Conv2D(4, 1, name="classifier")(layers.Dropout(0.1)(x))
    x = layers.Activation("softmax")(layers.Reshape((4,))(x))
    channel_map = kn.trace(keras.Model(inputs, x))
    (final,) = find_final_responses(channel_map)
    assert final.classifier.path == "classifier"


def test_no_final_response():
    inputs = keras.Input((4, 2))
    x = layers.Dense(5)(inputs)
    model = keras.Model(inputs, layers.Attention()([layers.Dense(3)(x), layers.Dense(3)(x)]))
    with pytest.raises(kn.NoFinalResponseLayerError, match="frl='layer_name'"):
        kn.plan_pruning(model, kn.NISP(np.ones((3, 4, 2))), ratio=0.5)
    with pytest.raises(kn.NoFinalResponseLayerError, match="no layer 'nothing'"):
        kn.plan_pruning(chain(), kn.NISP(np.ones((3, 2)), frl="nothing"), ratio=0.5)


def test_outputs_put_together_from_parts_have_a_final_response_each():
    """A head that is shared by two levels, as in detectors."""
    inputs = keras.Input((8, 8, 3))
    fine = layers.Conv2D(6, 1, name="stem")(inputs)
    hidden, head = layers.Conv2D(4, 1, name="hidden"), layers.Conv2D(2, 1, name="head")
    parts = [layers.Reshape((-1, 2))(head(hidden(x))) for x in (fine, layers.MaxPooling2D()(fine))]
    model = keras.Model(inputs, layers.Concatenate(1)(parts))
    plan = kn.plan_pruning(model, kn.NISP(np.random.rand(8, 8, 8, 3)), ratio=0.5)
    assert [row.kept for row in plan.creators] == [3, 2, 2]
    named = kn.NISP(np.random.rand(8, 8, 8, 3), frl=["stem", "hidden"])
    assert kn.plan_pruning(model, named, ratio=0.5).creators[0].kept == 3


@pytest.mark.parametrize("kind", [np.asarray, keras.ops.convert_to_tensor])
def test_constant_factors_count_by_their_absolute_value(kind):
    inputs = keras.Input((3,))
    x = layers.Dense(4, name="a")(inputs)
    x = layers.Dense(4, name="b")(x) * kind(np.array([1, -10, 0.5, 4], "float32"))
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.Dense(5)(x)))
    for weight in model.weights:
        weight.assign(np.ones(weight.shape))
    model.get_layer("b").kernel.assign(np.eye(4))
    channel_map = kn.trace(model)
    scores = of_layer(channel_map, kn.NISPMag()(channel_map), "a")
    np.testing.assert_allclose(scores, relative([1, 10, 0.5, 4]))


def test_hidden_units_are_read_by_the_layer_behind_and_by_themselves(rng):
    inputs = keras.Input((3, 2))
    x = layers.LSTM(4, name="lstm")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.Dense(3, name="a")(x)))
    channel_map = kn.trace(model)
    scores = kn.NISPMag()(channel_map)
    kernels = {layer.name: np.abs(layer.get_weights()[0]) for layer in model.layers[1:]}
    final = kernels["head"].sum(1)
    behind = kernels["a"] @ final
    recurrent = np.abs(model.get_layer("lstm").get_weights()[1]).reshape(4, 4, 4).sum(1)
    expected = relative(behind + recurrent @ behind)
    np.testing.assert_allclose(of_layer(channel_map, scores, "lstm"), expected, rtol=1e-5)


def test_attention_by_hand(rng):
    """Two heads of three key and two value channels; even attention over one position."""
    inputs = keras.Input((1, 5))
    x = layers.MultiHeadAttention(2, 3, value_dim=2, use_bias=False, name="mha")(inputs, inputs)
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))
    query, _, value, output = map(np.abs, model.get_layer("mha").get_weights())
    channel_map = kn.trace(model)
    scores = kn.NISPMag()(channel_map)
    final = np.abs(model.get_layer("head").get_weights()[0]).sum(1)
    arriving = output @ final  # (heads, value channels)
    ranked = {
        "heads": arriving.sum(1),
        "value": arriving.sum(0),
        # The query stands for the weights of the key channels, the values for those of a product.
        "key": query.sum(0).T @ (arriving * value.sum(0)).sum(1),
    }
    for label, expected in ranked.items():
        received = of_layer(channel_map, scores, f"mha:{label}")
        np.testing.assert_allclose(received, relative(expected), rtol=1e-5)


def test_dot_product_takes_the_other_factor_for_weights():
    inputs = keras.Input((1, 3))
    a = layers.Dense(3, use_bias=False, name="a")(inputs)
    b = layers.Dense(3, use_bias=False, name="b")(inputs)
    x = layers.Dense(4)(layers.Dot(2)([a, b]))
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    first, second = (np.abs(model.get_layer(n).get_weights()[0]).sum(0) for n in "ab")
    channel_map = kn.trace(model)
    expected = relative(second / second.mean() + first / first.mean())
    received = of_layer(channel_map, kn.NISPMag()(channel_map), "a")
    np.testing.assert_allclose(received, expected, rtol=1e-5)


def test_nisp_mag_sums_absolute_classifier_weights():
    model = chain()
    model.get_layer("head").kernel.assign([[-3.0], [1.0]])
    channel_map = kn.trace(model)
    scores = kn.NISPMag()(channel_map)
    np.testing.assert_allclose(of_layer(channel_map, scores, "b"), relative([3, 1]))
    np.testing.assert_allclose(
        of_layer(channel_map, scores, "a"), relative([3 + 2, 9 + 0.5, 4]), rtol=1e-6
    )


def test_counted_words_are_no_responses():
    """A sentence encoder: the mean of what is made of its words, by their number."""
    words = keras.Input((6,), dtype="int32")
    known = keras.ops.cast(words > 0, "int32")
    x = layers.Dense(8, activation="relu", name="hidden")(layers.Embedding(9, 4)(words))
    x = layers.Dense(5, name="head")(x) * keras.ops.expand_dims(keras.ops.cast(known, x.dtype), 2)
    mean = keras.ops.sum(x, 1) / keras.ops.cast(keras.ops.sum(known, 1, keepdims=True), x.dtype)
    channel_map = kn.trace(keras.Model(words, mean))
    assert [final.classifier.path for final in find_final_responses(channel_map)] == ["head"]
    x = np.random.default_rng(0).integers(0, 9, (80, 6))
    assert kn.plan_pruning(channel_map.model, kn.NISP(x), ratio=0.5).creators[1].kept == 4
