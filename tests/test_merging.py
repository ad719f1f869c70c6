"""plan_merging, clusterings, merging in rebuild, and what goes wrong."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from fresh_process import in_fresh_process
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from marked import first_is_fast, slow
from nets import NETS, branches, example_inputs, layer_norm, plain, randomise, residual

import keras_nisp as kn
from keras_nisp.centripetal.clustering import even, imbalanced, kmeans
from keras_nisp.channels.unit_map import UnitMap
from keras_nisp.plans.forecast import pull_for


def squares(rows, labels):
    """Sum of squared distances from the means of the clusters."""
    return sum(((rows[labels == k] - rows[labels == k].mean(0)) ** 2).sum() for k in set(labels))


# Clusterings ---------------------------------------------------------------------------


def test_even_and_imbalanced():
    assert even(7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert imbalanced(7, 3).tolist() == [0, 0, 0, 0, 0, 1, 2]


def test_kmeans_finds_groups_and_fills_every_cluster(rng):
    centres = rng.normal(size=(4, 6)) * 10
    rows = centres[[0, 1, 2, 3, 0, 1, 2, 3]] + rng.normal(size=(8, 6)) * 0.01
    labels = kmeans(rows, 4, seed=0)
    assert (labels[:4] == labels[4:]).all()
    assert sorted(set(labels)) == [0, 1, 2, 3]
    same = kmeans(np.ones((6, 3)), 4, seed=0)  # fewer distinct rows than clusters
    assert sorted(set(same.tolist())) == [0, 1, 2, 3]


def test_kmeans_is_better_than_even_on_the_kernels():
    model = randomise(residual())
    plans = {c: kn.plan_merging(model, ratio=0.5, clustering=c) for c in ("kmeans", "even")}
    deviations = {c: kn.deviation(model, plan).squares for c, plan in plans.items()}
    assert deviations["kmeans"] < deviations["even"]
    assert plans["even"].after == plans["kmeans"].after


def test_pacesetter_is_the_first_layer_of_a_group(rng):
    model = randomise(residual())
    plan = kn.plan_merging(model, ratios={"stem": 0.5}, owners="pacesetter")
    rows = {row.layer: row for row in plan.creators}
    assert (
        set(rows["stem"].clusters) == set(rows["outer0"].clusters) == set(rows["outer1"].clusters)
    )
    kernel = np.asarray(model.get_layer("stem").kernel).reshape(-1, 8).T
    labels = np.empty(8, int)
    for label, members in enumerate(rows["stem"].clusters):
        labels[list(members)] = label
    assert squares(kernel, labels) < squares(kernel, rng.permutation(even(8, 4)))
    both = kn.plan_merging(model, ratios={"stem": 0.5})
    all_labels = np.empty(8, int)
    for label, members in enumerate({r.layer: r for r in both.creators}["stem"].clusters):
        all_labels[list(members)] = label
    assert squares(kernel, labels) <= squares(kernel, all_labels) + 1e-9


def test_activations_put_twins_together():
    """Channels with equal responses, from kernels of other scale, share a cluster."""
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(6, activation="relu", name="a"), layers.Dense(2)]
    )
    kernel = np.random.default_rng(0).normal(size=(4, 3))
    model.get_layer("a").kernel.assign(np.repeat(kernel, 2, axis=1))
    x = np.random.default_rng(1).normal(size=(200, 4))
    plan = kn.plan_merging(model, ratio=0.5, clustering="activations", calibration=x)
    assert set(plan.creators[0].clusters) == {(0, 1), (2, 3), (4, 5)}


def test_own_clustering_and_seed():
    model = randomise(plain())
    plan = kn.plan_merging(model, ratio=0.5, clustering=lambda rows, k: np.arange(len(rows)) % k)
    assert plan.creators[0].clusters == ((0, 4), (1, 5), (2, 6), (3, 7))
    again = [kn.plan_merging(model, ratio=0.5, seed=3) for _ in range(2)]
    assert again[0] == again[1]
    with pytest.raises(ValueError, match="label from 0 to 3"):
        kn.plan_merging(model, ratio=0.5, clustering=lambda rows, k: np.zeros(len(rows)))


# Maps ----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_merging_is_the_same_for_what_is_read_and_owned(data):
    """x @ (merged reader) with merged owners equals the original, whatever lies along the axis."""
    count = data.draw(st.integers(2, 8))
    into = np.arange(count)
    for unit in range(1, count):
        target = data.draw(st.integers(0, unit))
        into[unit] = into[target]
    repeats = data.draw(st.integers(1, 3))
    order = data.draw(st.permutations(range(count)))
    units = np.tile(order, repeats)  # as after Flatten
    unit_map = UnitMap(into)
    rng = np.random.default_rng(0)
    reader = rng.normal(size=(len(units), 3))
    owner = rng.normal(size=(repeats, count))
    owner = owner[:, into][:, order].ravel()  # members equal, at every position
    small_owner = np.asarray(unit_map.own(owner, 0, units))
    small_reader = np.asarray(unit_map.read(reader, 0, units))
    np.testing.assert_allclose(small_owner @ small_reader, owner @ reader, atol=1e-12)
    assert len(small_owner) == int(unit_map.keep[units].sum())


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
@pytest.mark.parametrize("seed", [0, 1, slow(2)])
def test_merged_model_is_the_oracle(net, seed):
    """For random clusters, with members at any distance."""
    model = randomise(net(), seed)

    def at_random(rows, clusters):
        labels = np.arange(len(rows)) % clusters
        return np.random.default_rng(seed).permutation(labels)

    plan = kn.plan_merging(model, ratio=0.3 + 0.2 * seed, clustering=at_random)
    small = kn.rebuild(model, plan, force=True, verbose=0)
    result = kn.verify(small, model, plan, tolerance=1e-5)
    assert result.ok, result
    assert small.count_params() == plan.after.parameters < plan.before.parameters
    assert kn.profile(small).total == plan.after
    assert not plan.inexact


def test_no_layer_of_a_coupled_group_loses_all_channels():
    """Around a concatenation, one layer's channels could all be the least important."""
    for seed in range(12):
        model = branches()
        plan = kn.plan_pruning(model, kn.Random(seed), ratio=0.9)
        kn.rebuild(model, plan)
        assert all(row.kept for row in plan.creators)


