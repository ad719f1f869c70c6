"""Networks that add up channels by operations, through all that `prune` does."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from nets import randomise

import keras_nisp as kn


def spatial_attention():
    """CBAM: a gate on channels, then one on positions."""
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    squeeze, excite = layers.Dense(4, activation="relu"), layers.Dense(8)
    pooled = [reduce(x, axis=(1, 2), keepdims=True) for reduce in (ops.mean, ops.max)]
    x = x * ops.sigmoid(sum(excite(squeeze(vector)) for vector in pooled))
    maps = [reduce(x, axis=-1, keepdims=True) for reduce in (ops.mean, ops.max)]
    x = x * layers.Conv2D(1, 5, padding="same", activation="sigmoid")(ops.concatenate(maps, -1))
    x = layers.BatchNormalization()(layers.Conv2D(6, 3)(x))
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))


def root_mean_square():
    inputs = keras.Input((6,))
    x = layers.Dense(8)(inputs)
    x = x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + 1e-6)
    return keras.Model(inputs, layers.Dense(2)(x))


def siamese():
    """The Euclidean distance of two embeddings."""
    steps = [layers.Conv2D(6, 3, activation="relu"), layers.GlobalAveragePooling2D()]
    embed = keras.Sequential([keras.Input((6, 6, 1)), *steps, layers.Dense(8)])
    one, other = keras.Input((6, 6, 1)), keras.Input((6, 6, 1))
    squares = ops.square(embed(one) - embed(other))
    distance = ops.sqrt(ops.sum(squares, axis=1, keepdims=True) + 1e-7)
    return keras.Model([one, other], layers.Dense(1)(distance))


def distribution_focal():
    """A detector's head: boxes are means over a softmax."""
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, activation="relu")(inputs)
    boxes = layers.Reshape((-1, 4, 4))(layers.Conv2D(16, 1)(layers.Conv2D(8, 3)(x)))
    boxes = ops.matmul(ops.softmax(boxes, axis=-1), np.arange(4, dtype="float32")[:, None])
    classes = layers.Reshape((-1, 3))(layers.Conv2D(3, 1)(layers.Conv2D(8, 3)(x)))
    return keras.Model(inputs, {"boxes": boxes, "classes": classes})


def attention():
    inputs = keras.Input((6, 5))
    query, key, value = (layers.Dense(8)(inputs) for _ in range(3))
    weights = ops.softmax(ops.einsum("bqc,bkc->bqk", query, key))
    return keras.Model(inputs, layers.Dense(2)(ops.matmul(weights, value)))


CHANNELS_ADDED = [spatial_attention, root_mean_square, siamese, distribution_focal, attention]


def off(model, small, data):
    """Squared difference of all outputs."""
    outputs = (keras.tree.flatten(net(data, training=False)) for net in (model, small))
    return sum(float(np.sum((want - got) ** 2)) for want, got in zip(*outputs, strict=True))


@pytest.mark.parametrize("build", CHANNELS_ADDED)
def test_operations_that_add_up_channels(build, rng):
    model = randomise(build())
    data = [rng.normal(size=(64, *tensor.shape[1:])).astype("float32") for tensor in model.inputs]
    data = data if len(data) > 1 else data[0]
    plan = kn.plan_pruning(model, kn.NISP(data), ratio=0.5)
    assert plan.after.parameters < 0.8 * plan.before.parameters
    bare = kn.rebuild(model, plan)
    assert kn.verify(bare, model, plan, data).ok
    for compensate in ("linear", "mean"):
        settings = {"compensate": compensate, "ratio": 0.5, "verbose": 0}
        small = kn.prune(model, kn.NISP(data), calibration=data, **settings)
        assert off(model, small, data) <= off(model, bare, data)  # equal in a difference of two


def largest_of(x):
    """k-max pooling."""
    return ops.transpose(ops.top_k(ops.transpose(x, (0, 2, 1)), 2)[0], (0, 2, 1))


def first_of(x):
    """The positions with the largest sums, the same for all channels."""
    order = ops.argsort(-ops.sum(ops.abs(x), -1, keepdims=True), axis=1)
    return ops.take_along_axis(x, order[:, :2], axis=1)


def by_others(x):
    """Indices with an entry for each channel, which are none of its names."""
    index = ops.cast(layers.Dense(8, trainable=False)(ops.sum(x, -1, keepdims=True)) > 0, "int32")
    return ops.take_along_axis(x, ops.stop_gradient(index), axis=1)


def by_repeated(x):
    index = ops.argmax(ops.sum(ops.abs(x), -1), axis=1)
    index = ops.broadcast_to(index[:, None, None], (ops.shape(x)[0], 2, 8))
    return ops.take_along_axis(x, index, axis=1)


BY_VALUE = {
    "largest": largest_of,
    "first": first_of,
    "sorted": lambda x: ops.take_along_axis(x, ops.argsort(x, axis=1), axis=1),
    "constant": lambda x: ops.take_along_axis(x, np.array([[[0], [2]]]), axis=1),
    "quantile": lambda x: ops.quantile(x, 0.5, axis=1),
    "others": by_others,
}
BY_CHANNEL = {
    "depending on values": lambda x: ops.take_along_axis(x, ops.argsort(x, -1), axis=-1),
    "by an array": lambda x: ops.take_along_axis(x, np.zeros((1, 2, 8), "int32"), axis=1),
    "takes an array": lambda x: ops.quantile(x, np.array([0.5, 0.7]), axis=1)[0],
}


