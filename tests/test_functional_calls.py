"""`as_functional` on calls of many kinds: the graph does what the call does, or is not taken."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from nets import randomise

import keras_nisp as kn
from keras_nisp.keras_graph import calling

PARTS = {
    "dense": lambda: layers.Dense(4, name="dense"),
    "other": lambda: layers.Dense(4, name="other"),
    "dropout": lambda: layers.Dropout(0.5, seed=1, name="dropout"),
    "norm": lambda: layers.BatchNormalization(name="norm"),
    "recurrent": lambda: layers.LSTM(4, name="recurrent"),
    "chance": lambda: keras.random.SeedGenerator(1),
    "masked": lambda: layer_of(with_mask),
}


def make_parts(owner):
    """Gives a layer or model the parts that its `call` names."""
    for name in type(owner).call.__code__.co_names:
        if name in PARTS:
            setattr(owner, name, PARTS[name]())


class Parts(layers.Layer):
    """Has what its `call` names; the class of each test has a call of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        make_parts(self)


def layer_of(call, base=Parts, **settings):
    return type("Custom", (base,), {"call": call})(name="special", **settings)


def around(layer, shape=(6, 4)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layers.Dense(2)(layer(layers.Dense(4)(inputs))))


def is_written(model) -> bool:
    written = kn.as_functional(model)
    assert (written is model) == (type(written.get_layer("special")).__name__ == "Custom")
    return written is not model


def other_factor(self, x, training=None):
    return self.dense(x) * (5.0 if training else 1.0)


def other_setting(self, x, training=None):
    return x + ops.mean(self.dense(x), axis=1 if training else 2, keepdims=True)


def other_order(self, x, training=None):
    y = self.dense(x)
    return ops.subtract(x, y) if training else ops.subtract(y, x)


def other_layer(self, x, training=None):
    return (self.dense if training else self.other)(x)


def other_calls_of_a_layer(self, x, training=None):
    return self.dense(self.dense(x)) if training else self.dense(x)


def other_function(self, x, training=None):
    factor = 2.0 if training else 1.0
    return ops.map(lambda row: row * factor, self.dense(x))


def other_output(self, x, training=None):
    y = self.dense(x)
    return ops.relu(y) if training else ops.sigmoid(ops.relu(y))


def inverted(self, x, training=None):
    return self.norm(self.dense(x), training=not training)


def own_draw(self, x):
    return self.dense(x) + keras.random.normal((4,), seed=self.chance)


def own_draw_for_each_sample(self, x):
    return self.dense(x) + keras.random.normal(ops.shape(x), seed=self.chance)


def own_loss(self, x):
    self.add_loss(ops.mean(x))
    return self.dense(x)


def own_update(self, x, training=None):
    if training:
        self.chance.state.assign(self.chance.state + 1)
    return self.dense(x)


UNLIKE = [
    other_factor,
    other_setting,
    other_order,
    other_layer,
    other_calls_of_a_layer,
    other_function,
    other_output,
    inverted,
    own_draw,
    own_draw_for_each_sample,
    own_loss,
    own_update,
]


@pytest.mark.filterwarnings("ignore:.*looks like it has unbuilt state")
@pytest.mark.parametrize("call", UNLIKE, ids=lambda call: call.__name__)
def test_call_that_no_graph_shows_stays(call):
    layer = layer_of(call)
    model = around(layer)
    before = [(v, ops.convert_to_numpy(v).copy()) for v in layer.variables]
    assert not is_written(model)
    for variable, old in before:  # and nothing was changed
        np.testing.assert_array_equal(variable, old)


def dropout_if_training(self, x, training=None):
    x = self.dense(x)
    return self.dropout(x) if training else x


def dropout_never(self, x, training=None):
    return self.dropout(self.dense(x), training=False)


def follows(self, x, training=None):
    return self.norm(self.dropout(self.dense(x), training=training))


@pytest.mark.parametrize("call", [dropout_if_training, dropout_never, follows])
def test_training_is_the_same(call):
    model = around(layer_of(call))
    written = kn.as_functional(model)
    assert written is not model
    x = np.random.default_rng(0).normal(size=(8, 6, 4)).astype("float32")
    for training in (False, True):
        # Variables keep their values in the scope, so both draw the same numbers.
        with keras.StatelessScope():
            expected = model(x, training=training)
        with keras.StatelessScope():
            received = written(x, training=training)
        np.testing.assert_allclose(received, expected, atol=1e-6)
    drops = not np.allclose(written(x, training=True), written(x, training=True))
    assert drops == (call is not dropout_never)


