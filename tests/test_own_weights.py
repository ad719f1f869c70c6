"""`as_functional` of layers that compute with weights of their own."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from nets import random_plan, randomise

import keras_nisp as kn

LENGTH, WIDTH = 6, 8


class Token(layers.Layer):
    """Puts a learnt token before the others, and adds a table of positions."""

    def build(self, shape):
        self.token = self.add_weight(shape=(shape[-1],), name="token")
        self.table = self.add_weight(shape=(shape[1] + 1, shape[-1]), name="table")

    def call(self, x):
        token = ops.expand_dims(self.token, 0)
        token = ops.tile(token[None], [ops.shape(x)[0], 1, 1])
        return ops.concatenate([token, x], axis=1) + self.table


class Bias(layers.Layer):
    """Attention with a learnt bias for each distance, as T5 has it."""

    def build(self, shape):
        width = shape[-1]
        self.query, self.key, self.value = (layers.Dense(width, name=n) for n in ("q", "k", "v"))
        self.out = layers.Dense(width, name="out")
        self.distances = self.add_weight(shape=(2 * LENGTH, 4), name="distances")

    def call(self, x):
        batch, length, width = ops.shape(x)
        q, k, v = (
            ops.reshape(part(x), (batch, length, 4, width // 4))
            for part in (self.query, self.key, self.value)
        )
        places = ops.arange(length)
        found = ops.take(self.distances, places[:, None] - places[None] + length, axis=0)
        found = ops.expand_dims(ops.transpose(found, (2, 0, 1)), 0)
        scores = ops.softmax(ops.einsum("bqnd,bknd->bnqk", q, k) + found)
        y = ops.einsum("bnqk,bknd->bqnd", scores, v)
        return self.out(ops.reshape(y, (batch, length, width)))


class Pooling(layers.Layer):
    """A learnt query, in a form that the sum and the norm of it need."""

    def build(self, shape):
        self.norm = layers.LayerNormalization(name="norm")
        self.attention = layers.MultiHeadAttention(2, 4, name="attention")
        self.probe = self.add_weight(shape=(1, 1, shape[-1]), name="probe")

    def call(self, x):
        probe = ops.repeat(self.norm(self.probe), ops.shape(x)[0], axis=0)
        return x + self.attention(probe, x)


class Mixed(layers.Layer):
    """A kernel that is used twice, once transposed, and scales of channels by a softmax."""

    def build(self, shape):
        self.down = self.add_weight(shape=(shape[-1], 5), name="down")
        self.shares = self.add_weight(shape=(1, shape[-1]), name="shares")
        self.matrix = self.add_weight(shape=(3, shape[-1]), name="matrix")

    def call(self, x):
        y = ops.matmul(ops.relu(ops.matmul(x, self.down)), ops.transpose(self.down))
        y = y * ops.sigmoid(self.shares) + ops.max(self.matrix, axis=0)
        return x + y / (1.0 + ops.exp(self.matrix[:1]))


class Taps(layers.Layer):
    """A causal convolution of each channel alone, with a kernel whose channels come first."""

    def build(self, shape):
        self.taps = self.add_weight(shape=(shape[-1], 3), name="taps")

    def call(self, x):
        kernel = ops.expand_dims(ops.transpose(self.taps), -1)
        return x + ops.depthwise_conv(ops.pad(x, [[0, 0], [2, 0], [0, 0]]), kernel)


class Experts(layers.Layer):
    """Kernels of all experts side by side; the experts come first in what it gives."""

    def __init__(self, interleaved=False, **kwargs):
        super().__init__(**kwargs)
        self.interleaved = interleaved

    def build(self, shape):
        self.up = self.add_weight(shape=(3, shape[-1], 12), name="up")
        self.bias = self.add_weight(shape=(3, 12), name="up_bias")
        self.down = self.add_weight(shape=(3, 6, shape[-1]), name="down")

    def call(self, x):
        y = ops.einsum("th,ehm->etm", x, self.up) + self.bias[:, None, :]
        if self.interleaved:
            gate, y = y[..., ::2], y[..., 1::2]
        else:
            gate, y = ops.split(y, 2, axis=-1)
        return ops.einsum("eti,eih->eth", ops.silu(gate) * y, self.down)


class Mixture(layers.Layer):
    """Each token by two of three experts, which lose balance at a cost."""

    def __init__(self, interleaved=False, **kwargs):
        super().__init__(**kwargs)
        self.router = layers.Dense(3, name="router")
        self.experts = Experts(interleaved, name="experts")

    def call(self, x, training=False):
        batch, length, width = ops.shape(x)
        flat = ops.reshape(x, (batch * length, width))
        shares = ops.softmax(self.router(flat))
        best, chosen = ops.top_k(shares, k=2)
        weights = ops.sum(ops.one_hot(chosen, 3) * best[..., None], axis=1)
        y = self.experts(flat) * ops.transpose(weights)[:, :, None]
        if training:
            self.add_loss(0.1 * ops.sum(ops.mean(shares, axis=0) ** 2))
        return x + ops.reshape(ops.sum(y, axis=0), ops.shape(x))


def around(layer):
    inputs = keras.Input((LENGTH, 4))
    x = layer(layers.Dense(WIDTH, name="before")(inputs))
    x = layers.LayerNormalization(name="last")(x)
    return randomise(keras.Model(inputs, layers.Dense(3, name="head")(x)))


@pytest.mark.parametrize("layer", [Token, Bias, Pooling, Mixed, Taps])
def test_weights_of_a_layer_are_followed(layer):
    model = around(layer(name="special"))
    graph = kn.as_functional(model, verbose=0)
    assert {id(weight) for weight in graph.weights} == {id(weight) for weight in model.weights}
    plan = random_plan(graph)  # a warning would be an error here
    widths = {row.layer: row.kept for row in plan.creators}
    assert widths["before"] < WIDTH
    assert any(kept < WIDTH for name, kept in widths.items() if name.startswith("special/"))
    small = kn.rebuild(graph, plan)
    assert kn.verify(small, graph, plan, tolerance=1e-5).ok
    again = keras.Model.from_config(small.get_config())
    again.set_weights(small.get_weights())
    x = np.random.default_rng(0).normal(size=(5, LENGTH, 4)).astype("float32")
    np.testing.assert_allclose(again(x), small(x), atol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_experts(interleaved):
    model = around(Mixture(interleaved, name="mixture"))
    with pytest.warns(UserWarning, match="'mixture' .* adds to the loss in training"):
        graph = kn.as_functional(model, verbose=0)
    plan = kn.plan_pruning(graph, kn.Magnitude(), ratio=0.5)
    kept = {row.layer: row.kept for row in plan.creators}
    assert kept["mixture/experts/up"] == kept["mixture/experts/up_bias"] == 6
    assert kept["mixture/experts/down"] == WIDTH // 2
    assert kept["mixture/router"] == 2  # as many as each token goes to
    small = kn.rebuild(graph, plan)
    assert kn.verify(small, graph, plan, tolerance=1e-5).ok
    shapes = {weight.shape for weight in small.weights}
    assert {(2, 4, 6), (2, 6), (2, 3, 4)} <= shapes


def test_importance_passes_through_them():
    data = np.random.default_rng(0).normal(size=(70, LENGTH, 4)).astype("float32")
    for layer in (Token, Bias, Placed):
        graph = kn.as_functional(around(layer(name="special")), verbose=0)
        small = kn.prune(graph, kn.NISP(data), ratio=0.5, calibration=data, verbose=0)
        assert small.count_params() < 0.6 * graph.count_params()


def test_weights_keep_learning():
    layer = Token(name="special")
    model = around(layer)
    graph = kn.as_functional(model, verbose=0)
    before = [layer.token.numpy(), layer.table.numpy()]
    graph.compile("sgd", "mse", jit_compile=False)
    graph.fit(np.ones((4, LENGTH, 4)), np.ones((4, LENGTH + 1, 3)), verbose=0)
    assert all(
        (b != w.numpy()).any() for b, w in zip(before, (layer.token, layer.table), strict=True)
    )


class Chosen(layers.Layer):
    """Looks up one of several numbers for each place by TensorFlow, and masks by what is
    repeated for each place; has a layer that it does not call."""

    def build(self, shape):
        self.inner, self.other = layers.Dense(12, name="inner"), layers.Dense(5, name="other")
        self.scores, self.outer = layers.Dense(3, name="scores"), layers.Dense(WIDTH, name="outer")
        self.other.build(shape)

    def call(self, x):
        batch, length, _ = ops.shape(x)
        places = ops.broadcast_to(ops.arange(length)[:, None] % 3, (batch, length, 1))
        chosen = tf.gather(self.scores(x), indices=places, batch_dims=2)
        mask = ops.max(ops.cast(chosen > 0, x.dtype), axis=1, keepdims=True)
        mask = ops.broadcast_to(mask, (batch, length, 1))
        return x + self.outer(ops.relu(self.inner(x)) * mask * 0.5)


def test_lookups_of_tensorflow_and_layers_that_are_not_called(capsys):
    model = around(Chosen(name="special"))
    graph = kn.as_functional(model)
    assert "leaves out weights that no call uses: special/other/kernel" in capsys.readouterr().out
    assert graph.count_params() == model.count_params() - 5 * (WIDTH + 1)
    plan = random_plan(graph)
    widths = {row.layer: row.kept for row in plan.creators}
    assert widths["special/inner"] < 12
    assert widths["before"] < WIDTH
    assert kn.verify(kn.rebuild(graph, plan), graph, plan, tolerance=1e-5).ok


def test_products_with_numbers_are_not_sparse():
    class Root(layers.Layer):
        def call(self, x):
            return x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + 1e-3)

    class Inside(layers.Layer):
        def build(self, shape):
            self.root, self.inner = Root(name="root"), layers.Dense(WIDTH, name="inner")

        def call(self, x):
            return self.inner(self.root(x * 0.5))

    graph = kn.as_functional(around(Inside(name="special")), verbose=0)
    plan = random_plan(graph)  # a warning would be an error here
    assert {row.layer: row.kept for row in plan.creators}["special/inner"] < WIDTH


class Unit(layers.Layer):
    """Takes no sparse tensors."""

    def call(self, x):
        return tf.nn.l2_normalize(x, -1)


@pytest.mark.parametrize("nested", [False, True])
def test_products_with_numbers_are_not_sparse_in_files(nested, tmp_path):
    class Scaled(layers.Layer):
        def build(self, shape):
            self.table, self.unit = layers.Embedding(10, WIDTH), Unit(name="unit")
            self.out = layers.Dense(3)

        def call(self, x):
            return self.out(self.unit(self.table(x) * 4.0))

    class Whole(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = Scaled(name="inner")

        def call(self, x):
            return self.inner(x)

    ids = keras.Input((LENGTH,), dtype="int32")
    model = keras.Model(ids, Scaled(name="inner")(ids)) if nested else Whole()
    graph = kn.as_functional(model, None if nested else ids, verbose=0)  # warnings are errors
    graph.save(tmp_path / "graph.keras")
    loaded = keras.saving.load_model(tmp_path / "graph.keras", {"Unit": Unit})
    x = np.arange(2 * LENGTH).reshape(2, LENGTH) % 10
    np.testing.assert_allclose(loaded(x), model(x), atol=1e-6)


NUMBERS = [float(number) for number in range(1, WIDTH + 1)]
OF_LISTS = {
    "left": lambda x: NUMBERS * x,
    "right": lambda x: x - tuple(NUMBERS),
    "function": lambda x: ops.maximum(NUMBERS, x),
    "choice": lambda x: ops.where(x > 0, NUMBERS, x),
    "product": lambda x: ops.matmul(x, [[1.0, 2.0]] * WIDTH),
}


@pytest.mark.parametrize("kind", OF_LISTS)
def test_lists_of_numbers_are_constants(kind):
    class Fixed(layers.Layer):
        def build(self, shape):
            self.inner = layers.Dense(WIDTH, name="inner")

        def call(self, x):
            return OF_LISTS[kind](self.inner(x))

    graph = kn.as_functional(around(Fixed(name="special")), verbose=0)
    plan = random_plan(graph)  # a warning would be an error here
    assert {row.layer: row.kept for row in plan.creators}["special/inner"] < WIDTH
    assert keras.tree.flatten(graph.get_layer("special").output)[0].dtype == "float32"
    assert kn.verify(kn.rebuild(graph, plan), graph, plan, tolerance=1e-5).ok


def test_reason_names_no_operation_that_keras_has_named(capsys):
    class Normalised(layers.Layer):
        def build(self, shape):
            self.v = self.add_weight(shape=(3, shape[-1], WIDTH), name="v")
            self.g = self.add_weight(shape=(WIDTH,), name="g")

        def call(self, x):
            norm = ops.sqrt(ops.sum(ops.square(self.v), axis=(0, 1)))
            return ops.conv(x, self.g * self.v / norm, padding="same")

    model = around(Normalised(name="special"))
    assert kn.as_functional(model) is model
    said = capsys.readouterr().out
    assert "'special' (Normalised): it gives `conv` what it computes from its weights" in said


def test_weights_in_constants_are_refused(capsys):
    class Fixed(layers.Layer):
        def build(self, shape):
            self.inner = layers.Dense(WIDTH, name="inner")
            self.inner.build(shape)

        def call(self, x):
            return ops.relu(x) * ops.sum(self.inner.kernel)

    model = around(Fixed(name="special"))
    assert kn.as_functional(model) is model
    assert "such as 'kernel', whose values it computes with" in capsys.readouterr().out


class Mixing(layers.Layer):
    """Takes several streams, and gives as many: samples are the second axis."""

    def build(self, shape):
        self.inner = layers.Dense(WIDTH, name="inner")
        self.inner.build(shape[1:])

    def call(self, x):
        change = ops.repeat(ops.expand_dims(ops.relu(self.inner(x[0])), 0), 2, axis=0)
        return change + ops.stack([x[1], x[0]], axis=0)


class Streams(layers.Layer):
    def build(self, shape):
        self.mixing = [Mixing(name=f"mixing_{index}") for index in range(2)]
        for part in self.mixing:
            part.build((2, *shape))

    def call(self, x):
        x = ops.stack([x, -x], axis=0)
        for part in self.mixing:
            x = part(x)
        return ops.mean(x, axis=0)


def test_layers_that_are_called_on_several_streams():
    graph = kn.as_functional(around(Streams(name="special")), verbose=0)
    plan = random_plan(graph)  # a warning would be an error here
    widths = {row.layer: row.kept for row in plan.creators}
    assert widths["special/mixing_0/inner"] == widths["before"] < WIDTH
    assert kn.verify(kn.rebuild(graph, plan), graph, plan, tolerance=1e-5).ok


class Placed(layers.Layer):
    """Has tables of places in one weight, and looks up rows that follow from each sample."""

    def build(self, shape):
        self.tables = self.add_weight(shape=(2, 9, shape[-1]), name="tables")

    def call(self, x):
        places = ops.cast(ops.sum(x, axis=-1) > 0, "int32")
        return x + ops.take(self.tables[0], places, axis=0) * ops.take(self.tables[1], places, 0)


def test_rows_of_a_part_of_a_weight():
    graph = kn.as_functional(around(Placed(name="special")), verbose=0)
    plan = random_plan(graph)
    small = kn.rebuild(graph, plan)
    (table,) = [weight for weight in small.weights if "tables" in weight.path]
    assert table.shape[:2] == (2, 9)
    assert table.shape[2] < WIDTH
    assert kn.verify(small, graph, plan, tolerance=1e-5).ok


class Held(layers.Layer):
    """Is never called: others compute with what it holds."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale", initializer="ones")

    def scaled(self, x):
        return x * self.scale


