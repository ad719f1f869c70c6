"""Pruning during training that is killed and starts again: the end is that of the unbroken run."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from marked import slow

import keras_nisp as kn

pytestmark = pytest.mark.training
EPOCHS, BATCHES = 6, 5


class KilledError(Exception):
    pass


class Kill(keras.callbacks.Callback):
    """Ends the process, as it were, after a number of batches."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            raise KilledError


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(40, 6)).astype("float32"), rng.integers(0, 3, 40)


def fresh(run_eagerly=True):
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(16, activation="relu", name="a"),
            keras.layers.LayerNormalization(name="norm"),
            keras.layers.Dropout(0.1, name="drop"),
            keras.layers.Dense(12, activation="relu", name="b"),
            keras.layers.Dense(3, name="head"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9), loss, run_eagerly=run_eagerly, jit_compile=False
    )
    model.optimizer.build(model.trainable_variables)
    return model


def pruner(**kwargs):
    x, _ = data()
    return kn.NISPPruner(x, **{"ratio": 0.5, "verbose": 0, **kwargs})


def fit(model, *callbacks, **kwargs):
    x, y = data()
    settings = {"epochs": EPOCHS, "batch_size": 8, "shuffle": False, "verbose": 0}
    return model.fit(x, y, callbacks=list(callbacks), **{**settings, **kwargs})


def same(first, second):
    """The same channels and the same weights, to the bit, of two runs (model, pruner)."""
    (model, ours), (other_model, others) = first, second
    assert ours.plan.creators == others.plan.creators
    assert ours.plan.groups == others.plan.groups
    for one, other in ((ours.pruned_model, others.pruned_model), (model, other_model)):
        for a, b in zip(one.weights, other.weights, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())


EXPLICIT = {"schedule": kn.PolynomialSchedule(0.5, 0, 18, frequency=3)}


@pytest.fixture(scope="module")
def unbroken():
    """Model and pruner of a run that nothing interrupts: by the default schedule, and by ours."""
    runs = {}
    for name, kwargs in (("default", {}), ("explicit", EXPLICIT)):
        model, ours = fresh(), pruner(**kwargs)
        fit(model, ours)
        assert [row.kept for row in ours.plan.creators] == [8, 6, 3]
        runs[name] = model, ours
    return runs


@pytest.mark.parametrize(
    ("schedule", "after", "pruner_first"),
    [
        ("default", 12, False),
        ("explicit", 13, True),
        slow("default", 3, True),
        slow("explicit", 28, False),
    ],
)
def test_backup_and_restore(tmp_path, unbroken, schedule, after, pruner_first):
    kwargs = EXPLICIT if schedule == "explicit" else {}

    def callbacks(ours):
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", double_checkpoint=True)
        return [ours, backup] if pruner_first else [backup, ours]

    with pytest.raises(KilledError):
        fit(fresh(), *callbacks(pruner(**kwargs)), Kill(after))
    model, ours = fresh(), pruner(**kwargs)
    fit(model, *callbacks(ours))
    same(unbroken[schedule], (model, ours))


def test_backup_and_restore_compiled(tmp_path):
    def run(*callbacks, **kwargs):
        model, ours = fresh(run_eagerly=False), pruner()
        fit(model, *callbacks, ours, **kwargs)
        return model, ours

    unbroken = run()
    with pytest.raises(KilledError):
        run(keras.callbacks.BackupAndRestore(tmp_path), Kill(12))
    same(unbroken, run(keras.callbacks.BackupAndRestore(tmp_path)))


@pytest.mark.parametrize("pruner_first", [True, False])
def test_backups_between_epochs_count_every_batch(tmp_path, pruner_first):
    """A backup by a callback before ours is older than our count, and than our pruning."""
    schedule = kn.PolynomialSchedule(0.5, 0, 8, frequency=8)  # prunes after 8 batches

    def callbacks(ours):
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=8)
        return [ours, backup] if pruner_first else [backup, ours]

    with pytest.raises(KilledError):
        fit(fresh(), *callbacks(pruner(schedule=schedule)), Kill(9))
    model, ours = fresh(), pruner(schedule=schedule)
    fit(model, *callbacks(ours))
    assert ours.plan.creators[0].kept == 8
    assert ours._state.step == int(model.optimizer.iterations)


