"""Plan files: damaged, of earlier releases, and with parts that disagree."""

import dataclasses
import json
import re

import keras
import pytest
from plan_mutations import mutant, outcome
from plan_subjects import earlier_file, subjects

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
        ('{"format": "keras_nisp plan", "version": true}', "version 6"),
    ],
)
def test_texts_that_are_no_plans(text, message, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(kn.PlanFileError, match=message):
        kn.Plan.load(path)


def of_version(version, name):
    """Version 1 knew no clusters, version 2 no scores, and neither knew whole groups at first."""
    data = earlier_file(max(version, 3), name) | {"version": version}
    if version < 3:
        del data["whole_groups"]
        for row in data["groups"]:
            del row["scores"], row["removed_units"]
    if version < 2:
        del data["variables"]
        for row in data["creators"]:
            del row["clusters"]
    return data


@pytest.mark.parametrize(
    ("version", "name"),
    [(v, name) for v in (1, 2, 3) for name in ("pruning", "inputs")]
    + [(3, "merging"), (3, "merging, inputs"), (3, "whole groups")]
    + [(4, "pruning"), (4, "inputs"), (4, "merging")],
)
def test_files_of_earlier_releases_are_read(version, name, plans, tmp_path):
    subject = plans[name]
    data = of_version(version, name.replace(", ", "_").replace(" ", "_"))
    (tmp_path / "plan.json").write_text(json.dumps(data))
    plan = kn.Plan.load(tmp_path / "plan.json")
    small = kn.rebuild(subject.model, plan, force=True, verbose=0)
    assert kn.verify(small, subject.model, plan).ok
    kept, expected = ([row.kept for row in p.creators] for p in (plan, subject.plan))
    assert kept == expected
    # It says what it said, but that products of attention were no FLOPs; and is written as a file
    # of today.
    said = str(plan).replace("ranking=local", "allocation=uniform")
    said, today = (re.sub(r"FLOPs -\S+", "", text) for text in (said, str(subject.plan)))
    assert said.splitlines() == today.splitlines()
    assert plan.to_dict()["version"] == 6
    assert kn.Plan.from_dict(plan.to_dict()) == plan


def test_what_earlier_releases_say_of_how_a_plan_was_made(tmp_path):
    plan = kn.Plan.from_dict(earlier_file(3, "latency"))
    words = "latency_reduction=0.2 (table: 1.19 -> 0.77 ms, float32, 1 thread), ranking=local"
    assert plan.budget == plan.budget_text == f"{words}, round_to=2, min_channels=2"
    assert f"by BNScale, {words}" in str(plan)
    plan.report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "earlier release" in page
    assert "plan_pruning(" not in page


def test_what_version_4_called_ranking(plans):
    data = earlier_file(4, "pruning")
    assert kn.Plan.from_dict(data).recipe == plans["pruning"].plan.recipe
    data["recipe"]["budget"]["ranking"] = "global"
    assert kn.Plan.from_dict(data).budget == kn.Budget(ratio=0.5, allocation="global")
    for wrong in ("best", 3, None, ["local"]):
        data["recipe"]["budget"]["ranking"] = wrong
        with pytest.raises(kn.PlanFileError, match="`allocation` to be one of"):
            kn.Plan.from_dict(data)


def test_version_4_merged_by_activations_on_calibration_data():
    data = earlier_file(4, "merging")
    data["recipe"]["clustering"] = "activations"
    assert "calibration=calibration" in kn.Plan.from_dict(data).recipe.code


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda recipe: recipe["budget"].update(ratio=0.5, flops_reduction=0.5), "exactly one"),
        (lambda recipe: recipe["budget"].update(ratio=2.0), r"`ratio` in \[0, 1\)"),
        (lambda recipe: recipe["budget"].update(ratio="0.5"), "budget.ratio"),
        (lambda recipe: recipe["budget"].update(latency={}), "budget.latency"),
        (lambda recipe: recipe["budget"].update(exclude="a"), "budget.exclude"),
        (lambda recipe: recipe["budget"].update(round_to=-(10**400)), "round_to"),
        (lambda recipe: recipe["budget"].update(min_channels=2.5), "min_channels"),
        (lambda recipe: recipe.update(function="exec"), "function"),
        (lambda recipe: recipe["importance"].update(arguments={"p": {}}), "importance.arguments"),
        (lambda recipe: recipe.pop("budget"), "budget: Field required"),
    ],
)
def test_recipes_that_cannot_be(damage, text, plans):
    data = plans["pruning"].plan.to_dict()
    damage(data["recipe"])
    with pytest.raises(kn.PlanFileError, match=text):
        kn.Plan.from_dict(data)


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