def taking(take):
    inputs = keras.Input((6, 4))
    x = layers.Dense(3)(take(layers.Dense(8, name="free")(inputs)))
    return randomise(keras.Model(inputs, layers.Flatten()(x)))


@pytest.mark.parametrize("take", BY_VALUE)
def test_values_may_say_which_positions_are_taken(take, rng):
    model, data = taking(BY_VALUE[take]), rng.normal(size=(32, 6, 4)).astype("float32")
    plan = kn.plan_pruning(model, kn.NISP(data), ratio=0.5)
    assert plan.creators[0].kept == 4
    assert kn.verify(kn.rebuild(model, plan), model, plan, data).ok


@pytest.mark.parametrize("take", BY_CHANNEL)
def test_values_that_say_which_channels_are_taken_hold_them(take):
    with pytest.raises(ValueError, match=f"has no channels.*'free'.*{take}"):
        kn.plan_pruning(taking(BY_CHANNEL[take]), kn.Magnitude(), ratio=0.5)


@pytest.mark.parametrize("name", ["append", "hstack"])
def test_constants_beside_channels(name, rng):
    constant = np.full((2, 3), 1.5, "float32")
    inputs = keras.Input(batch_shape=(2, 4))
    x = layers.Dense(8, name="last")(layers.Dense(8, name="first")(inputs))
    x = ops.append(x, constant, axis=-1) if name == "append" else ops.hstack([x, constant])
    model = randomise(keras.Model(inputs, layers.Dense(3)(x)))
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    assert [row.kept for row in plan.creators] == [4, 8, 3]
    assert "constants" in " ".join(plan.creators[1].reasons)
    assert kn.verify(kn.rebuild(model, plan), model, plan).ok


@pytest.mark.parametrize("extreme", [ops.max, ops.min])
def test_an_extreme_may_be_infinite(extreme, rng):
    """A removed channel never supplies the extreme, even if no kept value is finite."""
    sign = -np.inf if extreme is ops.max else np.inf
    inputs = keras.Input((4,))
    x = layers.Dense(8, name="free")(inputs)
    found = extreme(ops.where(x > 1e6, x, sign), axis=-1, keepdims=True)
    outputs = layers.Dense(3)(ops.where(ops.isinf(found), x, 0.0))
    model = randomise(keras.Model(inputs, outputs))
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    assert plan.creators[0].kept == 4
    assert kn.verify(kn.rebuild(model, plan), model, plan).ok


def gated(gate):
    """A gate inside of a network that normalises each image by itself."""
    inputs = keras.Input((6, 6, 3))
    x = gate(layers.Conv2D(16, 3, name="both")(inputs))
    mean, variance = ops.moments(x, axes=[1, 2], keepdims=True)
    x = layers.Conv2D(6, 3, activation="relu")((x - mean) * ops.rsqrt(variance + 1e-3))
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))


def by_hand(x):
    values, gates = ops.split(x, 2, axis=-1)
    return values * ops.sigmoid(gates)


def channels_first(x):
    """The same along another axis."""
    x = ops.glu(ops.transpose(x, (0, 3, 1, 2)), axis=1)
    return ops.transpose(x, (0, 2, 3, 1))


@pytest.mark.parametrize("gate", [ops.glu, channels_first])
def test_a_channel_goes_with_its_gate(gate, rng):
    x = rng.standard_normal((32, 6, 6, 3), dtype="float32")
    models = [gated(gate), gated(by_hand)]
    randomise(models[0], 0)
    models[1].set_weights(models[0].get_weights())
    plans = [kn.plan_pruning(model, kn.NISP(x), ratio=0.5) for model in models]
    removed = [plan.creators[0].removed for plan in plans]
    assert removed[0] == removed[1]
    assert [i + 8 for i in removed[0][:4]] == list(removed[0][4:])
    small = kn.rebuild(models[0], plans[0])
    assert small.get_layer("both").filters == 8
    assert kn.verify(small, models[0], plans[0], x).ok
    before = off(models[0], small, x)
    kn.recalibrate(small, x, models[0], plans[0])
    assert off(models[0], small, x) < before


def test_a_gate_of_positions_leaves_channels_alone():
    inputs = keras.Input((8, 3))
    x = ops.glu(layers.Dense(6, name="wide")(inputs), axis=1)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    assert len(plan.creators[0].removed) == 3
    assert kn.verify(kn.rebuild(model, plan), model, plan).ok


def test_moments_over_channels_hold_them():
    inputs = keras.Input((6,))
    x = layers.Dense(8, name="wide")(inputs)
    mean, variance = ops.moments(x, axes=[-1], keepdims=True)
    x = layers.Dense(4)((x - mean) * ops.rsqrt(variance + 1e-3))
    model = keras.Model(inputs, layers.Dense(2)(x))
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    assert not plan.creators[0].removed
    assert "moments" in plan.explain("wide")
