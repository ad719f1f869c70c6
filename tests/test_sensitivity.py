"""Sensitivity of coupled groups, and the range of data."""

import dataclasses
import functools
import json

import keras
import numpy as np
import pytest
from nets import plain, randomise, residual

import keras_nisp as kn
from keras_nisp.damage.table import AddedDamages
from keras_nisp.data.samples import Samples
from keras_nisp.data.value_range import check_range, starts_with_rescaling
from keras_nisp.pruning import sensitivity as sensitivities
from keras_nisp.pruning.sensitivity import accuracy


@pytest.fixture
def model(images):
    model = residual()
    randomise(model)
    head = model.get_layer("head")
    # Logits around zero, so that all classes occur.
    head.bias.assign_sub(np.asarray(model(images, training=False)).mean(0))
    return model


@pytest.fixture
def images(rng):
    return rng.normal(size=(64, 11, 11, 3)).astype("float32")


@pytest.fixture
def data(model, images):
    return images, np.asarray(model(images, training=False)).argmax(
        -1
    )  # the whole model is always right


def test_accuracy_is_that_of_a_model_pruned_by_hand(model, data):
    result = kn.sensitivity(model, kn.Magnitude(), data, ratios=[0.5, 0.25])
    assert result.ratios == (0.25, 0.5)
    assert result.baseline == 1.0
    assert result.groups == (("stem", "outer0", "outer1"), ("inner0",), ("inner1",))
    assert result.channels == (8, 6, 6)
    for layer, values in (("stem", result.accuracies[0]), ("inner1", result.accuracies[2])):
        plan = kn.plan_pruning(model, kn.Magnitude(), ratios={layer: 0.5})
        small = kn.rebuild(model, plan)
        right = np.asarray(small(data[0], training=False)).argmax(-1) == data[1]
        assert values[1] == pytest.approx(right.mean())
        assert values[1] < 1
    assert "stem and 2 more" in str(result)


def test_measurements_are_kept_and_not_repeated(model, data, tmp_path):
    path, calls = tmp_path / "s.json", []

    def metric(network, samples):
        calls.append(network)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return float(network.count_params())

    arguments = {"ratios": [0.5], "metric": metric, "path": path}
    with pytest.raises(KeyboardInterrupt):
        kn.sensitivity(model, kn.Magnitude(), data, **arguments)
    assert len(json.loads(path.read_text())["results"]) == 3
    result = kn.sensitivity(model, kn.Magnitude(), data, **arguments)
    assert len(calls) == 6  # two more: the whole model, and the one that was interrupted
    assert result.baseline == model.count_params()
    assert max(max(row) for row in result.accuracies) < result.baseline
    with pytest.raises(kn.PlanFileError, match="of another model, importance, metric"):
        kn.sensitivity(model, kn.Random(), data, **arguments)
    path.write_text("{}")
    with pytest.raises(kn.PlanFileError, match="Expected results of `sensitivity`"):
        kn.sensitivity(model, kn.Magnitude(), data, **arguments)


def _loss(model, samples, power=1):
    outputs = np.asarray(model(samples.inputs[0], training=False))
    return float((np.abs(outputs) ** power).mean())


def _scaled(factor):
    return lambda model, samples: factor * _loss(model, samples)


@pytest.fixture(scope="module")
def small():
    model = keras.Sequential([keras.Input((4,)), *map(keras.layers.Dense, (8, 3))])
    x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    return model, x, np.asarray(model(x, training=False)).argmax(-1)


def test_what_changes_results_is_noticed(small, tmp_path):
    model, x, y = small
    settings = {"importance": kn.Magnitude(), "data": (x, y), "metric": _scaled(1.0)}
    settings |= {"ratios": [0.5], "path": tmp_path / "s.json"}
    first = kn.sensitivity(model, **settings)
    before = settings["path"].read_text()
    assert kn.sensitivity(model, **settings) == first
    assert settings["path"].read_text() == before
    relu = keras.models.clone_model(model)
    relu.set_weights(model.get_weights())
    relu.layers[0].activation = keras.activations.relu
    for change in (
        {"data": (x, (y + 1) % 3)},
        {"data": (x[:-1], y[:-1])},
        {"metric": accuracy},
        {"metric": _scaled(2.0)},
        {"metric": functools.partial(_loss, power=2)},
        {"calibration": x},
        {"importance": kn.Random()},
        {"model": relu},
    ):
        with pytest.raises(kn.PlanFileError, match="another"):
            kn.sensitivity(**({"model": model} | settings | change))


