"""Whole architectures: halved, compared with their oracle, saved, trained on."""

import functools
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from marked import first_is_fast, slow
from nets import randomise

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import architectures

import keras_nisp as kn

EXACT = 1e-5
WORDS = 30
SMALL = {
    "vision_transformer": lambda: architectures.vision_transformer(
        (16, 16, 3), width=16, heads=4, mlp=24, blocks=2
    ),
    "text_classifier": lambda: architectures.text_classifier(WORDS, 9, 3, width=12, units=10),
    "unet": lambda: architectures.unet((16, 16, 3), width=6, depth=2),
    "detector": lambda: architectures.detector((32, 32, 3), width=8),
    "shufflenet": lambda: architectures.shufflenet((16, 16, 3), width=32, groups=2, blocks=1),
    "volume_cnn": lambda: architectures.volume_cnn((8, 8, 8, 1), width=4, stages=2),
    "audio_cnn": lambda: architectures.audio_cnn(400, width=8, stages=2),
    "transfer_learning": lambda: architectures.transfer_learning((32, 32, 3), alpha=0.35),
}
LIGHT = [name for name in SMALL if name != "transfer_learning"]


def build(name):
    """A small model with random weights, and random samples for it."""
    model, rng = randomise(SMALL[name]()), np.random.default_rng(0)

    def samples(tensor):
        shape = (16, *tensor.shape[1:])
        if "int" not in tensor.dtype:
            return rng.normal(size=shape).astype("float32")
        words = rng.integers(1, WORDS, shape)
        words[::2, 5:] = 0  # shorter texts are padded
        return words.astype("int32")

    return model, keras.tree.map_structure(samples, structure(model))


def structure(model):
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def norms(model):
    return [x.name for x in model.layers if isinstance(x, layers.LayerNormalization)]


def outputs(model, samples):
    return keras.tree.map_structure(np.asarray, model(samples, training=False))


@functools.cache  # tests leave them as they are
def halved(name, importance=kn.NISP):
    model, samples = build(name)
    importance = importance(samples) if importance is kn.NISP else importance()
    plan = kn.plan_pruning(model, importance, ratio=0.5)
    return model, samples, plan, kn.rebuild(model, plan)


@pytest.mark.parametrize("importance", first_is_fast(kn.NISP, kn.Random))
@pytest.mark.parametrize("name", SMALL)
def test_halved(name, importance):
    model, samples, plan, small = halved(name, importance)
    result = kn.verify(small, model, plan, samples, tolerance=EXACT)
    assert result.ok, result
    assert result.scale > 0.01
    assert list(plan.inexact) == norms(model)
    assert small.count_params() == plan.after.parameters
    for group in plan.groups:
        assert group.removed == group.units / 2, group.creators
    assert type(small) is type(model)
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]


@pytest.mark.parametrize("name", [*LIGHT, slow("transfer_learning")])
def test_saved_and_trained(name, tmp_path):
    _, samples, _, small = halved(name)
    small.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    before = outputs(small, samples)
    keras.tree.map_structure(np.testing.assert_array_equal, before, outputs(loaded, samples))
    losses = keras.tree.map_structure(lambda _: "mse", before)
    loaded.compile("sgd", losses, run_eagerly=True)
    targets = keras.tree.map_structure(lambda y: np.zeros_like(y) + y.mean(), before)
    loaded.fit(samples, targets, batch_size=16, verbose=0)
    after = keras.tree.flatten(outputs(loaded, samples))
    for old, new in zip(keras.tree.flatten(before), after, strict=True):
        assert np.isfinite(new).all()
        assert not np.array_equal(old, new)


def test_heads_and_mlp_of_a_vision_transformer():
    model, samples = build("vision_transformer")
    ratios = {"*:heads": 0.5, "*mlp*": 0.5}
    plan = kn.plan_pruning(model, kn.NISP(samples), ratios=ratios)
    small = kn.rebuild(model, plan)
    assert not plan.inexact  # no channel goes that a norm sees
    assert kn.verify(small, model, plan, samples, tolerance=EXACT).ok
    kept = {row.layer: row.kept for row in plan.creators}
    for block in ("block0", "block1"):
        old, new = (net.get_layer(f"{block}_attention") for net in (model, small))
        assert new.num_heads == kept[f"{block}_attention:heads"] == old.num_heads // 2
        assert (new.key_dim, new.value_dim) == (old.key_dim, old.value_dim)
        assert small.get_layer(f"{block}_mlp").units == kept[f"{block}_mlp"] == 12
        assert small.get_layer(f"{block}_project").units == kept[f"{block}_project"] == 16


def test_base_of_transfer_learning():
    """A nested base keeps its place and the names of its layers; augmentation stays."""
    model, _, _, small = halved("transfer_learning")
    assert isinstance(small, keras.Sequential)
    old, new = model.layers[2], small.layers[2]
    assert new.name == old.name
    assert [layer.name for layer in new.layers] == [layer.name for layer in old.layers]
    assert new.output_shape[-1] == small.get_layer("pool").output.shape[-1] == 640
    assert isinstance(small.get_layer("flip"), layers.RandomFlip)


@pytest.mark.parametrize("name", ["text_classifier", "vision_transformer"])
def test_merged(name):
    model, samples = build(name)
    plan = kn.plan_merging(model, ratio=0.5, clustering="even")
    small = kn.rebuild(model, plan, force=True, verbose=0)
    result = kn.verify(small, model, plan, samples, tolerance=EXACT)
    assert result.ok, result
    assert small.count_params() == plan.after.parameters
    merged = {row.layer for row in plan.creators if row.clusters}
    alone = {row.layer for row in plan.creators} - merged
    if name == "text_classifier":
        assert alone == {"logits"}
    else:
        assert alone == {
            *("patches", "positions", "logits"),  # all that is added to what a norm sees
            *(f"block{i}_{layer}" for i in (0, 1) for layer in ("attention", "project")),
        }
        assert "block0_attention:heads" in merged
        assert small.get_layer("block0_mlp").units == 12