def always_dropped(self, x):
    return self.dropout(self.dense(x), training=True)


def never_normalised(self, x, training=None):
    return self.norm(self.dense(x), training=False)


@pytest.mark.parametrize("call", [always_dropped, never_normalised])
def test_mode_that_a_call_always_has(call):
    model = around(layer_of(call))
    assert is_written(model) == calling.KEEPS_TRAINING


def test_frozen_layer_that_is_always_in_inference():
    layer = layer_of(never_normalised)
    model = around(layer)
    layer.norm.trainable = False
    assert is_written(model)


class Net(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        make_parts(self)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (other_factor, "something else in training: there it calls `multiply`"),
        (own_draw, "changes a variable or random seed"),
        (own_loss, "add_loss"),
        (lambda self, x: x if float(ops.sum(x)) > 0 else -x, "float"),
        (lambda self, x: (self.dense(x), None), "None besides tensors"),
        (lambda self, x: self.dense(x) + self.misspelt, "misspelt"),
    ],
)
def test_model_says_why_it_is_not_written_out(call, reason):
    net = type("Custom", (Net,), {"call": call})(name="net")
    with pytest.raises(ValueError, match=f"(?s)'net' \\(Custom\\).*{reason}") as caught:
        kn.as_functional(net, keras.Input((6, 4)))
    assert "\x1b" not in str(caught.value)


def test_error_names_the_part():
    class ByValue(layers.Layer):
        def call(self, x):
            return x * float(ops.sum(x))

    class Outer(keras.Model):
        def __init__(self):
            super().__init__(name="outer")
            self.inner = [[ByValue(name="by_value")]]

        def call(self, x):
            return self.inner[0][0](x)

    with pytest.raises(ValueError, match=r"'by_value' \(ByValue\) in it cannot be either.*float"):
        kn.as_functional(Outer(), keras.Input((4,)))


class Inner(keras.Model):
    """Is built by its own `build`, takes and gives dictionaries."""

    def __init__(self):
        super().__init__(name="inner")
        self.first = layers.Dense(5, kernel_regularizer="l2", name="first")
        self.more = {"a": [layers.Dense(4, activity_regularizer="l2", name="second")]}

    def build(self, shape):
        self.first.build(shape)
        self.more["a"][0].build((*shape[:-1], 5))
        self.built = True

    def call(self, x, scale=1.0, training=None):
        hidden = self.first(x)
        return {"y": self.more["a"][0](hidden) * scale, "z": (hidden, None)}


class Outer(keras.Model):
    def __init__(self):
        super().__init__(name="outer")
        self.inner = Inner()
        self.head = layers.Dense(2, name="head")

    def call(self, inputs, training=None):
        result = self.inner(inputs["p"], scale=3.0, training=training)
        return {"b": self.head(result["y"] + inputs["q"]), "a": (result["z"][0],)}


def test_models_in_models_with_dictionaries_and_losses(tmp_path):
    net = Outer()
    written = kn.as_functional(
        net, {"p": keras.Input((4,), name="p"), "q": keras.Input((4,), name="q")}
    )
    rng = np.random.default_rng(0)
    x = {key: rng.normal(size=(3, 4)).astype("float32") for key in "pq"}
    expected, received = net(x), written(x)
    assert set(received) == {"a", "b"}
    np.testing.assert_allclose(received["b"], expected["b"], atol=1e-6)
    np.testing.assert_allclose(received["a"][0], expected["a"][0], atol=1e-6)
    np.testing.assert_allclose(sum(written.losses), sum(net.losses), rtol=1e-6)
    assert len(written.losses) == 2
    written.save(tmp_path / "net.keras")  # and nothing of Outer and Inner is needed to load it
    loaded = keras.saving.load_model(tmp_path / "net.keras")
    np.testing.assert_array_equal(loaded(x)["b"], received["b"])


def test_models_with_a_train_step_lose_it_with_a_warning():
    class Own(Net):
        def call(self, x):
            return self.dense(x)

        def train_step(self, data):
            return {}

    with pytest.warns(UserWarning, match=r"'own' \(Own\) has its own train_step"):
        kn.as_functional(Own(name="own"), keras.Input((4,)))


