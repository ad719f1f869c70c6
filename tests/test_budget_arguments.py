"""Budgets as objects and as keywords: every function takes both, and says what is wrong."""

import inspect
import math

import keras
import numpy as np
import pytest
from keras import layers
from nets import plain, randomise

import keras_nisp as kn
from keras_nisp.plans.budget import DEFAULTS, BudgetKeywords
from keras_nisp.plans.solver import Solver

X = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
Y = np.eye(3)[np.arange(32) % 3].astype("float32")


class Device(kn.LatencyTable):
    """Output channels cost in blocks of 8."""

    def measure(self, work):
        width = work.settings.get("filters", work.settings.get("units", 1))
        return 1e-9 * (8 * math.ceil(width / 8) * math.prod(work.inputs[0]) + work.elements)


def dense():
    keras.utils.set_random_seed(0)
    names = (("a", 32), ("b", 24), ("c", 16))
    hidden = [layers.Dense(units, "relu", name=name) for name, units in names]
    model = keras.Sequential(
        [keras.Input((6,)), *hidden, layers.Dense(3, name="head")], name="dense"
    )
    model.compile(keras.optimizers.SGD(0.01), "mse")
    return model


def table():
    return Device(cache=False)


BUDGETS = {
    "ratio": {"ratio": 0.5, "allocation": "global", "exclude": "b"},
    "ratios": {"ratios": {"a": 0.5, "[bc]": 0.25}},
    "flops_reduction": {"flops_reduction": 0.4, "round_to": 2},
    "params_reduction": {"params_reduction": 0.4, "min_channels": 0.25},
    "memory_reduction": {"memory_reduction": 0.3, "round_to": 4},
    "latency_reduction": {"latency_reduction": 0.3, "target": "arm"},
}


def given(kind):
    return BUDGETS[kind] | ({"latency": table()} if kind == "latency_reduction" else {})


def kept(model):
    return [layer.units for layer in model.layers if isinstance(layer, layers.Dense)]


def trained(pruner):
    model = dense()
    model.fit(X, Y, epochs=2, batch_size=8, shuffle=False, verbose=0, callbacks=[pruner])
    return pruner


FUNCTIONS = {
    "plan_pruning": lambda **budget: kn.plan_pruning(dense(), kn.Magnitude(), **budget),
    "plan_merging": lambda **budget: kn.plan_merging(dense(), clustering="even", **budget),
    "prune": lambda **budget: kept(kn.prune(dense(), kn.Magnitude(), verbose=0, **budget)),
    "NISPPruner": lambda **budget: (
        trained(kn.NISPPruner(importance=kn.Magnitude(), verbose=0, **budget)).plan
    ),
}