def test_results_of_another_setting_are_not_taken(small, tmp_path):
    """One importance by name that removes other channels: its own results, beside the others."""
    model, x, y = small
    path, common = tmp_path / "s.json", {"data": (x, y), "metric": _loss, "ratios": [0.25, 0.5]}
    importances = [kn.Random(0), kn.Random(1)]
    apart = [kn.sensitivity(model, importance, **common) for importance in importances]
    together = [kn.sensitivity(model, i, path=path, **common) for i in importances]
    assert together == apart
    assert apart[0].accuracies != apart[1].accuracies


def test_repair_is_that_of_the_means(model, data):
    arguments = {"ratios": [0.5], "calibration": data[0]}
    result = kn.sensitivity(model, kn.Magnitude(), data, **arguments)
    plan = kn.plan_pruning(model, kn.Magnitude(), ratios={"inner0": 0.5})
    small = kn.recalibrate(kn.rebuild(model, plan), data[0], model, plan, compensate="mean")
    right = np.asarray(small(data[0], training=False)).argmax(-1) == data[1]
    assert result.accuracies[1][0] == pytest.approx(right.mean())
    assert result != kn.sensitivity(model, kn.Magnitude(), data, ratios=[0.5])


@pytest.mark.parametrize("groups", [3, 15])
def test_plots(groups, tmp_path):
    pytest.importorskip("matplotlib")
    names = tuple((f"conv{i}",) for i in range(groups))
    values = tuple((0.9 - 0.01 * i, 0.5) for i in range(groups))
    result = kn.Sensitivity("net", "NISP", 0.9, names, (8,) * groups, (0.25, 0.5), values)
    result.plot(tmp_path / "s.png")
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("groups", [1, 11])
def test_figures_of_another_metric_are_called_by_its_name(groups, monkeypatch, tmp_path):
    """They were "accuracy, %", and an error that grew was drawn as none."""
    figures, drawn = pytest.importorskip("matplotlib.figure"), []
    save = figures.Figure.savefig
    monkeypatch.setattr(
        figures.Figure, "savefig", lambda *given: (drawn.append(given[0]), save(*given))
    )
    names, values = tuple((f"layer{i}",) for i in range(groups)), ((0.4, 0.9),) * groups
    table = kn.Sensitivity(
        "net", "NISP", 0.3, names, (8,) * groups, (0.25, 0.5), values, metric="mean_error"
    )
    assert str(table).startswith("net: mean_error 0.3; with one group pruned by NISP")
    table.plot(tmp_path / "figure.png")
    axes = drawn[0].axes
    if groups == 1:
        assert axes[0].get_ylabel() == "mean_error"
        assert axes[0].lines[0].get_ydata().tolist() == [0.3, 0.4, 0.9]
    else:
        assert axes[1].get_ylabel() == "change of mean_error"
        np.testing.assert_allclose(axes[0].images[0].get_clim(), (-0.6, 0.6))


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (lambda model, samples: 1.0, "metric"),
        (functools.partial(_loss, power=2), "_loss"),
        (accuracy, "accuracy"),
    ],
)
def test_what_figures_are_called(metric, name, small):
    model, x, y = small
    table = kn.sensitivity(model, kn.Magnitude(), (x, y), metric=metric, ratios=[0.5])
    assert table.metric == name


def test_what_is_not_a_classifier_needs_a_metric(rng):
    inputs = keras.Input((4,))
    x = keras.layers.Dense(8, name="hidden")(inputs)
    model = keras.Model(inputs, [keras.layers.Dense(2)(x), keras.layers.Dense(3)(x)])
    data = rng.normal(size=(8, 4)), np.zeros(8)
    with pytest.raises(ValueError, match="pass `metric=`"):
        kn.sensitivity(model, kn.Magnitude(), data)
    with pytest.raises(TypeError, match="with labels"):
        kn.sensitivity(model, kn.Magnitude(), data[0])
    with pytest.raises(ValueError, match="number in \\(0, 1\\)"):
        kn.sensitivity(model, kn.Magnitude(), data, ratios=[1.0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ratios": 0.5}, "`ratios` to be a list of numbers. Received: 0.5"),
        ({"ratios": "0.5"}, "`ratios` to be a list of numbers"),
        ({"ratios": ["a"]}, "`ratios` to be a number in"),
        ({"ratios": []}, "`ratios` to hold a number"),
        ({"metric": "accuracy"}, "`metric` to be a function"),
        ({"metric": lambda model, samples: None}, "`metric` to return a number. Received: None"),
        ({"metric": lambda model, samples: np.nan}, "finite number for the whole model"),
        ({"progress": 3}, "`progress` to be a function"),
        ({"seed": -1}, "`seed` to be an integer of at least 0"),
    ],
)
def test_wrong_arguments_are_named(small, wrong, message):
    model, x, y = small
    with pytest.raises((TypeError, ValueError), match=message):
        kn.sensitivity(model, kn.Magnitude(), (x, y), **wrong)