def test_widths():
    model = randomise(branches())
    plan = kn.plan_merging(model, widths={"a": 3, "b": 2})
    widths = {row.layer: row.kept for row in plan.creators}
    assert (widths["a"], widths["b"], widths["d"]) == (3, 2, 8)  # and three inputs
    pruned = kn.plan_pruning(residual(), kn.Magnitude(), widths={"inner*": 2})
    assert [r.kept for r in pruned.creators] == [8, 2, 8, 2, 8, 4]
    as_small = kn.plan_merging(residual(), widths=kn.rebuild(residual(), pruned))
    assert [r.kept for r in as_small.creators] == [8, 2, 8, 2, 8, 4]


# Rebuilding ----------------------------------------------------------------------------


def test_clusters_that_are_not_identical():
    model = randomise(residual())
    plan = kn.plan_merging(model, ratio=0.5)
    weights = model.get_weights()
    with pytest.raises(
        kn.NotCollapsedError, match=r"largest .* in 'inner|largest .* in 'outer|stem"
    ):
        kn.rebuild(model, plan)
    for before, after in zip(weights, model.weights, strict=True):
        np.testing.assert_array_equal(before, after)


def test_rebuild_says_what_it_did(capsys):
    model = randomise(plain())
    plan = kn.plan_merging(model, ratio=0.5)
    kn.rebuild(model, plan, force=True)
    assert "plain merged: deviation" in capsys.readouterr().out
    kn.rebuild(model, plan, force=True, verbose=0)
    assert not capsys.readouterr().out