def test_keyword_tensors_and_large_constants():
    def call(self, x, context=None, table=None):
        return self.dense(x) + context * ops.convert_to_tensor(table)

    first = np.ones((60, 60), "float32")
    second = first.copy()
    second[30, 30] = 9.0  # which no text of the array shows
    inputs, special = keras.Input((60, 4)), layer_of(call)
    special.dense.units = 60
    context = layers.Dense(60)(inputs)
    y = [special(inputs, context=context, table=table) for table in (first, second)]
    model = keras.Model(inputs, y)
    with pytest.warns(UserWarning, match="copy of the layers that they share"):
        written = kn.as_functional(model)
    x = np.random.default_rng(0).normal(size=(2, 60, 4)).astype("float32")
    for want, got in zip(model(x), written(x), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def with_mask(self, x, mask=None):
    x = self.dense(x)
    return ops.sum(x if mask is None else x * ops.cast(mask, x.dtype)[..., None], axis=1)


def with_implicit_mask(self, x):
    return self.recurrent(self.dense(x))


def with_mask_inside(self, x):
    return self.masked(self.other(x))


class Masked(Parts):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True


@pytest.mark.filterwarnings("ignore:.*destroy the mask", "ignore:.*looks like it has unbuilt")
@pytest.mark.parametrize("call", [with_mask, with_implicit_mask, with_mask_inside])
def test_masks(call, tmp_path):
    if call is with_mask and keras.__version__.startswith("3.12."):
        pytest.skip("Keras 3.12 refuses graphs that do not use all inputs: the layer stays")
    words = keras.Input((6,), dtype="int32")
    special = layer_of(call, Masked)
    special.compute_mask = lambda x, previous_mask=None: None
    x = layers.Embedding(9, 4, mask_zero=True)(words)
    model = keras.Model(words, layers.Dense(2)(special(x)))
    written = kn.as_functional(model)
    assert not any(isinstance(layer, Parts) for layer in written._flatten_layers())
    written.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 0]], "int32")
    for other in (written, loaded):
        np.testing.assert_allclose(other(x), model(x), atol=1e-6)
        np.testing.assert_allclose(other.predict(x, verbose=0), model(x), atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*destroy the mask")
def test_masks_that_a_part_takes_off():
    """MultiHeadAttention takes masks off what it is given: each run begins with them."""

    class Pooled(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.attention, self.dense = layers.MultiHeadAttention(1, 4), layers.Dense(6)

        def call(self, x):
            return self.dense(ops.mean(self.attention(x, x) + x, axis=1))

    words = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True)(words)
    model = keras.Model(words, layers.Dense(2)(Pooled()(x)))
    written = kn.as_functional(model)
    stays = any(isinstance(layer, Pooled) for layer in written._flatten_layers())
    assert not stays or keras.version() < "3.13"  # there the mask is in no graph
    x = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 0]], "int32")
    np.testing.assert_allclose(written(x), model(x), atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*destroy the mask")
def test_mask_that_a_layer_passes_on_and_its_graph_does_not():
    special = layer_of(lambda self, x: ops.relu(self.dense(x)), Masked)
    words = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True)(words)
    model = keras.Model(words, layers.LSTM(2)(special(x)))
    assert kn.as_functional(model) is model