class Around(layers.Layer):
    def __init__(self, calls=False, **kwargs):
        super().__init__(**kwargs)
        self.calls, self.part = calls, Held(name="part")
        self.inner = layers.Dense(WIDTH, name="inner")

    def build(self, shape):
        self.part.build(shape)
        self.inner.build(shape)

    def call(self, x):
        x = self.part.scaled(self.inner(x))
        return x * self.inner.bias if self.calls else x


def test_weights_of_parts_that_are_not_called():
    graph = kn.as_functional(around(Around(name="special")), verbose=0)
    assert [w.shape for w in graph.trainable_weights if "scale" in w.path] == [(WIDTH,)]
    plan = random_plan(graph)
    small = kn.rebuild(graph, plan)
    assert [w.shape[0] < WIDTH for w in small.trainable_weights if "scale" in w.path] == [True]
    assert kn.verify(small, graph, plan, tolerance=1e-5).ok


def test_weights_of_parts_that_are_called_too_are_no_constants(capsys):
    """They would not be trained with the layer that has them."""
    model = around(Around(calls=True, name="special"))
    assert kn.as_functional(model) is model
    assert "computes with the weight 'bias' of a layer that it calls" in capsys.readouterr().out


class Root(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(name="scale", shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return self.scale * x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + 1e-6)


def test_kinds_are_recognised_while_a_call_is_traced():
    class Block(layers.Layer):
        def call(self, x):
            return x + self.inner(self.norm(x))

        def build(self, shape):
            self.norm, self.inner = Root(name="norm"), layers.Dense(WIDTH, name="inner")
            self.norm.build(shape)

    graph = kn.as_functional(around(Block(name="special")), verbose=0)
    plan = random_plan(graph)  # a warning would be an error here
    assert {row.layer: row.kept for row in plan.creators}["special/inner"] < WIDTH


class Spare(layers.Layer):
    """Has a layer that it does not call."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.unused = layers.Dense(3, name="unused")

    def build(self, shape):
        self.unused.build((None, 5))

    def call(self, x):
        return ops.relu(x)


@keras.saving.register_keras_serializable("tests")
class Network(keras.Model):
    def __init__(self, width=WIDTH, **kwargs):
        inputs = keras.Input((LENGTH, 4))
        x = Token(name="special")(layers.Dense(width, name="before")(inputs))
        x = Spare(name="spare")(x)
        super().__init__(inputs, layers.Dense(3, name="head")(x), **kwargs)
        self.width = width

    def get_config(self):
        return {"name": self.name, "width": self.width}


@pytest.mark.filterwarnings("ignore:.*becomes a plain model")
def test_class_of_the_original_has_them_as_before():
    network = randomise(Network())
    graph = kn.as_functional(network, verbose=0)
    small = kn.prune(graph, kn.Magnitude(), ratio=0.5, verbose=0)
    smaller = kn.as_original(small, network)
    assert smaller.width == WIDTH // 2
    x = np.random.default_rng(0).normal(size=(5, LENGTH, 4)).astype("float32")
    np.testing.assert_allclose(smaller(x), small(x), atol=1e-6)


class Penalised(layers.Layer):
    """Weights with a regularizer and a constraint of their own."""

    def build(self, shape):
        self.kernel = self.add_weight(
            shape=(shape[-1], 12), name="kernel", regularizer="l2", constraint="non_neg"
        )
        self.table = self.add_weight(shape=(1, *shape[1:]), name="table", regularizer="l1")
        self.rows = self.add_weight(shape=(9, 12), name="rows", regularizer="l2")

    def call(self, x):
        found = ops.take(self.rows, np.arange(LENGTH), axis=0)
        return ops.relu(ops.matmul(x + self.table, self.kernel)) + found


def test_regularizers_and_constraints_of_own_weights_go_with_them(tmp_path):
    inputs = keras.Input((LENGTH, 5))
    x = Penalised(name="own")(layers.Dense(WIDTH, name="before")(inputs))
    model = randomise(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))))
    graph = kn.as_functional(model)
    assert graph is not model
    plan = random_plan(graph)
    small = kn.rebuild(graph, plan)
    graph.save(tmp_path / "graph.keras")
    loaded = keras.saving.load_model(tmp_path / "graph.keras")
    expected = sorted(map(float, model.losses))
    assert len(expected) == 3
    np.testing.assert_allclose(sorted(map(float, loaded.losses)), expected, rtol=1e-5)
    (kernel,) = (weight for weight in small.weights if weight.constraint)
    assert isinstance(kernel.constraint, keras.constraints.NonNeg)
    squares = [
        np.square(w).sum()
        for w in small.weights
        if isinstance(w.regularizer, keras.regularizers.L2)
    ]
    sizes = [
        np.abs(w).sum() for w in small.weights if isinstance(w.regularizer, keras.regularizers.L1)
    ]
    wanted = sorted([0.01 * float(value) for value in (*squares, *sizes)])
    np.testing.assert_allclose(sorted(map(float, small.losses)), wanted, rtol=1e-5)
    assert (len(squares), len(sizes)) == (2, 1)


class Balanced(layers.Layer):
    """Adds to the loss in training, as mixtures of experts do."""

    def call(self, x, training=False):
        if training:
            self.add_loss(ops.mean(x * x))
        return ops.relu(x) * 2.0


class Doubled(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(WIDTH, activation="relu")

    def call(self, x):
        return self.dense(x) * 2.0


class Drawn(layers.Layer):
    """Cannot be converted, and so keeps what its part adds to the loss."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.part, self.seeds = Balanced(), keras.random.SeedGenerator(0)

    def call(self, x, training=False):
        x = self.part(x, training=training)
        return x * keras.random.uniform((), seed=self.seeds) if training else x


@pytest.mark.filterwarnings("ignore:.*does not come back from a")
def test_a_loss_that_is_left_out_hides_no_other():
    inputs = keras.Input((5,))
    x = Balanced(name="balanced")(layers.Dense(WIDTH)(inputs))
    x = Doubled(activity_regularizer="l2", name="penalised")(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    with pytest.warns(UserWarning, match="Layer 'balanced' .* adds to the loss in training"):
        graph = kn.as_functional(model, verbose=0)
    parts = {layer.name: type(layer) for layer in graph.layers}
    assert parts["balanced"] is keras.Model or issubclass(parts["balanced"], keras.Model)
    assert parts["penalised"] is Doubled
    samples = np.ones((4, 5), "float32")
    model(samples), graph(samples)
    np.testing.assert_allclose(*(np.array(m.losses) for m in (model, graph)), rtol=1e-6)


@pytest.mark.filterwarnings("default:.*does not come back from a")
def test_a_loss_stays_where_its_layer_does(recwarn):
    inputs = keras.Input((5,))
    x = Doubled()(Drawn(name="drawn")(layers.Dense(WIDTH)(inputs)))
    model = keras.Model(inputs, layers.Dense(2)(x))
    graph = kn.as_functional(model, verbose=0)
    assert isinstance(graph.get_layer("drawn"), Drawn)
    assert not [warning for warning in recwarn if "add_loss" in str(warning.message)]


class Tied(layers.Layer):
    """Looks words up, and the way back sorts its table, which no layer of Keras does."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.mixing = layers.Dense(WIDTH, name="mixing")

    def build(self, shape):
        self.table = self.add_weight(shape=(20, WIDTH), name="table")
        self.mixing.build((None, WIDTH))

    def call(self, x, back=False):
        if not back:
            return self.mixing(ops.take(self.table, x, axis=0))
        return ops.matmul(self.mixing(x), ops.transpose(ops.sort(self.table, axis=0)))


class TiedNetwork(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.tied, self.hidden = Tied(name="tied"), layers.Dense(16, "relu", name="hidden")
        self.out = layers.Dense(WIDTH, name="out")

    def call(self, tokens):
        x = self.tied(tokens)
        return self.tied(x + self.out(self.hidden(x)), back=True)


@pytest.mark.parametrize("subclassed", [False, True])
def test_a_layer_stays_whole_where_one_of_its_calls_does(subclassed):
    """Else a smaller model would have its weights twice, and train them apart."""
    inputs, network = keras.Input((LENGTH,), dtype="int32"), TiedNetwork()
    model = network if subclassed else keras.Model(inputs, network.call(inputs))
    graph = kn.as_functional(model, inputs, verbose=0)
    randomise(graph)
    assert len(graph.weights) == 7
    plan = kn.plan_pruning(graph, kn.Magnitude(), ratio=0.5)
    small = kn.rebuild(graph, plan)
    assert [w.shape for w in small.weights if "table" in w.path] == [(20, WIDTH)]
    assert small.count_params() == graph.count_params() - 8 * (2 * WIDTH + 1)
    assert kn.verify(small, graph, plan).ok


@keras.saving.register_keras_serializable("test_own_weights")
class Borrowed(layers.Layer):
    """Computes with the table of another layer, by an operation that no layer of Keras does."""

    def __init__(self, table, **kwargs):
        super().__init__(**kwargs)
        self.table = table

    def call(self, x):
        return ops.matmul(x, ops.transpose(ops.sort(self.table.embeddings, axis=0)))

    def get_config(self):
        table = keras.saving.serialize_keras_object(self.table)
        return {**super().get_config(), "table": table}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "table": keras.saving.deserialize_keras_object(config["table"])})


@pytest.mark.filterwarnings("ignore::keras_nisp.UnknownLayerWarning")
def test_weights_of_which_a_smaller_model_has_copies_are_named():
    table, inputs = layers.Embedding(20, WIDTH, name="words"), keras.Input((LENGTH,))
    x = table(inputs)
    x = x + layers.Dense(WIDTH, name="out")(layers.Dense(64, "relu", name="hidden")(x))
    model = keras.Model(inputs, Borrowed(table, name="back")(x))
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    with pytest.warns(UserWarning, match=r"hold the same weights: .'words/embeddings'.*a copy"):
        small = kn.rebuild(model, plan)
    assert kn.verify(small, model, plan).ok