def test_momentum_goes_along():
    """Means of what filters own, sums of what readers have, as for the weights."""
    model = randomise(plain())
    plan = kn.plan_merging(model, ratio=0.5, clustering="even")
    optimizer = kn.CentripetalSGD(0.02, 0.9, plan=plan, steps=300)
    model.compile(optimizer, "mse", jit_compile=False)
    model.fit(example_inputs(model, 8), np.ones((8, 5), "float32"), verbose=0)
    small = kn.rebuild(model, plan, force=True, optimizer_state=True, verbose=0)
    assert type(small.optimizer) is keras.optimizers.SGD
    assert int(small.optimizer.iterations) == 1
    large, less = (
        dict(
            zip(
                ["/".join(v.path.split("/")[-2:]) for v in net.trainable_variables],
                net.optimizer.momentums,
                strict=True,
            )
        )
        for net in (model, small)
    )
    np.testing.assert_allclose(
        less["a/kernel"], np.asarray(large["a/kernel"]).reshape(3, 3, 3, 4, 2).mean(-1), atol=1e-6
    )
    both = np.asarray(large["b/kernel"]).reshape(3, 3, 4, 2, 6, 2).sum(3).mean(-1)
    np.testing.assert_allclose(less["b/kernel"], both, atol=1e-6)


# Saving and resuming ----------------------------------------------------------------------


def test_plan_through_a_file_and_an_optimizer(tmp_path):
    model = randomise(residual())
    plan = kn.plan_merging(model, ratio=0.5)
    plan.save(tmp_path / "plan.json")
    assert kn.Plan.load(tmp_path / "plan.json") == plan
    optimizer = kn.CentripetalSGD(0.1, 0.9, plan=plan, strength=0.01, preset="reference")
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again.plan == plan
    assert again.get_config() == optimizer.get_config()
    wrapped = kn.Centripetal(keras.optimizers.AdamW(1e-3), plan, steps=10)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(wrapped))
    assert type(again.inner_optimizer) is keras.optimizers.AdamW
    assert again.plan == plan


FRESH = """
import sys, keras, numpy as np, keras_nisp as kn
model = keras.models.load_model(sys.argv[1])
plan = model.optimizer.plan
x, y = np.load(sys.argv[2]), np.ones((80, 5), "float32")
slots = [np.asarray(v) for v in model.optimizer.variables]
assert any(np.abs(s).sum() > 0 for s in slots[2:])
model.fit(x, y, batch_size=8, epochs=15, verbose=0)
deviation = kn.deviation(model, plan).relative
assert deviation < 1e-5, deviation
assert int(model.optimizer.iterations) == 250
"""


def test_keras_file_in_a_fresh_process(tmp_path):
    model = randomise(plain())
    plan = kn.plan_merging(model, ratio=0.5)
    model.compile(kn.CentripetalSGD(0.02, 0.5, plan=plan, steps=200), "mse", jit_compile=False)
    x = example_inputs(model, 80)
    model.fit(x, np.ones((80, 5), "float32"), batch_size=8, epochs=10, verbose=0)
    assert kn.deviation(model, plan).relative > 1e-4
    model.save(tmp_path / "half.keras")
    np.save(tmp_path / "x.npy", x)
    in_fresh_process(FRESH, tmp_path / "half.keras", tmp_path / "x.npy", without=())


class Told(keras.callbacks.Callback):
    """Prints the epochs, or ends the training at one."""

    def __init__(self, last=None):
        super().__init__()
        self.last, self.epochs = last, []

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(epoch)
        print("epoch", epoch, flush=True)
        time.sleep(0.02)
        if epoch == self.last:
            raise KeyboardInterrupt


def clustered(seed):
    keras.utils.set_random_seed(seed)
    model = randomise(plain(), seed)
    return model, kn.plan_merging(model, ratio=0.5, seed=seed)