def test_mixed_precision_and_fixed_batch():
    def call(self, x):
        x = ops.exp(x)
        return ops.reshape(self.dense(x) + x, (x.shape[0], -1))

    class Half(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(dtype="mixed_float16", **kwargs)
            self.dense = layers.Dense(4, dtype=self.dtype_policy)

    inputs = keras.Input(batch_shape=(3, 6, 4))
    model = keras.Model(inputs, layer_of(call, Half)(inputs))
    written = kn.as_functional(model)
    assert written is not model
    assert written.output.shape == (3, 24)
    x = np.random.default_rng(0).normal(size=(3, 6, 4)).astype("float32")
    np.testing.assert_array_equal(written(x), model(x))
    assert written(x).dtype == model(x).dtype == "float16"


def causal(self, x):
    """Attention by hand with a mask made for the batch, as many write it."""
    batch, length, _ = ops.shape(x)
    steps = ops.arange(length)
    mask = ops.broadcast_to(steps[:, None] >= steps[None], (batch, length, length))
    scores = ops.matmul(self.dense(x), ops.transpose(x, (0, 2, 1)))
    return ops.matmul(ops.softmax(ops.where(mask, scores, -1e9)), self.other(x))


def test_constants_made_for_a_batch():
    model = around(layer_of(causal))
    written = kn.as_functional(model)
    assert written is not model
    x = np.random.default_rng(0).normal(size=(5, 6, 4)).astype("float32")
    np.testing.assert_allclose(written(x), model(x), atol=1e-6)


class Table(layers.Layer):
    """Adds one of 12 vectors to each step: no sequence may be longer."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.positions = layers.Embedding(12, 4, name="positions")
        self.dense = layers.Dense(4, name="dense")

    def call(self, x):
        steps = ops.cumsum(ops.ones_like(x[..., 0]), axis=1) - 1.0
        return self.dense(x) + self.positions(ops.cast(steps, "int32"))


def test_open_axes_that_may_not_be_long():
    model = around(Table(name="special"), (None, 4))
    written = kn.as_functional(model)
    assert isinstance(written.get_layer("special"), keras.Model)
    x = np.random.default_rng(0).normal(size=(2, 12, 4)).astype("float32")
    np.testing.assert_allclose(written(x), model(x), atol=1e-6)


def test_open_axes_that_must_be_long():
    class Windows(keras.Model):
        def __init__(self):
            super().__init__(name="windows")
            self.conv = layers.Conv1D(4, 50, name="conv")

        def call(self, x):
            return ops.mean(self.conv(x), axis=1)

    with pytest.raises(ValueError, match=r"'windows'.*say which ones it takes by `input_shape`"):
        kn.as_functional(Windows(), keras.Input((None, 4)))
    written = kn.as_functional(Windows(), keras.Input((None, 4)), input_shape=(64, 4))
    assert written.input_shape == (None, None, 4)
    for wrong in ((64,), (64, 5), "64"):
        with pytest.raises(ValueError, match="input_shape"):
            kn.as_functional(Windows(), keras.Input((None, 4)), input_shape=wrong)


def arrays_first(self, x):
    mask = np.array([0.0, 1.0, 0.0, 1.0], "float32")
    return mask * self.dense(mask - x) + mask / ops.exp(x)


def test_arrays_to_the_left_of_an_operator():
    model = around(layer_of(arrays_first))
    before = set(vars(keras.KerasTensor))
    assert is_written(model)
    assert set(vars(keras.KerasTensor)) == before


class Streams(layers.Layer):
    """Works on one of two tensors, and hands on the other."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)

    def call(self, x, y):
        return self.dense(x) + y, y


class TwoStreams(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.parts = [Streams(name=f"streams_{index}") for index in range(2)]

    def call(self, x):
        samples = ops.shape(x)[0]
        x, y = x, ops.reshape(x, (samples, *x.shape[1:]))
        for part in self.parts:
            x, y = part(x, y)
        return x * ops.ones((samples, 1, 1))


def test_parts_that_hand_on_what_they_get():
    model = around(TwoStreams(name="special"))
    written = kn.as_functional(model, verbose=0)
    assert written is not model
    assert kn.prune(written, kn.Magnitude(), ratio=0.5, verbose=0).count_params() == 28


class Stepwise(layers.Layer):
    """Goes step by step, and writes what comes of each to an array of TensorFlow."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)

    def call(self, x):
        state, steps = ops.zeros((ops.shape(x)[0], 4)), x.shape[1]
        x, given = self.dense(x), tf.TensorArray("float32", size=steps)
        for step in range(steps):
            state = 0.5 * state + x[:, step]
            given = given.write(step, state)
        return ops.transpose(given.stack(), (1, 0, 2))


class Reading(Stepwise):
    """Reads the last step from the array."""

    def call(self, x):
        steps = x.shape[1]
        x, given = self.dense(x), tf.TensorArray("float32", steps + 1, clear_after_read=False)
        given = given.write(0, ops.zeros_like(x[:, 0]))
        for step in range(steps):
            given = given.write(step + 1, 0.5 * given.read(step) + x[:, step])
        return ops.transpose(given.stack(), (1, 0, 2))


@pytest.mark.parametrize("kind", [Stepwise, Reading])
def test_arrays_of_tensorflow(kind):
    model = around(kind(name="special"))
    written = kn.as_functional(model, verbose=0)
    assert written is not model
    assert kn.prune(written, kn.Magnitude(), ratio=0.5, verbose=0).count_params() == 22
    array = tf.TensorArray("float32", size=1).write(0, 3.0)
    assert float(array.stack()[0]) == 3.0


@keras.saving.register_keras_serializable("test_functional_calls")
class Marked(layers.Layer):
    """Takes the windows of a sample together: each has a mask of its own."""

    def __init__(self, counts=False, **kwargs):
        super().__init__(**kwargs)
        self.counts, self.mixing = counts, layers.Dense(8, name="mixing")

    def call(self, windows, mask):
        samples = ops.shape(windows)[0] // mask.shape[0] if self.counts else -1
        x = ops.reshape(self.mixing(windows), (samples, mask.shape[0], *windows.shape[1:]))
        return ops.reshape(x * mask[None, :, :, None], (-1, *windows.shape[1:]))


@keras.saving.register_keras_serializable("test_functional_calls")
class Windows(layers.Layer):
    """Puts windows beside samples, as Swin does: a table of positions is that of each window."""

    def __init__(self, counts=False, **kwargs):
        super().__init__(**kwargs)
        self.marked = Marked(counts, name="marked")

    def build(self, shape):
        self.table = self.add_weight(shape=(9, 8), initializer="normal", name="table")

    def call(self, x):
        windows = ops.reshape(x, (-1, 2, 8))
        windows += ops.take(self.table, np.array([7, 1]), axis=0)
        mask = np.arange(6.0, dtype="float32").reshape(3, 2)
        return ops.reshape(self.marked(windows, mask), (-1, 6, 8))


@pytest.mark.parametrize("counts", [False, True])
def test_windows_beside_samples(counts, tmp_path):
    inputs = keras.Input((6, 3))
    x = Windows(counts, name="windows")(layers.Dense(8, name="free")(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="out")(x))
    graph = randomise(kn.as_functional(model))
    plan = kn.plan_pruning(graph, kn.Magnitude(), ratio=0.5)
    small = kn.rebuild(graph, plan)
    assert kn.verify(small, graph, plan).ok
    parts = {part for row in plan.groups for part in row.creators}
    assert {"free", "windows/table", "windows/marked/mixing"} <= parts
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    data = np.random.default_rng(0).normal(size=(5, 6, 3)).astype("float32")
    np.testing.assert_allclose(loaded(data), small(data), atol=1e-6)


TOKENS = {
    "added": lambda token, x: ops.zeros_like(x[:, :1]) + token,
    "broadcast": lambda token, x: ops.broadcast_to(token, (ops.shape(x)[0], 1, 8)),
    "tiled": lambda token, x: ops.tile(token, (ops.shape(x)[0], 1, 1)),
    "repeated": lambda token, x: ops.repeat(token, ops.shape(x)[0], axis=0),
}


class Frames(layers.Layer):
    """Puts the frames of a video beside each other, each with a class token and positions."""

    def __init__(self, give, **kwargs):
        super().__init__(**kwargs)
        self.give, self.mixing = give, layers.Dense(8, name="mixing")

    def build(self, shape):
        self.token = self.add_weight(shape=(1, 1, 8), initializer="normal", name="token")
        self.places = self.add_weight(shape=(1, 6, 8), initializer="normal", name="places")

    def call(self, x):
        frames = ops.reshape(x, (-1, 5, 8))
        frames = ops.concatenate([self.give(self.token, frames), frames], axis=1) + self.places
        return ops.reshape(ops.max(self.mixing(frames), axis=1), (-1, 3, 8))


@pytest.mark.parametrize("give", TOKENS)
def test_weights_for_each_frame(give):
    inputs = keras.Input((3, 5, 2))
    x = Frames(TOKENS[give], name="frames")(layers.Dense(8, name="free")(inputs))
    graph = randomise(kn.as_functional(keras.Model(inputs, layers.Dense(2)(x)), verbose=0))
    plan = kn.plan_pruning(graph, kn.Magnitude(), ratio=0.5)
    parts = {part for row in plan.groups for part in row.creators}
    assert {"free", "frames/token", "frames/places", "frames/mixing"} <= parts
    assert kn.verify(kn.rebuild(graph, plan), graph, plan).ok
