"""Plans as files, as text, and on the wrong model."""

import dataclasses
import json
import os

import keras
import numpy as np
import pytest
from keras import layers
from nets import NETS, branches, layer_norm, nested, plain, random_plan, randomise, residual

import keras_nisp as kn


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_round_trip_through_a_file(net, tmp_path):
    model = randomise(net())
    plan = random_plan(model)
    plan.save(tmp_path / "plan.json")
    loaded = kn.Plan.load(tmp_path / "plan.json")
    assert loaded == plan
    first, second = kn.rebuild(model, plan), kn.rebuild(model, loaded)
    for a, b in zip(first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_names_do_not_matter():
    """A model built again in one process has other layer names."""

    def build():
        return keras.Sequential([keras.Input((4,)), layers.Dense(6), layers.Dense(2)])

    plan = kn.plan_pruning(build(), kn.Random(), ratio=0.5)
    assert kn.rebuild(build(), plan).layers[0].units == 3


def test_plan_for_another_input_size():
    """Without `Flatten` the structure is the same."""

    def model(size):
        layers = keras.layers
        x = inputs = keras.Input((size, size, 3))
        x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(x))
        return keras.Model(inputs, layers.Dense(2)(x))

    plan = kn.plan_pruning(model(16), kn.Magnitude(), ratio=0.5)
    other = model(24)
    small = kn.rebuild(other, plan)
    assert small.layers[1].filters == 4
    assert kn.verify(small, other, plan).ok


def test_plan_for_another_model():
    plan = kn.plan_pruning(plain(), kn.Random(), ratio=0.5)
    with pytest.raises(kn.PlanMismatchError, match="structure of 'plain'"):
        kn.rebuild(residual(), plan)
    wider = keras.Sequential([keras.Input((9, 9, 3)), layers.Conv2D(9, 3), layers.Conv2D(2, 3)])
    with pytest.raises(kn.PlanMismatchError):
        kn.rebuild(wider, plan)


def test_edited_plans_are_refused():
    model = residual()
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)
    first, *others = plan.creators

    def edited(creator):
        return dataclasses.replace(plan, creators=(creator, *others))

    lopsided = dataclasses.replace(first, removed=first.removed[:-1])
    with pytest.raises(kn.PlanMismatchError, match="damaged or edited"):
        kn.rebuild(model, edited(lopsided))
    *others, head = plan.creators
    fixed = dataclasses.replace(plan, creators=(*others, dataclasses.replace(head, removed=(0,))))
    with pytest.raises(kn.PlanMismatchError, match="'head'"):
        kn.rebuild(model, fixed)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "{}",
        lambda text: "[1, 2]",
        lambda text: text.replace('"version": 6', '"version": 99'),
        lambda text: text.replace('"creators"', '"creator"'),
        lambda text: text.replace('"removed": [', '"removed": ["x", ', 1),
        lambda text: text.replace('"removed": [', '"removed": [-1, ', 1),
        lambda text: text.replace('"removed": [', '"removed": [1000, ', 1),
        lambda text: text.replace('"scores": [', '"scores": [0.5, ', 1),
        lambda text: text.replace('"scores": [', '"scores": ["x", ', 1),
        lambda text: text.replace('"removed_units": [', '"removed_units": [-1, ', 1),
    ],
)
def test_damaged_files(damage, tmp_path):
    path = tmp_path / "plan.json"
    plan = kn.plan_pruning(plain(), kn.Random(), ratio=0.5)
    path.write_text(damage(json.dumps(plan.to_dict())))
    with pytest.raises(kn.PlanFileError, match=r"plan\.json"):
        kn.Plan.load(path)


def test_binary_and_missing_files(tmp_path):
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(kn.PlanFileError):
        kn.Plan.load(tmp_path / "plan.json")
    with pytest.raises(FileNotFoundError):
        kn.Plan.load(tmp_path / "other.json")


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    plan = kn.plan_pruning(plain(), kn.Random(), ratio=0.5)
    plan.save(path)
    before = path.read_text()

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        kn.plan_pruning(plain(), kn.Random(1), ratio=0.2).save(path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_summary_adds_up():
    model = plain()
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)
    text = plan.summary()
    assert f"{model.count_params():,} -> {kn.rebuild(model, plan).count_params():,}" in text
    assert "8 -> 4" in text
    assert "Exact" in text
    mixed = kn.plan_pruning(layer_norm(), kn.Random(), ratio=0.5).summary()
    assert "Not exact" in mixed
    assert "layer_normalization" in mixed


def test_print_lists_coupled_groups():
    text = str(kn.plan_pruning(residual(), kn.Random(), ratio=0.5))
    assert "group 0: 8 -> 4 channels" in text
    assert "creators:  stem, outer0, outer1" in text
    assert "readers:   inner0, inner1, head" in text


def test_explain():
    plan = kn.plan_pruning(residual(), kn.Random(), ratio=0.5)
    assert "model output 'head'" in plan.explain("head")
    assert "Coupled with outer0, outer1" in plan.explain("stem")
    with pytest.raises(ValueError, match="'nothing'"):
        plan.explain("nothing")
    inputs = kn.plan_pruning(branches(), kn.Random(), ratio=0.5)
    assert "model input" in inputs.explain("d")
    assert "'part/conv'" in kn.plan_pruning(nested(), kn.Random(), ratio=0.5).explain("part/conv")
    least = kn.plan_pruning(residual(), kn.Random(), ratio=0.99)
    assert "least width" in least.explain("stem")


def test_channels_that_can_only_go_together_are_explained():
    """Four groups of a convolution and five of a normalisation couple all of its channels."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(20, 3, groups=4, name="grouped")(layers.Conv2D(12, 3)(inputs))
    x = layers.GlobalAveragePooling2D()(layers.GroupNormalization(5)(x))
    plan = kn.plan_pruning(keras.Model(inputs, layers.Dense(3)(x)), kn.Magnitude(), ratio=0.5)
    assert "its channels can only be removed together" in plan.explain("grouped")


def test_explain_of_a_layer_before_all_channels():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Rescaling(2.0, name="r"), layers.Dense(4), layers.Dense(2)]
    )
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)
    assert plan.explain("r") == "'r' touches no channels that may be removed."


def test_scores_are_kept():
    """Those of the lowest score go; scores of six digits come back as they were."""
    model = randomise(plain())
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    for group in plan.groups:
        assert len(group.scores) == group.units
        assert len(group.removed_units) == group.removed
        order = np.argsort(group.scores, kind="stable")
        assert sorted(order[: group.removed].tolist()) == list(group.removed_units)
    scores = kn.Magnitude()(kn.trace(model))
    units = kn.trace(model).groups[0].units
    np.testing.assert_allclose(plan.groups[0].scores, scores[units], rtol=5e-6)


def test_json_is_plain_data():
    data = kn.plan_pruning(plain(), kn.Random(), ratio=0.5).to_dict()
    assert data["creators"][0]["layer"] == "a"
    assert len(data["creators"][0]["removed"]) == 4


@pytest.mark.parametrize("place", ["terminal", "notebook"])
def test_tables_are_text_everywhere(place, monkeypatch):
    plan = kn.plan_pruning(plain(), kn.Random(), ratio=0.5)
    profile = kn.profile(plain())
    expected = plan.summary(), str(profile)
    if place == "terminal":
        monkeypatch.setenv("FORCE_COLOR", "1")
    else:
        monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert (plan.summary(), str(profile)) == expected
    assert "\x1b" not in expected[0]
    assert "total" in expected[0]