def resumed(folder, seed, last=None):
    """Trains with a backup; gives the epochs, a layer's clusters, and the deviation."""
    model, plan = clustered(seed)
    model.compile(kn.CentripetalSGD(0.02, 0.5, plan=plan), "mse", jit_compile=False)
    x, y = np.random.default_rng(0).normal(size=(64, 9, 9, 3)), np.ones((64, 5))
    told = Told(last)
    callbacks = [kn.CentripetalMonitor(plan), told, keras.callbacks.BackupAndRestore(folder)]
    model.fit(x, y, batch_size=8, epochs=20, verbose=0, callbacks=callbacks)
    plan = model.optimizer.plan
    kn.rebuild(model, plan)
    return told.epochs, plan.creators[0].clusters, kn.deviation(model, plan).relative


@pytest.mark.training
@pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras, while it reads a backup
@pytest.mark.parametrize("killed", first_is_fast(False, True))
def test_interrupted_and_resumed_with_the_same_clusters(killed, tmp_path):
    """Ctrl-C, or kill -9, in the middle; the second run even asks for other clusters."""
    if killed:
        code = "import sys, test_merging; test_merging.resumed(sys.argv[1], 0)"
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        command = [sys.executable, "-c", code, str(tmp_path)]
        first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for line in first.stdout:
            if line.startswith("epoch 6"):
                first.send_signal(signal.SIGKILL)
                break
        first.communicate()
    else:
        with pytest.raises(KeyboardInterrupt):
            resumed(tmp_path, 0, last=6)
    with pytest.warns(UserWarning, match="clusters that were saved with the optimizer"):
        epochs, clusters, deviation = resumed(tmp_path, 1)
    assert 4 <= epochs[0] <= 7
    assert clusters == clustered(0)[1].creators[0].clusters
    assert deviation < 1e-4


# Monitor -------------------------------------------------------------------------------


def train(plan, model, optimizer, epochs=50, monitor=None):
    monitor = monitor or kn.CentripetalMonitor(plan, per_layer=True)
    model.compile(optimizer, "mse", jit_compile=False)
    x, y = example_inputs(model, 32), np.ones((32, *model.output_shape[1:]), "float32")
    logs = model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, callbacks=[monitor]).history
    return monitor, logs


def test_monitor_predicts_what_it_measures():
    model = randomise(residual())
    plan = kn.plan_merging(model, ratio=0.5)
    schedule = keras.optimizers.schedules.CosineDecay(0.05, 200)
    optimizer = kn.CentripetalSGD(
        schedule, 0.9, True, 1e-3, plan=plan, preset="reference", steps=400
    )
    with pytest.warns(UserWarning, match="do NOT collapse"):
        monitor, logs = train(plan, model, optimizer)
    np.testing.assert_allclose(logs["deviation"], logs["deviation_predicted"], rtol=1e-3)
    assert {"deviation/stem", "deviation/inner0", "deviation/outer1"} <= set(logs)
    assert [row["step"] for row in monitor.history] == list(range(0, 201, 4))


def test_monitor_counts_the_epochs_that_are_left():
    """`fit(initial_epoch=8, epochs=10)` has 200 batches for clusters to collapse in."""
    dense = [keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3)]
    model = randomise(keras.Sequential([keras.Input((4,)), *dense]))
    plan = kn.plan_merging(model, ratio=0.5)
    model.compile(kn.CentripetalSGD(0.02, 0.9, plan=plan, tolerance=1e-3), "mse", jit_compile=False)
    x, y = np.ones((200, 4), "float32"), np.ones((200, 3), "float32")
    monitor = kn.CentripetalMonitor(plan)
    kwargs = {"initial_epoch": 8, "epochs": 10, "verbose": 0, "callbacks": [monitor]}
    model.fit(x, y, batch_size=2, **kwargs)
    assert model.optimizer.steps == 200
    assert monitor.history[-1]["deviation"].relative < 1e-3


