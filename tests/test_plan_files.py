"""Plan files: damaged, of earlier releases, and with parts that disagree."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from plan_mutations import mutant, outcome
from plan_subjects import subjects

import keras_nisp as kn


@pytest.fixture(scope="module")
def plans():
    return {subject.name: subject for subject in subjects()}


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_give_the_right_model_or_an_error_that_says_so(plans, tmp_path):
    """`benchmarks/mutations.py` does this 10,000 times."""
    made = list(plans.values())
    files = [subject.plan.to_dict() for subject in made]
    found = []
    for seed in range(150):
        index, _, data = mutant(seed, files)
        found.append(outcome(data, made[index], tmp_path, whole=False))
    assert set(found) - {"PlanMismatchError"} == {"right", "PlanFileError"}


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda data: data.update(extra=1), "extra: Unexpected keyword argument"),
        (lambda data: data.pop("before"), "before: Field required"),
        (lambda data: data["creators"][0].update(channels=8.0), "creators.0.channels"),
        (lambda data: data["creators"][0].update(channels=True), "creators.0.channels"),
        (lambda data: data["creators"][0].update(group=9), "creators.0: group 9"),
        (lambda data: data["creators"].pop(0), "groups.0: its creators"),
        (lambda data: data["groups"][0].update(units=10**30), "groups.0"),
        (lambda data: data["layers"][0].update(channels=[8]), "layers.0.channels"),
        (lambda data: data["layers"][1]["before"].update(flops=-1), "flops -1"),
        (lambda data: data["layers"].append(data["layers"][0]), "one is there twice"),
        (lambda data: data["before"].update(flops=1), "before: not the sum"),
        (lambda data: data.update(input_shapes=[]), "input_shapes: there are none"),
        (lambda data: data.update(input_shapes=[[2**40, 2, 3]]), "input_shapes"),
        (lambda data: data.update(fingerprint="x"), "fingerprint"),
        (lambda data: data.update(whole_groups=[1, 1]), "whole_groups"),
        (lambda data: data.update(inexact=["nix"]), "inexact: there is no layer"),
        (lambda data: data["groups"][0]["scores"].__setitem__(0, float("nan")), "finite|JSON"),
        (lambda data: data["groups"][0]["scores"].__setitem__(0, 1 << 2000), "groups.0.scores"),
        (lambda data: data["creators"].append(data), "Circular reference|Unexpected"),
    ],
)
def test_parts_that_do_not_fit(damage, text, plans):
    data = plans["pruning"].plan.to_dict()
    damage(data)
    with pytest.raises(kn.PlanFileError, match=text):
        kn.Plan.from_dict(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"version": 3, "version": 3}', "the key 'version' is there twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"format": ' + "9" * 5000 + "}", "not JSON"),
        ('{"format": "keras_nisp plan", "version": true}', "version 3"),
    ],
)
def test_texts_that_are_no_plans(text, message, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(kn.PlanFileError, match=message):
        kn.Plan.load(path)


def test_files_of_earlier_releases_are_read(plans, tmp_path):
    """Version 1 knew no clusters, version 2 no scores, and neither knew whole groups at first."""
    subject = plans["pruning"]
    for version, later in ((1, ("variables", "whole_groups")), (2, ("whole_groups",))):
        data = subject.plan.to_dict() | {"version": version}
        for key in later:
            del data[key]
        for row in data["groups"]:
            del row["scores"], row["removed_units"]
        for row in data["creators"] if version == 1 else ():
            del row["clusters"]
        (tmp_path / "plan.json").write_text(json.dumps(data))
        small = kn.rebuild(subject.model, kn.Plan.load(tmp_path / "plan.json"))
        for got, want in zip(small.get_weights(), subject.weights, strict=True):
            np.testing.assert_array_equal(got, want)


def test_clusters_that_c_sgd_would_train_are_those_that_are_merged(plans):
    subject = plans["merging"]
    data = subject.plan.to_dict()
    row = next(row for row in data["variables"] if row["clusters"])
    labels = row["clusters"][0][1]
    labels[:] = labels[::-1]
    plan = kn.Plan.from_dict(data)
    with pytest.raises(kn.PlanMismatchError, match=row["path"]):
        kn.rebuild(subject.model, plan, force=True)


def test_a_plan_that_leaves_nothing_of_a_part():
    """All channels of one half of a split: the layer that creates both keeps some."""
    inputs = keras.Input((4,))
    left, right = keras.ops.split(keras.layers.Dense(8, name="both")(inputs), 2, axis=-1)
    head = [keras.layers.Dense(3, name="left")(left), keras.layers.Dense(3, name="right")(right)]
    model = keras.Model(inputs, head)
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    row = dataclasses.replace(plan.creators[0], removed=(0, 1, 2, 3))
    group = dataclasses.replace(plan.groups[0], removed_units=(), scores=())
    edited = dataclasses.replace(plan, creators=(row, *plan.creators[1:]), groups=(group,))
    with pytest.raises(kn.PlanMismatchError, match="leaves none at"):
        kn.rebuild(model, edited)