@pytest.mark.parametrize("kind", BUDGETS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_budgets_are_objects_or_keywords(function, kind):
    if (function, kind) in {("plan_merging", "ratio"), ("prune", "latency_reduction")}:
        return  # no global allocation; what is measured differs from time to time
    call, budget = FUNCTIONS[function], kn.Budget(**given(kind))
    assert call(budget=budget) == call(**given(kind))


@pytest.mark.parametrize("kind", BUDGETS)
def test_pruners_end_where_their_budget_says(kind):
    """The end of training is what a plan of the trained weights could be, and not less."""
    pruner = trained(kn.NISPPruner(importance=kn.Magnitude(), verbose=0, **given(kind)))
    plan = pruner.plan
    assert plan.budget.kind == kind
    assert plan.budget.amount == kn.Budget(**given(kind)).amount
    if kind.endswith("_reduction"):
        of = plan.latency.reduction if kind.startswith("lat") else getattr(plan, kind)
        assert of >= plan.budget.amount
    else:
        removed = {row.layer: len(row.removed) for row in plan.creators}
        assert removed["a"] == 16 if kind == "ratios" else removed["b"] == 0
        assert kind != "ratios" or (removed["b"], removed["c"]) == (6, 4)
    assert kept(pruner.pruned_model) == [row.kept for row in plan.creators]


@pytest.mark.parametrize("kind", BUDGETS)
def test_pruners_hold_their_settings(kind):
    schedule = kn.PolynomialSchedule(0.5, begin_step=1, end_step=6, frequency=2)
    importance = kn.Magnitude(p=2)
    arguments = {"schedule": schedule, "importance": importance, "input_shape": (6,), "verbose": 0}
    pruner = kn.NISPPruner(**given(kind), **arguments)
    config = pruner.get_config()
    again = kn.NISPPruner.from_config(config)
    assert again.budget == pruner.budget == config["budget"]
    assert again.get_config() == config
    assert trained(again).plan == trained(pruner).plan


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_the_code_of_a_pruner_makes_its_plan(tmp_path):
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    schedule = kn.PolynomialSchedule(0.5, begin_step=0, end_step=6, frequency=3)
    for settings in ({}, {"schedule": schedule}):
        pruner = kn.NISPPruner(
            importance=kn.Magnitude(), ratio=0.5, exclude="b", verbose=0, **settings
        )
        dense_model = dense()
        dense_model.fit(data, verbose=0, callbacks=[pruner])
        names = {"model": dense(), "data": data}
        exec(pruner.plan.recipe.code, names)
        assert names["plan"] == pruner.plan
    assert "schedule=kn.PolynomialSchedule(final=0.5, begin_step=0," in pruner.plan.recipe.code
    pruner.plan.save(tmp_path / "plan.json")
    assert kn.Plan.load(tmp_path / "plan.json") == pruner.plan


def test_what_a_latency_budget_removes_while_training_stays_removed():
    """Blocks become finer where coarse ones cannot do."""
    names = (("a", 64), ("b", 48), ("c", 24))
    hidden = [layers.Dense(units, name=name) for name, units in names]
    model = keras.Sequential([keras.Input((6,)), *hidden, layers.Dense(3)])
    channel_map, removed = kn.trace(model), None
    budget = kn.Budget(latency_reduction=0.1, latency=table())
    for step, amount in enumerate((0.1, 0.25, 0.4, 0.6, 0.75, 0.85)):
        solver = Solver(channel_map, budget.with_amount(amount), removed)
        chosen = solver.select(kn.Random(step)(channel_map)).removed
        assert removed is None or chosen[removed].all()
        assert budget.table.reduction(channel_map, ~chosen) >= amount
        removed = chosen


def test_sensitivity_takes_the_limits_of_a_budget():
    data, model = (X, Y), dense()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    everything = kn.sensitivity(model, kn.Magnitude(), data, ratios=[0.5])
    budget = kn.Budget(ratio=0.5)
    assert kn.sensitivity(model, kn.Magnitude(), data, budget=budget) == everything
    whole = kn.Budget(ratio=0.5, exclude=("a", "b"), min_channels=16)
    result = kn.sensitivity(model, kn.Magnitude(), data, budget=whole)
    assert [values[0] for values in result.accuracies] == [result.baseline] * 3
    with pytest.raises(ValueError, match="`ratios` or `budget`"):
        kn.sensitivity(model, kn.Magnitude(), data, ratios=[0.5], budget=budget)
    for other in (kn.Budget(flops_reduction=0.5), kn.Budget(ratio=0.5, allocation="global"), 0.5):
        with pytest.raises(ValueError, match="a Budget with `ratio`, and no `allocation`"):
            kn.sensitivity(model, kn.Magnitude(), data, budget=other)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_either_an_object_or_keywords(function):
    call, budget = FUNCTIONS[function], kn.Budget(ratio=0.5)
    with pytest.raises(ValueError, match="Received: `budget` and `ratio`, `round_to`"):
        call(budget=budget, ratio=0.5, round_to=2)
    with pytest.raises(ValueError, match="exactly one of ratio, ratios"):
        call()
    with pytest.raises(TypeError, match=r"`budget` to be a keras_nisp.Budget. Received: 0\.5"):
        call(budget=0.5)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("flops", "flops_reduction"),
        ("param_reduction", "params_reduction"),
        ("min_channel", "min_channels"),
        ("whole_group", "whole_groups"),
        ("bugdet", "budget"),
    ],
)
def test_names_that_are_near(function, wrong, right):
    message = (
        rf"{function}\(\) got an unexpected keyword argument '{wrong}'. Did you mean `{right}`"
    )
    with pytest.raises(TypeError, match=message):
        FUNCTIONS[function](**{wrong: 0.5})


def test_names_that_nothing_is_near():
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'xyz'\.$"):
        kn.prune(dense(), kn.Magnitude(), ratio=0.5, xyz=1)
    with pytest.raises(TypeError, match=r"'verbos'. Did you mean `verbose`"):
        kn.prune(dense(), kn.Magnitude(), ratio=0.5, verbos=1)