@pytest.mark.training
def test_monitor_sets_the_steps_and_levels_statistics():
    model = randomise(residual())
    plan = kn.plan_merging(model, ratio=0.5)
    _, logs = train(plan, model, kn.CentripetalSGD(0.02, 0.5, plan=plan), epochs=60)
    assert model.optimizer.steps == 240
    assert logs["deviation"][-1] < 1e-5
    small = kn.rebuild(model, plan)
    x = example_inputs(model)
    np.testing.assert_allclose(model(x), small(x), atol=1e-4)


@pytest.mark.training
@pytest.mark.filterwarnings("ignore:.*do NOT collapse")  # by a hair, in so few steps
def test_the_original_teaches_while_clusters_collapse():
    """`distiller(model, model)` keeps a copy as the teacher; statistics are levelled in the end."""
    model = randomise(residual())
    plan = kn.plan_merging(model, ratio=0.5)
    before = model.get_weights()
    teaching = kn.distiller(model, model, student_loss_weight=0.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teaching.compile(kn.CentripetalSGD(0.02, 0.5, plan=plan), loss, jit_compile=False)
    x = example_inputs(model, 32)
    monitor = kn.CentripetalMonitor(plan)
    teaching.fit(x, np.zeros(32), batch_size=8, epochs=20, verbose=0, callbacks=[monitor])
    assert monitor.history[-1]["deviation"].relative < 1e-5
    for taught, original in zip(teaching.teacher.get_weights(), before, strict=True):
        np.testing.assert_array_equal(taught, original)
    np.testing.assert_allclose(model(x), kn.rebuild(model, plan)(x), atol=1e-4)


def test_monitor_stops_when_collapsed():
    model = randomise(residual())
    plan = kn.plan_merging(model, ratio=0.5)
    monitor = kn.CentripetalMonitor(plan, stop_when_collapsed=True)
    _, logs = train(plan, model, kn.CentripetalSGD(0.02, 0.5, plan=plan, steps=100), 100, monitor)
    assert 15 < len(logs["deviation"]) < 40


def test_monitor_warns_when_something_else_moves_the_weights():
    model = randomise(plain())
    plan = kn.plan_merging(model, ratio=0.5)

    class Vandal(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kernel = self.model.get_layer("a").kernel
            kernel.assign(np.random.default_rng(epoch).normal(size=kernel.shape))

    model.compile(kn.CentripetalSGD(0.02, 0.5, plan=plan, steps=100), "mse", jit_compile=False)
    x, y = example_inputs(model, 32), np.ones((32, 5), "float32")
    with pytest.warns(UserWarning, match="something else moves"):
        model.fit(
            x,
            y,
            batch_size=8,
            epochs=25,
            verbose=0,
            callbacks=[Vandal(), kn.CentripetalMonitor(plan)],
        )


# Bad input -----------------------------------------------------------------------------


def test_plan_for_another_model():
    plan = kn.plan_merging(plain(), ratio=0.5)
    model = residual()
    model.compile(kn.CentripetalSGD(0.1, plan=plan, steps=10), "mse", jit_compile=False)
    x, y = example_inputs(model), np.ones((4, 4))
    with pytest.raises(kn.PlanMismatchError, match="trainable variables of 'plain'"):
        model.fit(x, y, verbose=0)
    with pytest.raises(kn.PlanMismatchError, match="structure of 'plain'"):
        kn.rebuild(model, plan)
    with pytest.raises(kn.PlanMismatchError):
        kn.deviation(model, plan)


def test_frozen_layers():
    model = randomise(residual())
    plan = kn.plan_merging(model, ratio=0.5)
    model.get_layer("inner0").trainable = False
    model.compile(kn.CentripetalSGD(0.1, plan=plan, steps=10), "mse", jit_compile=False)
    with pytest.raises(kn.PlanMismatchError, match="inner0/kernel"):
        model.fit(example_inputs(model), np.ones((4, 4)), verbose=0)
    plan = kn.plan_merging(model, ratio=0.5)  # which sees that it is frozen
    assert "'inner0' is not trained" in plan.explain("inner0")
    with pytest.raises(ValueError, match="'inner0' is not trained"):
        kn.plan_merging(model, widths={"inner0": 3})
    model.compile(kn.CentripetalSGD(0.1, plan=plan, steps=10), "mse", jit_compile=False)
    model.fit(example_inputs(model), np.ones((4, 4)), verbose=0)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"strength": 50.0}, ValueError, r"`strength` below .*at learning rate 0.1"),
        ({"strength": -1.0}, ValueError, "`strength` above 0"),
        ({"strength": "strong"}, ValueError, "`strength` above 0"),
        ({"strength": 0.1, "vector_strength": 99.0}, ValueError, "`vector_strength` below"),
        ({"strength": "auto", "vector_strength": 0.1}, ValueError, "fixed `strength` only"),
        ({"preset": "code"}, ValueError, "`preset`"),
        ({"steps": 0}, ValueError, "`steps`"),
        ({"tolerance": 2}, ValueError, "`tolerance`"),
        ({"collapse": 0.0}, ValueError, "`collapse`"),
        ({"learning_rate": keras.optimizers.Adam}, TypeError, "use `Centripetal"),
        ({"plan": "plan.json"}, TypeError, r"`plan` to be a keras_nisp.Plan"),
    ],
)
def test_wrong_arguments(arguments, error, match):
    plan = kn.plan_merging(plain(), ratio=0.5)
    arguments = {"learning_rate": 0.1, "plan": plan, **arguments}
    if arguments["learning_rate"] is keras.optimizers.Adam:
        arguments["learning_rate"] = keras.optimizers.Adam()
    with pytest.raises(error, match=match):
        kn.CentripetalSGD(**arguments)


