"""Padding that an input of the model tells of: what looks at data does not look at it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from marked import slow
from nets import randomise

import keras_nisp as kn
from keras_nisp.keras_graph.masks import counts_of, mark_inputs, pass_on_counts

STEPS, WORDS, COUNT = 12, 50, 96


def encoder(head="pooled", name="padding_mask") -> keras.Model:
    """Attention and a feed-forward network, which look at what the mask lets through."""
    tokens = keras.Input((STEPS,), dtype="int32", name="token_ids")
    mask = keras.Input((STEPS,), dtype="int32", name=name)
    x = layers.Embedding(WORDS, 16, name="table")(tokens)
    attend = ops.cast(ops.expand_dims(mask, 1), "bool")
    attended = layers.MultiHeadAttention(2, 8, name="attention")(x, x, attention_mask=attend)
    x = layers.LayerNormalization(name="norm")(layers.Add(name="added")([x, attended]))
    x = layers.Dense(24, activation="relu", name="inner")(x)
    x = layers.Dense(16, activation="relu", name="outer")(x)
    if head == "pooled":
        weights = ops.expand_dims(ops.cast(mask, "float32"), -1)
        x = ops.sum(x * weights, 1) / ops.sum(weights, 1)
    outputs = layers.Dense(5, activation=None if head == "values" else "softmax", name="head")(x)
    return randomise(keras.Model({"token_ids": tokens, name: mask}, outputs))


def data(padded_with: int, name="padding_mask") -> dict:
    """The same words, with other words where they do not count."""
    rng = np.random.default_rng(0)
    mask = np.arange(STEPS) < rng.integers(3, STEPS, (COUNT, 1))
    tokens = np.where(mask, rng.integers(1, WORDS, (COUNT, STEPS)), padded_with)
    return {"token_ids": tokens.astype("int32"), name: mask.astype("int32")}


def same(first: keras.Model, second: keras.Model):
    for one, other in zip(first.weights, second.weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-4, err_msg=one.path)


@pytest.mark.parametrize("head", ["pooled", "steps", "values"])
@pytest.mark.parametrize("name", ["NISP", "LayerByLayer", "LRP", "OptimalBrainSurgeon"])
def test_scores(name, head):
    model = encoder(head)
    scores = [getattr(kn, name)(data(word))(kn.trace(model)) for word in (0, 7)]
    np.testing.assert_allclose(*scores, rtol=1e-3)


@pytest.mark.parametrize("head", ["steps", slow("pooled"), slow("values")])
def test_widths_and_repair(head):
    model = encoder(head)
    pruned = []
    for word in (0, 7):
        x = data(word)
        plan = kn.plan_pruning(model, kn.NISP(), params_reduction=0.4, calibration=x)
        small = kn.rebuild(model, plan)
        pruned.append((plan, kn.recalibrate(small, x, model, plan, teach_steps=3)))
    (plan, small), (other_plan, other) = pruned
    assert plan.groups == other_plan.groups
    same(small, other)


def test_each_input_has_its_own_mask():
    names = ["encoder_token_ids", "encoder_padding_mask", "decoder_token_ids"]
    names += ["decoder_padding_mask", "mask_positions", "image"]
    masks = np.array([[1, 1, 0], [1, 0, 0]]), np.array([[1, 1, 1], [1, 1, 0]])
    tokens = [tf.ones((2, 3), "int32") for _ in range(3)]
    values = [tokens[0], tf.constant(masks[0]), tokens[1], tf.constant(masks[1]), tokens[2]]
    mark_inputs(names, [*values, tf.ones((2, 5, 5, 3))])
    found = [counts_of(value) for value in values]
    assert found[1] is found[3] is None
    np.testing.assert_array_equal(found[0], masks[0])
    np.testing.assert_array_equal(found[2], masks[1])


def test_a_pooled_vector_has_no_steps():
    """Not even where it has as many channels as there are steps."""
    tokens, ids = tf.ones((2, 4), "int32"), ["tokens", "mask"]
    mark_inputs(ids, [tokens, tf.constant([[1, 1, 0, 0], [1, 0, 0, 0]])])
    made = [tf.ones((2, 4)), tf.ones((2, 4, 3)), tf.ones((2, 5, 4))]
    pass_on_counts((tokens,), {}, made)
    assert [counts_of(tensor) is not None for tensor in made] == [False, True, False]


def test_known_values_of_a_table_are_no_steps():
    features, known = tf.ones((2, 4)), tf.constant([[1, 1, 0, 0], [1, 0, 0, 0]])
    mark_inputs(["features", "known_mask"], [features, known])
    assert counts_of(features) is None


def test_rows_of_an_image_are_no_steps():
    """A mask of as many steps is for something else, unless it is called after the image."""
    mask = tf.constant([[1, 1, 0, 0]])
    for name, known in {"padding_mask": False, "image_mask": True}.items():
        image, tokens = tf.ones((1, 4, 4, 3)), tf.ones((1, 4), tf.int32)
        mark_inputs(["image", "tokens", name], [image, tokens, mask])
        assert (counts_of(image) is not None) == known
        assert counts_of(tokens) is not None


def test_autograph_takes_what_exports_run(monkeypatch, caplog):
    """It warns of code that it does not know, such as an assignment in an expression."""
    monkeypatch.setattr(tf.get_logger(), "propagate", True)
    tf.function(lambda x: pass_on_counts((x,), {}, [x + 1.0]))(tf.ones((1, 2, 3)))
    assert not caplog.records