@pytest.mark.parametrize("name", ["all.keras", "some.weights.h5"])
def test_resume_from_a_checkpoint(tmp_path, unbroken, name):
    weights_only = name.endswith("h5")
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / name, save_weights_only=weights_only)
    with pytest.raises(KilledError):
        fit(fresh(), pruner(), checkpoint, Kill(2 * BATCHES + 2))
    model = fresh() if weights_only else keras.models.load_model(tmp_path / name)
    ours = pruner()
    ours.resume(model, tmp_path / name)
    fit(model, ours, initial_epoch=2)
    same(unbroken["default"], (model, ours))
    model.save_weights(tmp_path / "after.weights.h5")
    with pytest.raises(ValueError, match="no state of one"):
        pruner().resume(model, tmp_path / "after.weights.h5")


def test_weight_files_and_plain_models(tmp_path):
    """Files with our state load into plain models, those without it into models that are pruned."""
    model, ours = fresh(), pruner(**EXPLICIT)
    plain = fresh()
    plain.save_weights(tmp_path / "plain.weights.h5")
    count, config = len(model.weights), model.get_config()
    with pytest.raises(KilledError):
        fit(model, ours, Kill(14))
    assert len(model.weights) == count
    assert model.get_config() == config
    assert model.count_params() == plain.count_params()
    model.save_weights(tmp_path / "ours.weights.h5")
    model.save(tmp_path / "ours.keras")
    plain.load_weights(tmp_path / "ours.weights.h5")
    for copy in (plain, keras.models.load_model(tmp_path / "ours.keras")):
        for a, b in zip(copy.weights, model.weights, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert keras.models.clone_model(model).count_params() == plain.count_params()

    class Load(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 4:
                self.model.load_weights(tmp_path / "plain.weights.h5")

    fit(model, ours, Load(), initial_epoch=2)
    removed = list(ours.plan.creators[1].removed)
    assert len(removed) == 6
    assert (model.get_layer("head").kernel.numpy()[removed] == 0).all()
    assert ours.pruned_model.get_layer("b").units == 6
    assert not any("nisp" in name for name in vars(model))


def test_state_of_another_run(tmp_path):
    with pytest.raises(KilledError):
        fit(fresh(), pruner(), keras.callbacks.BackupAndRestore(tmp_path), Kill(12))
    backup = keras.callbacks.BackupAndRestore(tmp_path)
    with pytest.raises(ValueError, match=r"`ratio=`\. Expected the budget of the same run"):
        fit(fresh(), pruner(ratio=None, params_reduction=0.3), backup)


def test_several_fits_go_on(unbroken):
    """In one `fit` or in several, under one pruner: the same end."""
    model, ours = fresh(), pruner(**EXPLICIT)
    with pytest.warns(UserWarning, match="not reached"):
        fit(model, ours, epochs=2)
    assert ours.plan.creators[0].kept > 8
    fit(model, ours, epochs=EPOCHS, initial_epoch=2)
    same(unbroken["explicit"], (model, ours))
    other = fresh()
    fit(other, ours)
    same(unbroken["explicit"], (other, ours))
    assert ours._map.model is other


def test_interrupted_and_fit_again():
    model, ours = fresh(), pruner()
    with pytest.raises(KilledError):
        fit(model, ours, Kill(8))
    removed = ours._state.removed.copy()
    assert removed.any()
    fit(model, ours, epochs=1)  # shorter than what is left of the schedule
    assert ours._state.removed[removed].all()
    assert [row.kept for row in ours.plan.creators[:2]] == [8, 6]


@pytest.mark.slow
def test_killed_by_a_signal():
    script = Path(__file__).parents[1] / "benchmarks" / "kills.py"
    case = "Magnitude, default schedule, backup first"
    command = [sys.executable, "-W", "ignore", script, "--quick", "--cases", case, "Centripetal"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [(row["kills"], row["other_results"]) for row in rows] == [(1, 0)] * 2