def test_the_bound_under_a_schedule():
    plan = kn.plan_merging(plain(), ratio=0.5)
    schedule = keras.optimizers.schedules.CosineDecay(0.0, 100, warmup_target=0.5, warmup_steps=50)
    kn.CentripetalSGD(schedule, 0.9, plan=plan, strength=7.0)
    with pytest.raises(ValueError, match=r"below 7\.6"):
        kn.CentripetalSGD(schedule, 0.9, plan=plan, strength=8.0)


def test_automatic_strength_needs_steps():
    model = plain()
    plan = kn.plan_merging(model, ratio=0.5)
    model.compile(kn.CentripetalSGD(0.1, plan=plan), "mse", jit_compile=False)
    with pytest.raises(ValueError, match="number of training steps"):
        model.fit(example_inputs(model), np.ones((4, 5)), verbose=0)


def test_optimizers_that_do_not_fit():
    model = plain()
    plan = kn.plan_merging(model, ratio=0.5)
    model.compile("adam", "mse", jit_compile=False)
    with pytest.raises(TypeError, match="Received: Adam"):
        model.fit(
            example_inputs(model),
            np.ones((4, 5)),
            verbose=0,
            callbacks=[kn.CentripetalMonitor(plan)],
        )
    with pytest.raises(TypeError, match="Keras optimizer"):
        kn.Centripetal("adam", plan)
    used = keras.optimizers.Adam()
    used.build(model.trainable_variables)
    with pytest.raises(ValueError, match="has not been used"):
        kn.Centripetal(used, plan)
    pruning = kn.plan_pruning(model, kn.Random(), ratio=0.5)
    with pytest.raises(ValueError, match="plan that merges"):
        kn.CentripetalSGD(0.1, plan=pruning)
    other = kn.plan_merging(model, ratio=0.25)
    model.compile(kn.CentripetalSGD(0.1, plan=plan), "mse", jit_compile=False)
    with pytest.raises(ValueError, match="plan of the optimizer"):
        model.fit(
            example_inputs(model),
            np.ones((4, 5)),
            verbose=0,
            callbacks=[kn.CentripetalMonitor(other)],
        )


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"widths": {"a": 9}}, "at most 8 for 'a'"),
        ({"widths": {"a": 0}}, "at least 1"),
        ({"widths": {"nothing": 2}}, "'nothing'"),
        ({"widths": {"head": 2}}, "can be reached"),
        ({"ratio": 1.0}, r"in \[0, 1\)"),
        ({"ratio": 0.5, "clustering": "random"}, "`clustering`"),
        ({"ratio": 0.5, "owners": "some"}, "`owners`"),
        ({"ratio": 0.5, "clustering": "activations"}, "`calibration`"),
        ({}, "exactly one of"),
    ],
)
def test_wrong_arguments_of_plan_merging(arguments, match):
    with pytest.raises(ValueError, match=match):
        kn.plan_merging(plain(), **arguments)


