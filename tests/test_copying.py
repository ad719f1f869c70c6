"""Copies of layers and models: what they hold beside their weights comes along, bit by bit."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_nisp as kn
from keras_nisp import copying

WORDS = np.array([["red apple", "x"], ["green\x85pear", "y"], ["red pear", "x"]])


def same(model, small, inputs):
    """Both models give the same bits."""
    for one, other in zip(
        keras.tree.flatten(model(inputs)), keras.tree.flatten(small(inputs)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def without_nothing(model):
    """The model rebuilt without a change, copied, widened by nothing, and as a teacher."""
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.0)
    yield kn.rebuild(model, plan)
    yield copying.copy_model(model)
    yield kn.widen(model, 1, init="preserve")
    if model.outputs[0].shape[-1] > 1:
        yield kn.distiller(model, model).teacher


def head(x):
    return layers.Dense(3)(layers.Dense(8, activation="relu", name="hidden")(x))


def normalized(how):
    normalization = layers.Normalization(name="normalization")
    if how == "given":
        normalization = layers.Normalization(mean=[1.0, 2, 3, 4], variance=[4.0, 3, 2, 1])
    inputs = keras.Input((4,))
    model = keras.Model(inputs, head(normalization(inputs)))
    if how == "adapted":
        normalization.adapt(np.random.default_rng(0).normal(3, 5, (20, 4)))
    if how == "from a file":
        normalization.load_own_variables({"0": np.arange(4.0), "1": np.full(4, 7.0), "2": 9})
    return model


@pytest.mark.parametrize("how", ["adapted", "given", "from a file"])
def test_normalization(how):
    model = normalized(how)
    x = np.random.default_rng(1).normal(3, 5, (5, 4)).astype("float32")
    for copy in without_nothing(model):
        same(model, copy, x)
    small = kn.prune(model, kn.Magnitude(), ratio=0.5, verbose=0)
    probe = [keras.Model(m.input, m.layers[1].output) for m in (model, small)]
    same(*probe, x)
    assert kn.widen(model, 2, init="preserve").get_layer("hidden").units == 16


def lookup(kind, **settings):
    def make(tmp_path):
        layer = kind(**settings)
        if kind is layers.IntegerLookup:
            layer.adapt(np.array([[7, 9], [7, 5]]))
        elif kind is layers.TextVectorization:
            layer.adapt(WORDS[:, 0])
        else:
            layer.set_vocabulary(["red", "green"])
        return layer

    return make


def from_a_file(tmp_path):
    (tmp_path / "words.txt").write_text("red\ngreen\nblue")
    return layers.StringLookup(vocabulary=str(tmp_path / "words.txt"))


LOOKUPS = {
    "integers": (lookup(layers.IntegerLookup), np.array([[7, 9], [5, 1]])),
    "words": (lookup(layers.StringLookup), np.array([["green", "red"], ["?", "red"]])),
    "from a file": (from_a_file, np.array([["green", "blue"], ["?", "red"]])),
    "text": (lookup(layers.TextVectorization, output_sequence_length=2), WORDS[:, :1]),
    "tf-idf": (lookup(layers.TextVectorization, output_mode="tf_idf"), WORDS[:, :1]),
    "characters": (
        lookup(layers.TextVectorization, output_sequence_length=5, split="character"),
        np.array([["a\nb"], ["red"]]),
    ),
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_vocabularies(name, tmp_path):
    make, x = LOOKUPS[name]
    layer = make(tmp_path)
    inputs = keras.Input(x.shape[1:], dtype="int64" if name == "integers" else "string")
    y = layer(inputs)
    y = y if name == "tf-idf" else layers.Flatten()(layers.Embedding(64, 3)(y))
    model = keras.Model(inputs, head(y))
    x = keras.ops.convert_to_tensor(x)
    for copy in without_nothing(model):
        same(model, copy, x)


def test_vocabulary_of_a_loaded_model(tmp_path):
    inputs = keras.Input((1,), dtype="string")
    vectorize = layers.TextVectorization(output_mode="multi_hot")
    vectorize.adapt(WORDS[::2, 0])
    model = keras.Model(inputs, head(vectorize(inputs)))
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    for copy in without_nothing(loaded):
        same(model, copy, keras.ops.convert_to_tensor(WORDS[:, :1]))


def test_bins():
    inputs = keras.Input((1,))
    adapted = layers.Discretization(num_bins=4, output_mode="one_hot")
    adapted.adapt(np.linspace(0, 1, 50)[:, None])
    x = layers.Concatenate()([adapted(inputs), layers.Discretization([0.3, 0.6])(inputs)])
    x = layers.Concatenate()([x, layers.CategoryEncoding(3, "one_hot")(inputs)])
    model = keras.Model(inputs, head(x))
    for copy in without_nothing(model):
        same(model, copy, np.linspace(0, 1, 9)[:, None])


@keras.saving.register_keras_serializable("test_copying")
class Table(layers.Layer):
    """Keeps words in a file, a number in the variables' file, and constants made of weights."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.words, self.scale, self.constant = [], 1.0, 0.0
        self.inner = layers.Normalization(axis=None)

    def build(self, shape):
        self.shift = self.add_weight(shape=(shape[-1],), name="shift")
        self.inner.build(shape)
        self.finalize_state()

    def call(self, x):
        return self.inner(x) * self.scale * len(self.words) + self.constant

    def finalize_state(self):
        self.constant = self.shift.numpy().sum()

    def save_own_variables(self, store):
        super().save_own_variables(store)
        store["scale"] = np.asarray(self.scale)

    def load_own_variables(self, store):
        self.scale = float(store.pop("scale"))
        super().load_own_variables(store)

    def save_assets(self, folder):
        with open(f"{folder}/words", "w") as file:
            file.write("\n".join(self.words))

    def load_assets(self, folder):
        with open(f"{folder}/words") as file:
            self.words = file.read().split("\n")


class Remembers(layers.Layer):
    """Has no hooks: attributes that somebody set, without a config, and a narrow constructor."""

    def __init__(self, factor):
        super().__init__(name="remembers", dtype="float32")
        self.factor, self.offsets = factor, None

    def call(self, x):
        return x * self.factor + (0 if self.offsets is None else self.offsets)


def test_layers_of_ones_own():
    inputs = keras.Input((4,))
    table, remembers = Table(), Remembers(2)
    x = layers.Dense(6)(remembers(table(inputs)))
    model = keras.Model(inputs, head(x))
    table.words, table.scale = ["a", "b"], 3.0
    table.shift.assign([1, 2, 3, 4])
    table.finalize_state()
    table.inner.adapt(np.arange(8.0).reshape(2, 4))
    remembers.factor, remembers.offsets = 5.0, np.arange(4.0)
    remembers.trainable = False
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    for copy in without_nothing(model):
        same(model, copy, x)
        assert not copy.get_layer("remembers").trainable
    kn.prune(model, kn.Magnitude(), ratio=0.5, verbose=0)


def test_frozen_parts_of_layers():
    inputs = keras.Input((4, 6))
    attention = layers.MultiHeadAttention(2, 4, name="attention")
    model = keras.Model(inputs, head(attention(inputs, inputs)))
    attention._query_dense.trainable = False
    attention._key_dense.bias.trainable = False
    model.get_layer("hidden").kernel.trainable = False
    small = kn.prune(model, kn.Magnitude(), ratio=0.5, verbose=0)
    frozen = [v.path for v in model.weights if not v.trainable]
    assert len(frozen) == 4
    assert [v.path for v in small.weights if not v.trainable] == frozen
