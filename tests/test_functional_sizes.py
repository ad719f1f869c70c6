"""`as_functional` where sizes are open: at those of a call, of data, or left open."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from nets import random_plan, randomise

import keras_nisp as kn


class Attention(layers.Layer):
    """By hand, as language models write it: Keras is not told the length of what comes out."""

    def __init__(self, heads=2, size=4, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.size = heads, size
        for name in ("query", "key", "value"):
            dense = layers.EinsumDense("bti,ihd->bthd", (None, heads, size), name=name)
            setattr(self, name, dense)
        self.output_dense = layers.EinsumDense("bthd,hdo->bto", (None, heads * size), name="output")

    def build(self, shape):
        for dense in (self.query, self.key, self.value):
            dense.build(shape)
        self.output_dense.build((None, None, self.heads, self.size))

    def call(self, x, allowed=None):
        batch, length = ops.shape(self.key(x))[:2]
        scores = ops.einsum("bqhd,bkhd->bhqk", self.query(x), self.key(x))
        if allowed is not None:
            scores = ops.where(allowed[:, None], scores, -1e9)
        values = ops.einsum("bhqk,bkhd->bqhd", ops.softmax(scores), self.value(x))
        values = ops.reshape(values, (batch, length, self.heads, self.size))
        return self.output_dense(values), None


class Decoder(layers.Layer):
    """Makes a causal mask for batch and length, and asks each for what it is."""

    def __init__(self, width=8, **kwargs):
        super().__init__(**kwargs)
        self.attention = Attention(size=width // 2, name="attention")
        self.norm = layers.LayerNormalization(name="norm")
        self.inner = layers.Dense(2 * width, activation="relu", name="inner")
        self.outer = layers.Dense(width, name="outer")

    def build(self, shape):
        self.attention.build(shape)
        self.norm.build(shape)
        self.inner.build(shape)
        self.outer.build((*shape[:-1], self.inner.units))

    def compute_output_spec(self, x, padding=None):
        return keras.KerasTensor(x.shape, x.dtype)

    def call(self, x, padding=None):
        batch, length, _ = ops.shape(x)
        steps = ops.arange(length)
        mask = ops.broadcast_to(steps[:, None] >= steps, (batch, length, length))
        if padding is not None:
            mask = ops.logical_and(ops.cast(padding[:, None], "bool"), mask)
        x = x + self.attention(self.norm(x), allowed=mask)[0]
        return x + self.outer(self.inner(x))


def decoder_only(length=None):
    """The form of a language model: token ids and a padding mask, of an open length."""
    words = keras.Input((length,), dtype="int32", name="words")
    padding = keras.Input((length,), dtype="int32", name="padding")
    x = layers.Embedding(20, 8, name="table")(words)
    for index in range(2):
        x = Decoder(name=f"decoder_{index}")(x, padding=padding)
    return keras.Model({"words": words, "padding": padding}, layers.Dense(3, name="head")(x))


def tokens(length, count=3):
    rng = np.random.default_rng(0)
    padding = np.ones((count, length), "int32")
    padding[0, -2:] = 0
    return {"words": rng.integers(0, 20, (count, length)), "padding": padding}


def custom_layers(model):
    return [x for x in model._flatten_layers() if isinstance(x, (Attention, Decoder))]


def test_masks_and_inner_sizes_of_a_length_that_input_shape_gives():
    model = randomise(decoder_only())
    written = kn.as_functional(model, input_shape=[(6,), (6,)])
    assert custom_layers(written) == []
    assert [layer.name for layer in written.layers if isinstance(layer, keras.Model)] == [
        "decoder_0",
        "decoder_1",
    ]
    for count in (1, 4):
        x = tokens(6, count)
        np.testing.assert_allclose(written(x), model(x), atol=1e-5)
    with pytest.raises(ValueError, match=r"expected shape=.None, 6"):
        written(tokens(5))
    plan = random_plan(written)
    kept = {row.layer: row.kept for row in plan.creators}
    assert kept["decoder_0/inner"] < 16
    assert kept["table"] < 8
    small = kn.rebuild(written, plan)
    assert kn.verify(small, written, plan, tolerance=1e-5).ok


def test_open_lengths_without_a_size_are_told(capsys):
    model = decoder_only()
    assert kn.as_functional(model) is model
    said = capsys.readouterr().out
    assert "'decoder_0', 'decoder_1' (Decoder): " in said
    assert "with `input_shape`, the shape of one sample" in said
    assert kn.as_functional(model, verbose=0) is model
    assert capsys.readouterr().out == ""


def test_sizes_that_do_not_fit_and_quantized_models():
    model = decoder_only()
    for wrong in ((6,), [(6,)], [(6,), (6, 8)], [(6,), 6], [(6,), (0,)]):
        with pytest.raises(ValueError, match=r"'padding'.*'words'"):
            kn.as_functional(model, input_shape=wrong)

    class Net(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.dense = layers.Dense(4, name="dense")

        def call(self, x):
            return self.dense(x)

    net = Net()
    net(np.ones((1, 8)))
    net.quantize("int8")
    with pytest.raises(TypeError, match=r"'net' was quantized by Keras"):
        kn.as_functional(net, keras.Input((8,)))


def test_nested_models_are_converted_at_the_sizes_of_their_call():
    inner = decoder_only()
    words, padding = (keras.Input((6,), dtype="int32", name=n) for n in ("words", "padding"))
    y = inner({"words": words, "padding": padding})
    model = randomise(keras.Model([words, padding], layers.Dense(2)(ops.mean(y, axis=1))))
    written = kn.as_functional(model)
    assert custom_layers(written) == []
    x = tokens(6)
    x = [x["words"], x["padding"]]
    np.testing.assert_allclose(written(x), model(x), atol=1e-5)


def test_subclassed_models_of_open_length():
    class Net(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.decoder, self.head = Decoder(name="decoder"), layers.Dense(3, name="head")

        def call(self, x):
            return self.head(self.decoder(x))

    net = Net()
    written = kn.as_functional(net, keras.Input((None, 8)), input_shape=(6, 8))
    assert custom_layers(written) == []
    x = np.random.default_rng(0).normal(size=(3, 6, 8)).astype("float32")
    np.testing.assert_allclose(written(x), net(x), atol=1e-5)


def test_inputs_of_different_open_lengths():
    class Cross(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = layers.Dense(4, name="dense")

        def build(self, x_shape, context_shape):
            self.dense.build(x_shape)

        def compute_output_spec(self, x, context):
            return keras.KerasTensor(x.shape, x.dtype)

        def call(self, x, context):
            steps = ops.arange(x.shape[1])[:, None] >= ops.arange(context.shape[1])
            scores = ops.matmul(self.dense(x), ops.transpose(context, (0, 2, 1)))
            return ops.matmul(ops.where(steps, scores, 0.0), context)

    a, b = keras.Input((None, 4), name="a"), keras.Input((None, 4), name="b")
    model = keras.Model([a, b], layers.Dense(2)(Cross(name="cross")(a, b)))
    written = kn.as_functional(model, input_shape=[(5, 4), (9, 4)])
    assert isinstance(written.get_layer("cross"), keras.Model)
    assert [tensor.shape[1] for tensor in written.inputs] == [5, 9]


class Positions(layers.Layer):
    """Gives nothing but constants."""

    def call(self, x):
        return ops.arange(ops.shape(x)[1], dtype="float32")

    def compute_output_shape(self, shape):
        return (shape[1],)


class Plain(layers.Layer):
    """Has no config that Keras could write down, once it was given a policy as an object."""

    def __init__(self, factor=2.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")

    def call(self, x):
        return self.factor * x * self.scale

    def compute_output_shape(self, shape):
        return shape


def around(layer):
    inputs = keras.Input((6, 4))
    x = layer(layers.Dense(4, name="before")(inputs))
    return keras.Model(inputs, layers.Dense(2)(x))


def parts_of(*parts):
    class Row(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.parts = parts

        def build(self, shape):
            for part in self.parts:
                part.build(shape)
                shape = part.compute_output_shape(shape)

        def call(self, x):
            return self.row(x, *self.parts)

    return Row


def test_layers_that_give_constants():
    kind = parts_of(layers.Dense(4, name="dense"), Positions(name="positions"))
    kind.row = staticmethod(lambda x, dense, positions: dense(x) + positions(x)[:, None])
    model = around(kind(name="row"))
    written = kn.as_functional(model)
    assert isinstance(written.get_layer("row"), keras.Model)
    x = np.random.default_rng(0).normal(size=(3, 6, 4)).astype("float32")
    np.testing.assert_allclose(written(x), model(x), atol=1e-6)


@pytest.mark.parametrize("rows", [1, "batch"])
def test_constants_beside_what_is_symbolic(rows):
    """Such as an empty cache; with a row for each sample no graph has it."""

    class Cached(layers.Layer):
        def call(self, x):
            return x * 2.0, ops.ones((ops.shape(x)[0] if rows == "batch" else 1, 4))

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape), keras.KerasTensor((None, 4))

    cached, inputs = Cached(name="cached"), keras.Input((6, 4))
    model = keras.Model(inputs, layers.Dense(2)(cached(inputs)[0]))
    written = kn.as_functional(model)
    assert (written is model) == (rows == "batch")


class Rotations(layers.Layer):
    """Keeps frequencies as a weight that is not trained, and gives angles for each sample."""

    def build(self, shape):
        self.frequencies = self.add_weight(shape=(shape[-1],), trainable=False, name="frequencies")

    def call(self, x):
        steps = ops.arange(ops.shape(x)[1], dtype="float32")
        angles = ops.expand_dims(steps, 1) * self.frequencies
        return ops.broadcast_to(ops.cos(angles)[None], ops.shape(x))

    def compute_output_shape(self, shape):
        return shape


class Shifted(layers.Layer):
    """Uses such a weight beside what is symbolic."""

    def build(self, shape):
        self.shift = self.add_weight(shape=(shape[-1],), trainable=False, name="shift")
        self.dense = layers.Dense(shape[-1], name="dense")
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x) + ops.flip(x * self.shift, -1)

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_that_are_never_trained_become_constants(frozen):
    rotations, shifted = Rotations(name="rotations"), Shifted(name="shifted")
    kind = parts_of(shifted, rotations)
    kind.row = staticmethod(lambda x, shifted, rotations: shifted(x) * rotations(x))
    row = kind(name="row")
    model = randomise(around(row))
    row.trainable = not frozen
    written = kn.as_functional(model)
    assert isinstance(written.get_layer("row"), keras.Model)
    assert written.count_params() == model.count_params() - 8
    x = np.random.default_rng(0).normal(size=(3, 6, 4)).astype("float32")
    np.testing.assert_allclose(written(x), model(x), atol=1e-6)


class Tokens(layers.Layer):
    """Looks its positions up by indices that it keeps, as layers of keras-hub do."""

    def build(self, shape):
        self.positions = layers.Embedding(shape[1], 4, name="positions")
        self.positions.build((1, shape[1]))
        self.steps = self.add_weight(
            shape=(1, shape[1]), dtype="int32", trainable=False, initializer="zeros", name="steps"
        )
        self.steps.assign(ops.arange(shape[1])[None])

    def call(self, x):
        return x + self.positions(self.steps)

    def compute_output_shape(self, shape):
        return shape


def test_indices_that_a_layer_keeps():
    layer = Tokens(name="tokens")
    model = around(layer)
    written = kn.as_functional(model)
    assert isinstance(written.get_layer("tokens"), keras.Model)
    assert {id(w) for w in model.trainable_weights} == {id(w) for w in written.trainable_weights}
    x = np.random.default_rng(0).normal(size=(3, 6, 4)).astype("float32")
    np.testing.assert_allclose(written(x), model(x), atol=1e-6)
    small = kn.prune(written, kn.Magnitude(), ratio=0.5, verbose=0)
    assert small.get_layer("tokens").get_layer("positions").output_dim == 2


class Twice(layers.Layer):
    """Can be converted in one of its calls only."""

    def __init__(self, part, **kwargs):
        super().__init__(**kwargs)
        self.part = part

    def build(self, shape):
        self.part.build(shape)

    def call(self, x, by_value=False):
        return self.part(x) * (ops.convert_to_tensor(float(x[0, 0, 0])) if by_value else 2.0)

    def compute_output_spec(self, x, by_value=False):
        return keras.KerasTensor(x.shape, x.dtype)


@pytest.mark.filterwarnings("ignore:.*does not come back from a `.keras` file")
@pytest.mark.parametrize(
    ("part", "names"),
    [(layers.ReLU(name="part"), {"twice", "twice_2"}), (layers.Dense(4, name="part"), {"twice"})],
)
def test_layer_that_is_written_out_in_some_calls(part, names):
    """Unless it has weights: those of two layers would no longer be the same when pruned."""
    twice, inputs = Twice(part, name="twice"), keras.Input((6, 4))
    model = keras.Model(inputs, twice(inputs) + twice(inputs, by_value=True))
    written = kn.as_functional(model)
    assert {layer.name for layer in written.layers if layer.name.startswith("twice")} == names
    x = np.random.default_rng(0).normal(size=(3, 6, 4)).astype("float32")
    np.testing.assert_allclose(written(x), model(x), atol=1e-6)


def test_names_of_several_calls_are_not_those_of_other_layers():
    part, inputs = Twice(layers.ReLU(), name="twice"), keras.Input((6, 4))
    x = part(layers.Dense(4, name="twice_2")(inputs))
    y = part(layers.Dense(3, name="twice_3")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.Concatenate()([x, y])))
    written = kn.as_functional(model, verbose=0)
    names = {layer.name for layer in written.layers if layer.name.startswith("twice")}
    assert names == {"twice", "twice_2", "twice_3", "twice_4"}
    x = np.random.default_rng(0).normal(size=(3, 6, 4)).astype("float32")
    np.testing.assert_allclose(written(x), model(x), atol=1e-6)
    plan = kn.plan_pruning(written, kn.Magnitude(), ratio=0.5)
    assert kn.verify(kn.rebuild(written, plan), written, plan).ok


class Products(layers.Layer):
    """Multiplies by a weight of its own, and by the kernel of a layer that it does not call."""

    def build(self, shape):
        self.first = self.add_weight(shape=(shape[-1], 8), name="first")
        self.second = layers.EinsumDense("...d,df->...f", (4,), name="second")
        self.second.build((*shape[:-1], 8))

    def call(self, x):
        return ops.matmul(ops.relu(x @ self.first), self.second.kernel)

    def compute_output_shape(self, shape):
        return shape


def test_products_with_weights_are_dense_layers(tmp_path):
    model = randomise(around(Products(name="products")))
    written = kn.as_functional(model)
    inner = written.get_layer("products")
    assert [inner.get_layer(name).units for name in ("first", "second")] == [8, 4]
    assert {id(w) for w in written.weights} == {id(w) for w in model.weights}
    x = np.random.default_rng(0).normal(size=(3, 6, 4)).astype("float32")
    np.testing.assert_allclose(written(x), model(x), atol=1e-6)
    small = kn.prune(written, kn.Magnitude(), ratio=0.5, verbose=0)
    assert small.get_layer("products").get_layer("first").units == 4
    written.save(tmp_path / "written.keras")
    again = keras.saving.load_model(tmp_path / "written.keras")
    np.testing.assert_array_equal(again(x), written(x))


class Forgetful(Plain):
    def get_config(self):
        return {"factor": self.what_it_was}


@pytest.mark.filterwarnings("ignore:.*does not come back from a `.keras` file")
@pytest.mark.filterwarnings("ignore::keras_nisp.UnknownLayerWarning")
@pytest.mark.parametrize("layer", [Plain, Forgetful])
def test_layers_without_a_config(layer):
    policy = keras.DTypePolicy("float32")
    parts = [layer(3.0, dtype=policy, name=name) for name in ("first", "second")]
    kind = parts_of(*parts, layers.Dense(8, name="inner"), layers.Dense(4, name="outer"))
    kind.row = staticmethod(lambda x, first, second, inner, outer: second(outer(inner(first(x)))))
    model = randomise(around(kind(name="row")))
    with pytest.raises((NotImplementedError, AttributeError)):
        parts[0].get_config()
    written = kn.as_functional(model)
    assert isinstance(written.get_layer("row"), keras.Model)
    small = kn.prune(written, kn.Magnitude(), ratio=0.5, verbose=0)
    assert small.get_layer("row").get_layer("inner").units == 4
    assert small.get_layer("row").get_layer("first").factor == 3.0