def test_layers_that_mix_channels():
    model = layer_norm()
    with pytest.raises(ValueError, match=r"'layer_normalization.*' takes statistics"):
        kn.plan_merging(model, ratios={"a": 0.5})
    plan = kn.plan_merging(model, ratio=0.5)
    assert [row.kept for row in plan.creators] == [8, 6, 3]
    assert "takes statistics over these channels" in plan.explain("a")
    only = keras.Sequential(
        [keras.Input((4,)), layers.Dense(6), layers.LayerNormalization(), layers.Dense(2)]
    )
    with pytest.raises(ValueError, match="no channels that can be merged"):
        kn.plan_merging(only, ratio=0.5)


@pytest.mark.parametrize(
    "damage",
    [
        lambda row: row["clusters"].pop(),
        lambda row: row["clusters"][0].append(0),
        lambda row: row["clusters"].append([99]),
        lambda row: row["removed"].pop(),
    ],
)
def test_clusters_that_do_not_cover_a_layer(damage):
    data = kn.plan_merging(plain(), ratio=0.5).to_dict()
    damage(data["creators"][0])
    with pytest.raises(kn.PlanFileError, match="'a'"):
        kn.Plan.from_dict(data)


def test_clusters_that_disagree_in_a_group():
    plan = kn.plan_merging(residual(), ratio=0.5, clustering="even")
    rows = list(plan.creators)
    rows[0] = dataclasses.replace(
        rows[0], clusters=((0, 2), (1, 3), (4, 5), (6, 7)), removed=(2, 3, 5, 7)
    )
    with pytest.raises(kn.PlanMismatchError, match="coupled layers"):
        kn.rebuild(residual(), dataclasses.replace(plan, creators=tuple(rows)), force=True)


# Forecast ------------------------------------------------------------------------------


def test_check_says_what_would_do():
    plan = kn.plan_merging(plain(), ratio=0.5)
    weak = plan.check(2000, 0.05, 0.9, strength=3e-3)
    assert not weak.collapses
    assert "do NOT collapse" in str(weak)
    enough = plan.check(2000, 0.05, 0.9, strength=weak.needed_strength)
    assert enough.collapses
    assert enough.final == pytest.approx(1e-5, rel=1e-3)
    # About ln(1e5) (1 - 0.9) / (2000 x 0.05) = 0.0115; this is the root, without the transient.
    root = pull_for(1e-5 ** (1 / 2000), 0.9, False) / 0.05
    assert weak.needed_strength == pytest.approx(root, rel=0.01)
    short = plan.check(50, 0.05, 0.9, strength="auto")
    assert short.needed_strength is None
    assert short.needed_steps == 219
    assert "in so few steps; at least 219 are needed" in str(short)
    # After its last step a schedule gives 0: more of such steps do not help.
    cosine = keras.optimizers.schedules.CosineDecay
    ended = plan.check(224, cosine(0.05, 10), 0.9)
    assert "in the 10 steps whose learning rate is not 0; at least 219 are needed" in str(ended)
    falling = plan.check(224, cosine(0.05, 224), 0.9)
    assert falling.collapses
    assert "No constant strength does it, as far as the learning rate falls" in str(falling)
    reference = plan.check(2000, 0.05, 0.9, strength=0.0115, preset="reference")
    assert np.abs(reference.kernels[-1]) < 2e-5 < np.abs(reference.vectors[-1])


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("steps", [100, 250, 300, 1000])
def test_a_strength_that_is_said_to_do_does(steps, nesterov):
    """In few steps the momentum's transient counts, which the roots do not know of."""
    plan = kn.plan_merging(plain(), ratio=0.5)
    settings = {"momentum": 0.9, "nesterov": nesterov}
    weak = plan.check(steps, 0.05, strength=1e-3, **settings)
    if weak.needed_strength is None:
        assert not plan.check(steps, 0.05, strength=20.0, **settings).collapses
        return
    printed = float(str(weak).split("strength of ")[1].split()[0])
    assert plan.check(steps, 0.05, strength=printed, **settings).collapses
    less = 0.999 * weak.needed_strength
    assert not plan.check(steps, 0.05, strength=less, **settings).collapses