def test_figures_that_are_not_finite_are_kept(small, tmp_path):
    """A perplexity that overflows says that the group is needed."""
    model, x, y = small
    path, figures = tmp_path / "s.json", {8: 5.0, 6: np.inf, 4: np.nan, 2: -np.inf}

    def perplexity(network, samples):
        return figures[network.layers[0].units]

    arguments = {"metric": perplexity, "path": path, "ratios": [0.25, 0.5, 0.75]}
    table = kn.sensitivity(model, kn.Magnitude(), (x, y), **arguments)
    np.testing.assert_equal(table.accuracies, ((np.inf, np.nan, -np.inf),))
    assert all(word in str(table) for word in ("inf", "nan"))
    again = kn.sensitivity(model, kn.Magnitude(), (x, y), **arguments)
    np.testing.assert_equal(again.accuracies, table.accuracies)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    pytest.importorskip("matplotlib")
    table.plot(tmp_path / "lines.png")
    many = {"groups": table.groups * 12, "channels": table.channels * 12}
    many["accuracies"] = table.accuracies * 12
    dataclasses.replace(table, **many).plot(tmp_path / "map.png")


@pytest.mark.parametrize(("units", "labels"), [(1, [0, 1, 1, 0]), (3, [2, 1, 0, 0])])
def test_accuracy_of_logits_and_probabilities(units, labels):
    inputs = keras.Input((units,))
    model = keras.Model(inputs, keras.layers.Activation("linear")(inputs))
    if units == 1:
        x = np.array([[-1.0], [2.0], [-3.0], [-0.1]])
        assert accuracy(model, Samples([x.astype("float32")], np.array(labels))) == 0.75
    else:
        x = np.eye(3)[[2, 1, 1, 0]].astype("float32")
        for y in (np.array(labels), np.eye(3)[labels]):
            assert accuracy(model, Samples([x], y)) == 0.75


@pytest.mark.parametrize(
    ("units", "loss", "largest"),
    [(1, "mse", 2), (5, "mae", 5), (1, None, 9), (5, None, 6), (5, "unit", 5)],
)
def test_no_accuracy_of_what_has_no_classes(units, loss, largest, rng, capsys):
    """It was 0.0000: of ages, of labels beyond the outputs, of embeddings."""
    model = keras.Sequential([keras.Input((4,)), *map(keras.layers.Dense, (8, units))])
    if loss == "unit":
        model.add(keras.layers.UnitNormalization())
    elif loss:
        model.compile("sgd", loss)
    data = rng.normal(size=(64, 4)).astype("float32"), rng.integers(0, largest, 64)
    with pytest.raises(ValueError, match="a label for each sample"):
        kn.sensitivity(model, kn.Magnitude(), data)
    kn.prune(model, kn.Magnitude(), ratio=0.5, calibration=data)
    assert "accuracy on these" not in capsys.readouterr().out


def test_accuracy_of_a_regression_on_classes(rng):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Activation("linear")])
    model.compile("sgd", "mse")
    x = rng.uniform(0, 0.5, size=(40, 3)).astype("float32") + np.eye(3, dtype="float32")[0]
    labels = np.eye(3)[np.repeat([0, 1], 20)]
    assert accuracy(model, Samples([x], labels)) == 0.5
    with pytest.raises(ValueError, match="pass `metric=`"):
        accuracy(model, Samples([x], 2 * labels))


def test_models_bound_to_a_batch_and_stateful_ones(rng):
    """Each batch is one of the model's size, from a fresh state, and no state is left behind."""
    batch = 5
    inputs = keras.Input((6, 3), batch_size=batch)
    recurrent = keras.layers.GRU(8, stateful=True, name="gru")
    model = keras.Model(inputs, keras.layers.Dense(4)(recurrent(inputs)))
    x = rng.normal(size=(20, 6, 3)).astype("float32")
    recurrent.states[0].assign(np.ones((batch, 8)))
    answers = []
    for part in x.reshape(-1, batch, 6, 3):
        recurrent.reset_state()
        answers.append(model(part).numpy())
    recurrent.states[0].assign(np.ones((batch, 8)))
    y = np.concatenate(answers).argmax(-1)
    result = kn.sensitivity(model, kn.Magnitude(), (x, y), ratios=[0.25])
    assert result.baseline == 1
    assert result.groups == (("gru",),)
    np.testing.assert_array_equal(recurrent.states[0], np.ones((batch, 8)))


