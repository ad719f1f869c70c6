"""What language models and their data bring along that cannot be pruned as it is."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from nets import random_plan, randomise

import keras_nisp as kn

TOKENS = np.random.default_rng(0).integers(0, 20, (70, 6)).astype("int32")


class Feedforward(layers.Layer):
    """A block of a class of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dense(12, activation="relu", name="inner")
        self.outer = layers.EinsumDense("abc,cd->abd", (None, 8), name="outer")

    def build(self, shape):
        self.inner.build(shape)
        self.outer.build((*shape[:-1], 12))

    def call(self, x):
        return x + self.outer(self.inner(x))


def language_model(length=6, flash=None):
    tokens = keras.Input((length,), dtype="int32", name="tokens")
    x = layers.Embedding(20, 8, name="embedding")(tokens)
    x += layers.MultiHeadAttention(2, 4, flash_attention=flash, name="attention")(x, x)
    x = Feedforward(name="feedforward")(x)
    return randomise(keras.Model(tokens, layers.Dense(3, name="head")(x), name="lm"))


def test_factors_of_lora_shrink_with_their_kernels():
    model = language_model()
    block = model.get_layer("feedforward")
    for layer in (block.inner, block.outer):
        layer.enable_lora(2)
    randomise(model)
    graph = kn.as_functional(model, verbose=0)
    plan = random_plan(graph)
    assert {row.layer: row.kept for row in plan.creators}["feedforward/inner"] < 12
    small = kn.rebuild(graph, plan)
    assert kn.verify(small, graph, plan, TOKENS, tolerance=1e-5).ok
    assert any("lora" in weight.name for weight in small.weights)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`", "ignore:__array__")
def test_quantized_layers_inside_of_others():
    model = language_model()
    model.get_layer("feedforward").inner.quantize("int8")
    for function in (kn.as_functional, lambda model: kn.prune(model, kn.Magnitude(), ratio=0.5)):
        with pytest.raises(
            TypeError, match=r"'inner'.*Prune and export the model as it was before"
        ):
            function(model)


def test_tokens_beyond_the_vocabulary():
    graph = kn.as_functional(language_model(), verbose=0)
    with pytest.raises(ValueError, match=r"'embedding' \(Embedding\).* is not in \[0, 20\)"):
        kn.prune(graph, kn.NISP(TOKENS + 9), ratio=0.5, calibration=TOKENS + 9, verbose=0)


def test_ragged_tokens():
    graph = kn.as_functional(language_model(None), verbose=0)
    ragged = tf.ragged.constant([[1, 2, 3], [4, 5]] * 40)
    with pytest.raises(TypeError, match=r"one length for input 'tokens'.*\.to_tensor\(\)"):
        kn.prune(graph, kn.NISP(ragged), ratio=0.5, calibration=ragged, verbose=0)


def test_flash_attention_is_refused_by_keras_on_tensorflow():
    with pytest.raises(ValueError, match="Flash attention is not supported in tensorflow"):
        kn.prune(language_model(flash=True), kn.Magnitude(), ratio=0.5, calibration=TOKENS)


class Positions(layers.Layer):
    """Takes no more than eight positions."""

    def build(self, shape):
        self.table = self.add_weight(shape=(8, shape[-1]), name="table")

    def call(self, x):
        return x + self.table[: ops.shape(x)[1]]


def test_open_lengths():
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = Positions(name="positions")(layers.Embedding(20, 8)(tokens))
    x = layers.Dense(12, name="inner")(x)
    model = randomise(keras.Model(tokens, layers.Dense(3)(x), name="lm"))
    with pytest.raises(ValueError, match=r"(?s)leaves the size of its inputs open.*`input_shape="):
        kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5, input_shape=(6,))
    small = kn.rebuild(model, plan)
    assert small.get_layer("positions").table.shape == (8, 4)  # of a kind that is known
    assert kn.verify(small, model, plan, TOKENS).ok