@pytest.mark.parametrize("steps", [30, 100, 200])
def test_nesterov_collapses_in_few_steps(steps):
    """Complex roots shrink, too: their modulus is the root of `momentum * (1 - pull)`."""
    short = kn.plan_merging(plain(), ratio=0.5).check(steps, 0.05, 0.9, nesterov=True)
    assert short.collapses


@pytest.mark.parametrize("momentum", [0.5, 0.9])
@pytest.mark.parametrize("steps", [27, 32, 36, 40, 179, 205, 214, 219, 221, 245, 269])
def test_the_automatic_strength_does_where_a_constant_one_does(steps, momentum):
    """Two equal roots leave more than their modulus says: some oscillation is faster."""
    forecast = kn.plan_merging(plain(), ratio=0.5).check(steps, 0.05, momentum)
    assert forecast.collapses or forecast.needed_strength is None
    # Nothing that only passes zero at the last step is called enough.
    assert (forecast.needed_strength is not None) == (steps >= {0.5: 32, 0.9: 219}[momentum])


def test_published_settings_collapse():
    """ResNet-56 of the paper: 200 epochs at 0.03, 200 at 0.003, 200 at 0.0003."""
    plan = kn.plan_merging(plain(), ratio=0.5)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [156_200, 312_400], [0.03, 0.003, 0.0003]
    )
    paper = plan.check(468_600, schedule, 0.9, 3e-3, weight_decay=1e-4, nesterov=True)
    assert paper.collapses
    code = plan.check(156_200, 0.03, 0.9, 3e-3, weight_decay=1e-4, preset="reference")
    assert np.log(code.vectors[-1]) == pytest.approx(-14, abs=0.3)


def test_units_of_which_a_tensor_holds_other_parts_are_never_merged():
    """A shuffle joins channels 0 and 3, 1 and 4: of these, 1 and 3 are no twins."""
    inputs = keras.Input((7, 7, 3))
    x = layers.Conv2D(6, 3, name="conv")(inputs)
    shuffled = keras.ops.transpose(keras.ops.reshape(x, (-1, 5, 5, 2, 3)), (0, 1, 2, 4, 3))
    shuffled = layers.Conv2D(4, 1, name="whole")(keras.ops.reshape(shuffled, (-1, 5, 5, 6)))
    part = keras.ops.take(x, np.array([1, 3]), axis=-1)
    pooled = [layers.GlobalAveragePooling2D()(tensor) for tensor in (shuffled, part)]
    outputs = layers.Dense(3, name="dense")(layers.Concatenate()(pooled))
    model = randomise(keras.Model(inputs, outputs))
    plan = kn.plan_merging(model, ratio=0.5, clustering="even")
    assert {row.layer: row.kept for row in plan.creators} == {"conv": 6, "whole": 2, "dense": 3}
    small = kn.rebuild(model, plan, force=True, verbose=0)
    assert kn.verify(small, model, plan).ok