# Damages, without labels ---------------------------------------------------------------


@pytest.fixture(scope="module")
def table(small):
    return kn.sensitivity(small[0], kn.Magnitude(), calibration=small[1])


def test_damages_are_those_of_rebuilt_and_refitted_networks(rng, monkeypatch):
    hidden = [keras.layers.Dense(16, "relu", name=name) for name in ("first", "second")]
    model = keras.Sequential([keras.Input((6,)), *hidden, keras.layers.Dense(3)])
    randomise(model)
    x = rng.normal(size=(512, 6)).astype("float32")
    monkeypatch.setattr(sensitivities, "rebuild_traced", None)  # no network is built
    table = kn.sensitivity(model, kn.Magnitude(), calibration=x)
    assert (table.baseline, table.accuracies, table.groups) == (None, (), (("first",), ("second",)))
    assert "damage to the outputs with one group pruned by Magnitude" in str(table)
    before = np.asarray(model(x))
    for (layer,), damages in zip(table.groups, table.damages, strict=True):
        for ratio, damage in zip(table.ratios, damages, strict=True):
            plan = kn.plan_pruning(model, kn.Magnitude(), ratios={layer: ratio})
            small = kn.recalibrate(kn.rebuild(model, plan), x, model, plan)
            apart = (np.asarray(small(x)) - before) ** 2 / (2 * before.var(0).mean())
            assert damage == pytest.approx(apart.mean(), rel=0.3)


def test_damages_order_groups_like_accuracies(model, data):
    labelled = kn.sensitivity(model, kn.Magnitude(), data, ratios=[0.5], calibration=data[0])
    damages = kn.sensitivity(model, kn.Magnitude(), calibration=data[0], ratios=[0.5]).damages
    assert np.argmax(damages) == np.argmin(labelled.accuracies)
    assert np.argmin(damages) == np.argmax(labelled.accuracies)


def test_a_table_allocates_for_any_budget(model, images):
    """Without data, and better than one share for all."""
    table = kn.sensitivity(model, kn.Magnitude(), calibration=images)
    for amount in (0.2, 0.4, 0.6):
        apart = []
        for allocation in (table, "uniform"):
            limits = {"flops_reduction": amount, "allocation": allocation}
            plan = kn.plan_pruning(model, kn.Magnitude(), **limits)
            assert plan.flops_reduction >= amount
            small = kn.recalibrate(kn.rebuild(model, plan), images, model, plan)
            apart.append(np.square(np.asarray(model(images)) - small(images)).mean())
        assert apart[0] < apart[1]
    merging = kn.plan_merging(model, clustering="even", params_reduction=0.4, allocation=table)
    assert merging.params_reduction >= 0.4


def test_a_plan_by_a_table_holds_it(model, images, tmp_path):
    table = kn.sensitivity(model, kn.Magnitude(), calibration=images, ratios=[0.25, 0.5])
    plan = kn.plan_pruning(model, kn.Magnitude(), flops_reduction=0.4, allocation=table)
    assert "a table of damages" in plan.budget_text
    plan.save(tmp_path / "plan.json")
    loaded = kn.Plan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert loaded.budget.allocation == table
    assert kn.plan_pruning(model, kn.Magnitude(), budget=loaded.budget) == plan
    code = {"model": model, "table": table}
    exec(plan.recipe.code, code)
    assert code["plan"] == plan


def test_between_the_ratios_of_a_table(small):
    """A square root is a line, and goes on beyond the last ratio."""
    names, channel_map = (("dense",),), kn.trace(small[0])
    table = kn.Sensitivity("net", "NISP", None, names, (8,), (0.25, 0.5), (), ((0.01, 0.04),))
    network, keep = AddedDamages(channel_map, table), np.ones(channel_map.count, bool)
    units, found = channel_map.groups[0].units, []
    for count in range(1, 8):
        keep[units[:count]] = False
        found.append(network.measure(keep))
    np.testing.assert_allclose(found, (np.arange(1, 8) / 20) ** 2, atol=1e-12)
    assert network.predict(keep, [keep | True]) == pytest.approx(-found[-1])