def test_signatures_name_the_arguments_of_budgets():
    """For help and completion, and in the same order everywhere."""
    assert list(BudgetKeywords.__annotations__) == list(DEFAULTS)
    for function in (kn.plan_pruning, kn.plan_merging, kn.prune, kn.NISPPruner):
        parameters = inspect.signature(function).parameters
        assert list(parameters)[-len(DEFAULTS) :] == list(DEFAULTS)
        listed = {name: parameters[name].default for name in DEFAULTS}
        assert (
            listed
            == DEFAULTS
            == dict.fromkeys(DEFAULTS) | vars(kn.Budget(ratio=0.0)) | {"ratio": None}
        )
        kinds = {parameters[name].kind for name in DEFAULTS}
        assert kinds == {inspect.Parameter.KEYWORD_ONLY}


def test_pruners_cannot_reach_widths_step_by_step():
    with pytest.raises(ValueError, match=r"Received: `widths`.* Give `ratios`"):
        kn.NISPPruner(importance=kn.Magnitude(), widths={"a": 4})


@pytest.mark.parametrize("value", [-1, 0, 2.5, "a", True])
@pytest.mark.parametrize("name", ["batch_size", "max_samples"])
def test_counts_are_whole_numbers(name, value):
    model, x = dense(), np.ones((8, 4), "float32")
    with pytest.raises(ValueError, match=f"Expected `{name}` to be an integer of at least 1"):
        kn.recalibrate(model, x, **{name: value})
    if name == "max_samples":
        with pytest.raises(ValueError, match="Expected `max_samples` to be an integer"):
            kn.NISP(x, max_samples=value)


