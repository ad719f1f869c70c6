"""`as_functional`: what it converts, what it leaves, and what it refuses."""

import threading

import keras
import numpy as np
import pytest
from keras import layers, ops
from nets import example_inputs, random_plan, randomise

import keras_nisp as kn


class Block(layers.Layer):
    """Made of layers and operations; takes and gives more than tensors."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.BatchNormalization(name="norm")
        self.inner = layers.Dense(4 * width, activation="gelu", name="inner")
        self.outer = layers.Dense(width, name="outer")
        self.dropout = layers.Dropout(0.5, name="dropout")

    def build(self, shape):
        self.norm.build(shape)
        self.inner.build(shape)
        self.outer.build((*shape[:-1], self.inner.units))

    def call(self, x, scale=None, training=None):
        y = self.dropout(self.outer(self.inner(self.norm(x))), training=training)
        return x + (y if scale is None else y * scale), None


class Windows(layers.Layer):
    """Asks for the batch size, as many layers do."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.mix = layers.Dense(8, name="mix")

    def build(self, shape):
        self.mix.build((None, 2, shape[-1]))

    def compute_output_shape(self, shape):
        return (*shape[:-1], 8)

    def call(self, x):
        batch, length, width = ops.shape(x)
        parts = batch * (length // 2)
        x = self.mix(ops.reshape(x, (parts, 2, width)))
        return ops.reshape(x, (batch, length, -1))


class Noisy(layers.Layer):
    """Does something else in training."""

    def call(self, x, training=None):
        return x + 1.0 if training else 2.0 * x


class Scaled(layers.Layer):
    """Has a number for a weight, which no layer of Keras has."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(), name="scale")

    def call(self, x):
        return x[..., ::-1] * self.scale


class Net(keras.Model):
    """A subclassed model."""

    def __init__(self):
        super().__init__(name="net")
        self.stem = layers.Dense(8, name="stem")
        self.blocks = [Block(8, name=f"block{i}") for i in range(2)]
        self.windows = Windows(name="windows")
        self.head = layers.Dense(3, name="head")

    def call(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x, _ = block(x, scale=2.0)
        return self.head(ops.mean(self.windows(x), axis=1))


def around(layer):
    inputs = keras.Input((6, 4))
    x = layers.Dense(8, name="before")(layers.Dense(6, name="first")(inputs))
    x = layer(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)))


def test_subclassed_model():
    model = kn.as_functional(Net(), keras.Input((6, 4)))
    assert model.name == "net"
    randomise(model)
    plan = random_plan(model)
    removed = {row.layer: row.kept for row in plan.creators}
    assert removed["block0/inner"] < 32
    assert removed["windows/mix"] < 8
    small = kn.rebuild(model, plan)
    assert kn.verify(small, model, plan, tolerance=1e-5).ok


def test_result_computes_the_same_for_any_batch_size_and_shares_weights():
    net = Net()
    model = kn.as_functional(net, keras.Input((6, 4)))
    for count in (1, 5):
        x = np.random.default_rng(count).normal(size=(count, 6, 4)).astype("float32")
        np.testing.assert_allclose(net(x, training=False), model(x, training=False), atol=1e-6)
    assert {id(w) for w in net.weights} == {id(w) for w in model.weights}
    model.compile("sgd", "mse", jit_compile=False)
    before = [weight.numpy() for weight in net.trainable_weights]
    model.fit(x, np.ones((5, 3)), verbose=0)
    assert any((b != w.numpy()).any() for b, w in zip(before, net.trainable_weights, strict=True))


def test_result_is_plain_keras(tmp_path):
    model = kn.as_functional(Net(), keras.Input((6, 4)))
    model.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras")
    x = example_inputs(model)
    np.testing.assert_array_equal(model(x, training=False), loaded(x, training=False))


def test_dropout_still_drops_in_training():
    model = kn.as_functional(around(Windows()))
    assert model(example_inputs(model)).shape == (4, 3)
    net = kn.as_functional(Net(), keras.Input((6, 4)))
    x = example_inputs(net)
    assert not np.allclose(net(x, training=True), net(x, training=True))


class Halving(layers.Layer):
    """Is called with other settings, and says `training=False` by default."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dropout = layers.Dropout(0.5)

    def call(self, x, times=1.0, training=False):
        return self.dropout(x, training=training) * times


def test_settings_of_each_call_and_training_by_default():
    inputs, halving = keras.Input((64,)), Halving()
    model = keras.Model(inputs, halving(inputs, times=0.5) - halving(inputs, times=2.0))
    written = kn.as_functional(model)
    assert not any(isinstance(layer, Halving) for layer in written.layers)
    x = np.ones((2, 64), "float32")
    np.testing.assert_allclose(written(x, training=False), -1.5 * x)
    assert len(np.unique(written(x, training=True))) > 1


def test_lambda_of_operations_is_written_out():
    model = around(layers.Lambda(lambda x: ops.relu(x) * 2.0, name="function"))
    written = kn.as_functional(model)
    plan = random_plan(written)  # a warning would be an error here
    assert plan.creators[1].kept < 8
    assert kn.verify(kn.rebuild(written, plan), written, plan).ok


@pytest.mark.parametrize("layer", [Noisy, Scaled])
def test_what_cannot_be_written_out_stays(layer):
    model = around(layer(name="special"))
    written = kn.as_functional(model)
    assert written is model
    with pytest.warns(kn.UnknownLayerWarning, match="special"):
        plan = kn.plan_pruning(written, kn.Random(), ratio=0.5)
    assert [row.kept for row in plan.creators] == [3, 8, 3]


def test_shared_layers_stay_shared():
    block = Windows(name="shared")
    inputs = keras.Input((6, 4))
    x = layers.Dense(8)(inputs)
    model = keras.Model(inputs, layers.Dense(3)(block(block(x))))
    written = kn.as_functional(randomise(model))
    assert written.count_params() == model.count_params()
    plan = random_plan(written)
    small = kn.rebuild(written, plan)
    assert kn.verify(small, written, plan, tolerance=1e-5).ok
    assert small.count_params() == plan.after.parameters


def test_nothing_to_write_out_gives_the_model_itself():
    model = around(layers.ReLU())
    assert kn.as_functional(model) is model


def test_refusals():
    class ByValue(keras.Model):
        def call(self, x):
            return x if float(ops.sum(x)) > 0 else -x

    with pytest.raises(TypeError, match=r"keras\.Model"):
        kn.as_functional("net")
    with pytest.raises(ValueError, match="Expected `inputs`"):
        kn.as_functional(Net())
    with pytest.raises(ValueError, match="cannot be converted to a functional graph"):
        kn.as_functional(ByValue(), keras.Input((4,)))


@pytest.mark.filterwarnings("ignore:.*does not come back from a `.keras` file")
def test_layer_that_gives_other_shapes_than_it_says():
    class Lying(layers.Layer):
        def call(self, x):
            return x[:, 2:]

        def compute_output_shape(self, shape):
            return shape

    class LyingWithWeights(Lying):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

        def call(self, x):
            return super().call(x) * self.scale

    for kind in (Lying, LyingWithWeights):
        inputs = keras.Input((6, 4))
        model = keras.Model(inputs, Windows(name="windows")(kind()(inputs)))
        written = kn.as_functional(model)
        assert written.output_shape == (None, 4, 8)
        assert isinstance(written.get_layer("windows"), keras.Model)
        x = example_inputs(model)
        np.testing.assert_allclose(written(x), model(x), atol=1e-6)


def test_functional_model_that_overrides_its_call():
    """Its graph is not what it computes."""

    class Doubled(keras.Model):
        def call(self, x, training=None, mask=None):
            return 2.0 * super().call(x)

    inputs = keras.Input((4,))
    hidden = layers.Dense(8, name="hidden")(inputs)
    model = Doubled(inputs, layers.Dense(3)(hidden))
    with pytest.raises(TypeError, match="as_functional"):
        kn.trace(model)
    written = kn.as_functional(model, keras.Input((4,)))
    x = example_inputs(written)
    np.testing.assert_allclose(written(x), model(x), atol=1e-6)
    small = kn.prune(written, kn.Magnitude(), ratio=0.5, verbose=0)
    assert small.count_params() < written.count_params()


def test_error_for_a_subclassed_model_says_how_to_go_on():
    with pytest.raises(TypeError, match="as_functional"):
        kn.trace(Net())


def test_threads_do_not_meet():
    """Calls are intercepted in the thread that converts a model, and in no other."""
    original = keras.Layer.__call__
    inside, finished, seen = threading.Event(), threading.Event(), []

    class Slow(layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = Halving()

        def call(self, x):
            inside.set()
            finished.wait(timeout=60)
            return self.inner(x)

    finished.set()  # Keras itself calls the layer when the model is built
    inputs = keras.Input((4,))
    model = keras.Model(inputs, Slow()(inputs))
    finished.clear()
    inside.clear()
    net = Net()
    writers = [
        threading.Thread(target=lambda: seen.append(kn.as_functional(model))),
        threading.Thread(target=lambda: seen.append(kn.as_functional(net, keras.Input((6, 4))))),
    ]
    writers[0].start()
    assert inside.wait(timeout=60)
    try:
        writers[1].start()  # which waits: both might add nodes to the same layers
        meanwhile = around(Halving(name="own"))
    finally:
        finished.set()
        for writer in writers:
            writer.join()
    assert isinstance(meanwhile.get_layer("own"), Halving)
    written = [layer for model in seen for layer in model._flatten_layers()]
    assert len(seen) == 2
    assert not any(isinstance(layer, (Slow, Halving, Block)) for layer in written)
    assert keras.Layer.__call__ is original


class Frames(layers.Layer):
    """Adds what it has learnt of places to each frame; frames are samples to it, films are not."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.places = layers.Embedding(6, 8, name="places")
        self.inner = layers.Dense(8, activation="relu", name="inner")

    def call(self, films, frames):
        return self.inner(frames + self.places(np.arange(6)))


@pytest.mark.filterwarnings("ignore::keras_nisp.UnknownLayerWarning")
def test_lookups_where_the_first_axis_is_not_that_of_samples():
    films = keras.Input((4, 6, 8))
    frames = ops.reshape(layers.Dense(8, name="first")(films), (-1, 6, 8))
    x = ops.reshape(Frames(name="frames")(films, frames), (-1, 4, 6, 8))
    model = randomise(keras.Model(films, layers.Dense(2, name="head")(x)))
    written = kn.as_functional(model, verbose=0)
    x = np.random.default_rng(0).normal(size=(3, 4, 6, 8)).astype("float32")
    np.testing.assert_allclose(written(x), model(x), atol=1e-6)


class Placed(layers.Layer):
    """Looks up constant indices without an axis of samples."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.places = layers.Dense(8), layers.Embedding(6, 8)

    def call(self, x):
        return self.dense(x) + self.places(ops.arange(6))


class DropPath(layers.Layer):
    """Draws by a seed of its own while training."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(3)

    def call(self, x, training=False):
        if not training:
            return x
        shape = (ops.shape(x)[0], 1, 1)
        return x * ops.floor(0.5 + keras.random.uniform(shape, seed=self.seeds))


class NoisyPlaced(Placed):
    """Draws in inference, too: it stays."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(3)

    def call(self, x):
        return super().call(x) + keras.random.normal((8,), seed=self.seeds)


class Around(layers.Layer):
    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, x):
        return self.inner(x)


@pytest.mark.parametrize(("part", "stays"), [(Placed, 0), (DropPath, 1), (NoisyPlaced, 1)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_parts_of_parts_are_tried_as_they_are_by_themselves(part, stays):
    inner = part()
    inner(np.ones((2, 6, 8)))
    written = kn.as_functional(around(Around(Around(inner))), verbose=0)
    inside = list(written._flatten_layers())
    assert not any(isinstance(layer, Around) for layer in inside)
    assert [layer for layer in inside if isinstance(layer, part)] == [inner] * stays


class Penalised(layers.Layer):
    """Adds a loss in training, which no graph holds."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x, training=None):
        if training:
            self.add_loss(keras.ops.mean(x))
        return self.dense(x)


@pytest.mark.filterwarnings("error")
def test_a_warning_that_is_made_an_error_is_no_fault_of_the_model():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(2)(Penalised(name="penalised")(inputs)))
    with pytest.raises(UserWarning, match="adds to the loss in training"):
        kn.as_functional(model)