def test_tables_that_do_not_fit(small, table, model, data):
    limits = {"flops_reduction": 0.3}
    with pytest.raises(ValueError, match="whose groups or widths are others: call `sensitivity`"):
        kn.plan_pruning(model, kn.Magnitude(), allocation=table, **limits)
    labelled = kn.sensitivity(model, kn.Magnitude(), data, ratios=[0.5])
    with pytest.raises(ValueError, match="Received a table of accuracies"):
        kn.plan_pruning(model, kn.Magnitude(), allocation=labelled, **limits)
    with pytest.raises(ValueError, match=r"'measured', or a Sensitivity. Received: \['x'\]"):
        kn.Budget(**limits, allocation=["x"])
    with pytest.raises(ValueError, match="labeled `data`, for accuracies, or `calibration`"):
        kn.sensitivity(small[0], kn.Magnitude())
    with pytest.raises(ValueError, match="`data` for `metric`"):
        kn.sensitivity(small[0], kn.Magnitude(), calibration=small[1], metric=_loss)


def test_damages_are_kept(small, table, tmp_path, monkeypatch):
    model, x, _ = small
    settings = {"calibration": x, "path": tmp_path / "s.json"}
    assert kn.sensitivity(model, kn.Magnitude(), ratios=[0.25, 0.5], **settings) != table
    monkeypatch.setattr(sensitivities, "DamagedNetwork", None)
    with pytest.raises(TypeError, match="not callable"):  # 0.75 is still to be measured
        kn.sensitivity(model, kn.Magnitude(), **settings)
    monkeypatch.undo()
    assert kn.sensitivity(model, kn.Magnitude(), **settings) == table
    monkeypatch.setattr(sensitivities, "DamagedNetwork", None)
    assert kn.sensitivity(model, kn.Magnitude(), **settings) == table
    with pytest.raises(kn.PlanFileError, match="another"):
        kn.sensitivity(model, kn.Magnitude(), **settings | {"calibration": x[:-1]})


def test_damages_that_do_not_show():
    """Key channels: the table says so, and allocation gives them the mean share of the others."""
    inputs = keras.Input((6, 8))
    x = keras.layers.MultiHeadAttention(4, 4, name="attention")(inputs, inputs)
    x = keras.layers.Dense(16, activation="relu", name="dense")(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    x = np.random.default_rng(0).normal(size=(32, 6, 8)).astype("float32")
    table = kn.sensitivity(model, kn.Magnitude(), calibration=x, ratios=[0.5])
    rows = dict(zip(table.groups, table.damages, strict=True))
    assert rows[("attention:key",)] == (None,)
    assert rows[("attention:heads",)][0] > 0
    assert rows[("dense",)][0] > 0
    assert "not seen" in str(table)
    plan = kn.plan_pruning(model, kn.Magnitude(), params_reduction=0.7, allocation=table)
    kept = {creator.layer: creator.kept for creator in plan.creators}
    assert 1 <= kept["attention:key"] < 4


@pytest.mark.parametrize("groups", [3, 15])
def test_plots_of_damages(groups, tmp_path):
    pytest.importorskip("matplotlib")
    names = tuple((f"conv{i}",) for i in range(groups))
    values = (*((0.01 * i, 0.5) for i in range(groups - 1)), (None, None))
    table = kn.Sensitivity("net", "NISP", None, names, (8,) * groups, (0.25, 0.5), damages=values)
    table.plot(tmp_path / "s.png")
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


# Range of data -----------------------------------------------------------------------


def test_statistics_of_the_first_normalisation_tell_the_range(rng):
    model = plain()
    x = rng.uniform(size=(200, 9, 9, 3)).astype("float32")
    kn.recalibrate(model, x)
    assert check_range(model, Samples([x])) is None
    assert check_range(model, Samples([0.5 * x])) is None
    assert "times as large as in training" in str(check_range(model, Samples([255 * x])))
    with pytest.warns(kn.DataRangeWarning, match="256 times"):
        kn.recalibrate(model, 255 * x)
    assert "in another range" in str(check_range(model, Samples([x])))
    assert check_range(model, Samples([255 * x])) is None


def test_without_statistics_pixels_are_asked_about(rng):
    x = rng.integers(0, 256, (20, 8, 8, 3)).astype("float32")
    bare = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3)])
    assert "look like pixels" in str(check_range(bare, Samples([x])))
    assert check_range(bare, Samples([x / 255])) is None
    layers = [keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(2, 3)]
    rescaled = keras.Sequential(layers)
    assert starts_with_rescaling(rescaled)
    inputs = keras.Input((8, 8, 3))
    assert starts_with_rescaling(keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs / 255.0)))
    assert not starts_with_rescaling(bare)
    assert check_range(rescaled, Samples([x])) is None