@pytest.mark.parametrize("seed", [-1, 2.5, "a", True, None])
def test_seeds_are_whole_numbers(seed):
    model, x = dense(), np.ones((80, 6), "float32")
    small = kn.rebuild(model, plan := kn.plan_pruning(model, kn.Magnitude(), ratio=0.5))
    before = small.get_weights()
    for call in (
        lambda: kn.NISP(x, seed=seed),
        lambda: kn.Random(seed),
        lambda: kn.recalibrate(small, x, model, plan, teach_steps=1, seed=seed),
        lambda: kn.plan_merging(model, ratio=0.5, seed=seed),
        lambda: kn.widen(model, 2, seed=seed),
        lambda: kn.benchmark(model, seed=seed),
    ):
        with pytest.raises((ValueError, TypeError), match="Expected `seed` to be an integer"):
            call()
    for old, new in zip(before, small.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_what_is_no_plan_is_told():
    model, x = dense(), np.ones((8, 4), "float32")
    for call in (
        lambda: kn.rebuild(model, None),
        lambda: kn.verify(model, x, None),
        lambda: kn.verify(model, model, x),
        lambda: kn.recalibrate(model, x, model, "plan.json"),
    ):
        with pytest.raises(TypeError, match=r"Expected `plan` to be a keras_nisp\.Plan"):
            call()


def test_ranking_is_the_old_name_of_allocation():
    new = kn.Budget(ratio=0.5, allocation="global")
    with pytest.warns(DeprecationWarning, match="is now `allocation='global'`") as said:
        assert kn.Budget(ratio=0.5, ranking="global") == new
    assert said[0].filename == __file__
    plan = kn.plan_pruning(dense(), kn.Magnitude(), budget=new)
    with pytest.warns(DeprecationWarning, match="is now `allocation='global'`"):
        assert kn.plan_pruning(dense(), kn.Magnitude(), ratio=0.5, ranking="global") == plan
    with pytest.warns(DeprecationWarning, match="`ranking='local'` is now `allocation='uniform'`"):
        assert kn.Budget(ratio=0.5, ranking="local") == kn.Budget(ratio=0.5, allocation="uniform")
    with (
        pytest.warns(DeprecationWarning, match="is now"),
        pytest.raises(ValueError, match=r"`allocation` to be one of 'auto', .*'best'"),
    ):
        kn.Budget(ratio=0.5, ranking="best")


def test_auto_is_decided_by_what_there_is():
    """A plan says what was decided, so that its recipe makes it again."""

    def decided(*importance, function=kn.plan_pruning, **arguments):
        return function(dense(), *importance, **arguments).budget.allocation

    for kind in ("flops_reduction", "params_reduction", "memory_reduction"):
        assert decided(kn.Magnitude(), **{kind: 0.3}) == "uniform"
        assert decided(kn.Magnitude(), **{kind: 0.3}, calibration=X) == "predicted"
        assert decided(kn.NISP(X), **{kind: 0.3}) == "predicted"
        assert decided(function=kn.plan_merging, **{kind: 0.3}) == "uniform"
        assert decided(function=kn.plan_merging, **{kind: 0.3}, calibration=X) == "predicted"
    assert decided(kn.NISP(X), ratio=0.3) == "uniform"
    assert decided(kn.NISP(X), widths={"a": 4}) == "uniform"
    assert decided(kn.NISP(X), ratio=0.3, allocation="measured") == "measured"


@pytest.mark.parametrize("allocation", ["predicted", "measured"])
def test_damages_need_calibration_data(allocation):
    for call in FUNCTIONS.values():
        with pytest.raises(ValueError, match=f"calibration data for allocation='{allocation}'"):
            call(flops_reduction=0.3, allocation=allocation)


def test_merging_ranks_no_groups():
    with pytest.raises(ValueError, match="another `allocation` than 'global'"):
        kn.plan_merging(dense(), ratio=0.5, allocation="global")


def test_budgets_are_values():
    """Equal by what they say, printed as what was given, plain numbers inside."""
    budget = kn.Budget(ratio=np.float32(0.5), round_to=8.0, exclude=["a", "b"])
    assert budget == kn.Budget(ratio=0.5, round_to=8, exclude=("a", "b"))
    assert repr(budget) == "Budget(ratio=0.5, round_to=8, exclude=('a', 'b'))"
    assert type(budget.ratio) is float
    assert type(budget.round_to) is int
    assert budget.with_amount(0.25) == kn.Budget(ratio=0.25, round_to=8, exclude=("a", "b"))
    ratios = kn.Budget(ratios={"a": 0.5, "b": 0.25})
    assert ratios.amount == 0.5
    assert ratios.with_amount(0.2).ratios == {"a": 0.2, "b": 0.1}
    assert kn.Budget(ratios={"a": 0}).with_amount(0.0).ratios == {"a": 0.0}
    with pytest.raises(AttributeError):
        budget.ratio = 0.1


def test_one_budget_for_several_models():
    """Layers that are named by objects are named by paths in the plan."""
    first, second = dense(), randomise(plain())
    plan = kn.plan_pruning(first, kn.Magnitude(), ratio=0.5, exclude=[first.get_layer("b")])
    assert plan.budget == kn.Budget(ratio=0.5, exclude="b", allocation="uniform")
    other = kn.plan_pruning(second, kn.Magnitude(), budget=plan.budget)
    assert {row.layer: row.kept for row in other.creators}["b"] == 12


def holders():
    """A wrapper, and models inside the model; one holds an operation, too."""
    sequence, features = keras.Input((6, 4)), keras.Input((8,))
    inner = keras.Model(features, keras.ops.relu(features) + layers.Dense(8)(features), name="in")
    x = layers.TimeDistributed(layers.Dense(6), name="steps")(sequence)
    x = layers.Bidirectional(layers.LSTM(4), name="both")(x)
    head = keras.Sequential([layers.Dense(8, "relu"), layers.Dense(2)], name="head")
    return keras.Model(sequence, head(inner(layers.Dense(8)(x))))


@pytest.mark.parametrize("name", ["steps", "both", "in", "head"])
def test_wrappers_and_nested_models_as_objects(name):
    """They stand for all that they hold, as their names do."""
    model = holders()
    layer = model.get_layer(name)

    def kept(**budget):
        plan = kn.plan_pruning(model, kn.Magnitude(), **budget)
        return plan.budget, [row.kept for row in plan.creators]

    for given in (lambda x: {"ratio": 0.5, "exclude": x}, lambda x: {"ratios": {x: 0.5}}):
        by_paths, found = kept(**given(layer))
        assert found == kept(**given(name))[1] == kept(budget=by_paths)[1]
    by_name, by_object = (kn.widen(model, 2, exclude=given) for given in (name, layer))
    assert by_name.count_params() == by_object.count_params()


def test_layer_object_of_another_model():
    model = dense()
    with pytest.raises(ValueError, match="object 'b', which is of another model"):
        kn.plan_pruning(model, kn.Magnitude(), ratio=0.5, exclude=dense().get_layer("b"))
