"""Latency tables and budgets: with a made-up device, so that no test depends on the clock."""

import concurrent.futures
import json
import math
import zlib

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from nets import NETS, plain, random_plan, residual
from test_layers import CASES, between

import keras_nisp as kn
from keras_nisp.errors import ExportError
from keras_nisp.latency.cache import LatencyCache, default_path, machine
from keras_nisp.latency.table import MULTIPLES, LatencyTable
from keras_nisp.latency.workload import Workloads
from keras_nisp.plans.budget import Budget
from keras_nisp.plans.solver import Solver, Steps
from keras_nisp.pruning import latency_budget
from keras_nisp.pruning.pruning import pruned


class Device(LatencyTable):
    """Output channels of kernels cost in `stairs`; `noise` makes neighbours differ at random."""

    def __init__(self, noise=0.0, stairs=4, **arguments):
        super().__init__(**{"cache": False, **arguments})
        self.noise = noise
        self.stairs = stairs
        self.measured = []

    def measure(self, work):
        self.measured.append(work)
        width = work.settings.get("filters", work.settings.get("units", 1))
        paid = self.stairs * math.ceil(width / self.stairs)
        seconds = 1e-9 * (paid * math.prod(work.inputs[0]) + work.elements)
        random = np.random.default_rng(zlib.crc32(work.key.encode())).uniform(-1, 1)
        return seconds * (1 + self.noise * random)


def chain(*widths, size=6):
    return keras.Sequential(
        [
            keras.Input((size, size, 3)),
            *(layers.Conv2D(width, 1, name=f"conv{i}") for i, width in enumerate(widths)),
            layers.Conv2D(2, 1, name="head"),
        ]
    )


def widths(plan):
    return {creator.layer: creator.kept for creator in plan.creators}


# Tables. ---------------------------------------------------------------------------


def test_what_is_fused_costs_nothing():
    table = Device()
    model = plain()
    rows = table.layers(kn.trace(model))
    free = [type(model.get_layer(path)).__name__ for path, seconds in rows.items() if not seconds]
    assert free == ["BatchNormalization", "BatchNormalization", "Dropout"]
    assert [work.kind for work in table.measured] == [
        *("Conv2D", "MaxPooling2D", "Conv2D", "LeakyReLU", "Flatten", "Dense", "Dense")
    ]
    # Without a kernel in front of them they are work.
    alone = keras.Sequential(
        [keras.Input((6, 6, 4)), layers.MaxPooling2D(), layers.BatchNormalization(), layers.ReLU()]
    )
    seconds = list(Device().layers(kn.trace(alone)).values())
    assert [bool(s) for s in seconds] == [True, True, False]  # ReLU behind BatchNormalization


def test_padding_is_fused_into_convolutions_alone():
    def model(behind):
        return keras.Sequential([keras.Input((6, 6, 4)), layers.ZeroPadding2D(), behind])

    for behind, fused in ((layers.Conv2D(4, 3), True), (layers.MaxPooling2D(), False)):
        rows = Device().layers(kn.trace(model(behind)))
        assert (rows[next(iter(rows))] == 0) == fused


def test_sum_by_hand():
    """Three pointwise convolutions on 6 x 6 positions, two of them narrower."""
    channel_map = kn.trace(chain(8, 6))
    keep = np.ones(channel_map.count, bool)
    keep[channel_map.creators[0].units[:3]] = keep[channel_map.creators[1].units[:1]] = False
    by_hand = [(3, 8, 5), (5, 8, 5), (5, 4, 2)]  # inputs, outputs in blocks, outputs
    expected = 1e-9 * 36 * sum(inputs * blocks + outputs for inputs, blocks, outputs in by_hand)
    assert Device().model(channel_map, keep) == pytest.approx(expected)


def test_shapes_are_those_of_the_rebuilt_model():
    for net in NETS:
        model = net()
        plan = random_plan(model)
        channel_map = plan.trace(model)
        small = kn.rebuild(model, plan)
        expected = Workloads(kn.trace(small))(np.ones(kn.trace(small).count, bool))
        received = Workloads(channel_map)(~plan.removed_units(channel_map))
        assert [work.key for work in received] == [work.key for work in expected], net.__name__
        assert sum(w.flops for w in received) == pytest.approx(plan.after.flops, rel=0.01)


@pytest.mark.parametrize("name", CASES)
def test_every_kind_can_be_built_alone(name):
    """Each layer with kernels, at pruned widths, is computed alone and gives what it says."""

    class Eager(LatencyTable):
        def measure(self, work):
            function = work.build()
            try:
                outputs = function(*(np.full(shape, 0.5, "float32") for shape in work.inputs))
            except Exception as error:
                raise ExportError(str(error)) from error
            assert sum(np.size(x) for x in keras.tree.flatten(outputs)) == work.elements
            return 1.0

    table, model = Eager(cache=False), between(name)
    plan = random_plan(model)
    channel_map = plan.trace(model)
    rows = table.layers(channel_map, ~plan.removed_units(channel_map))
    kernels = {b.layer for b in channel_map.bindings.values() if b.positions}
    assert kernels
    assert all(np.isfinite(rows[path]) and rows[path] > 0 for path in kernels)
    assert not set(table.estimated) & kernels


def test_what_cannot_be_measured_is_estimated_and_named():
    class Picky(Device):
        def measure(self, work):
            if work.path == "conv1":
                raise ExportError("no such operation")
            return super().measure(work)

    model, table = chain(8, 6), Picky()
    seconds = table.layers(kn.trace(model))["conv1"]
    assert 0 < seconds < 1
    assert table.estimated == {"conv1": "no such operation"}
    plan = kn.plan_pruning(model, kn.Random(), latency_reduction=0.2, latency=table, round_to=1)
    assert "estimated: conv1" in plan.budget_text


def test_real_measurements_are_positive_and_kept(tmp_path, monkeypatch):
    channel_map = kn.trace(residual())
    table = LatencyTable(cache=tmp_path / "table.json")
    first = table.layers(channel_map)
    assert all(seconds >= 0 for seconds in first.values())
    assert table.model(channel_map) > 0
    assert not table.estimated

    def blind(self, work):
        raise AssertionError(f"{work.key} is not in the table")

    monkeypatch.setattr(LatencyTable, "measure", blind)
    assert LatencyTable(cache=tmp_path / "table.json").layers(channel_map) == first
    for other in (LatencyTable(threads=2, cache=tmp_path / "table.json"), Other(table._cache.path)):
        with pytest.raises(AssertionError, match="not in the table"):
            other.model(channel_map)


class Other(LatencyTable):
    """Another device that shares the file."""

    def __init__(self, path):
        super().__init__(cache=path)


def test_a_table_that_measures_nothing_says_so():
    class Broken(Device):
        def measure(self, work):
            raise ExportError("out of order")

    with pytest.raises(ExportError, match="can measure a Conv2D layer"):
        Broken().model(kn.trace(chain(8)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"quantization": "float16"}, "None or 'int8'"), ({"threads": 0}, "`threads`")],
)
def test_bad_tables(arguments, message):
    with pytest.raises(ValueError, match=message):
        LatencyTable(**arguments)


# Caches. ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "no latency table of this version"),
        ('{"format": 0}', "no latency table of this version"),
        ({"machine": {"processor": "abacus"}}, "measured elsewhere"),
        ({"entries": {"a": "fast"}}, "is damaged"),
        ({"entries": {"a": -1.0}}, "is damaged"),
        ({"entries": [1.0]}, "is damaged"),
    ],
)
def test_bad_files_are_set_aside(tmp_path, content, message):
    path = tmp_path / "table.json"
    if isinstance(content, dict):
        content = json.dumps({"format": 1, "machine": machine(), "entries": {}} | content)
    path.write_text(content)
    cache = LatencyCache(path)
    with pytest.warns(UserWarning, match=message):
        assert "a" not in cache
    assert path.with_name("table.json.aside").read_text() == content
    cache["a"] = 1.0
    cache.save()
    assert LatencyCache(path)["a"] == 1.0


def test_unwritable_caches_warn_once(tmp_path):
    (tmp_path / "file").write_text("")
    table = Device(cache=tmp_path / "file" / "table.json")
    with pytest.warns(UserWarning, match="cannot be kept"):
        table.model(kn.trace(chain(8)))
    assert table.model(kn.trace(chain(6))) > 0


def test_concurrent_writers_lose_nothing(tmp_path):
    path = tmp_path / "table.json"

    def write(worker):
        for i in range(20):
            cache = LatencyCache(path)
            cache[f"{worker} {i}"] = 1.0
            cache.save()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    entries = json.loads(path.read_text())["entries"]
    assert set(entries) == {f"{worker} {i}" for worker in range(8) for i in range(20)}
    assert {file.name for file in tmp_path.iterdir()} <= {"table.json", "table.json.lock"}


def test_default_file_is_in_the_cache_folder_of_the_user():
    path = default_path()
    assert path.parent.name == "keras_nisp"
    assert path.name.startswith("latency-")
    assert path.suffix == ".json"
    assert " " not in path.name


# Budgets. --------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(range(len(NETS))),
    st.floats(0.05, 0.5),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from(["uniform", "global"]),
)
def test_the_estimate_meets_the_budget(net, amount, block, noise, allocation):
    """Whatever the table says, monotone or not; a block less would not do."""
    model, table = NETS[net](), Device(noise)
    channel_map = kn.trace(model)
    budget = Budget(latency_reduction=amount, latency=table, round_to=block, allocation=allocation)
    solver, scores = Solver(channel_map, budget), kn.Random(0)(channel_map)
    try:
        removed = solver.select(scores).removed
    except kn.BudgetError:
        return
    target = (1 - amount) * table.model(channel_map)
    assert table.model(channel_map, ~removed) <= target
    for group in channel_map.groups:
        width = len(group.units) - np.count_nonzero(removed[group.units])
        assert width == len(group.units) or width % block == 0
    steps = Steps.joined(solver.group_steps(scores, block)).by_priority()
    taken = np.cumsum([0, *steps.sizes]).tolist().index(int(removed.sum()))
    fewer = channel_map.seen(steps.of(np.arange(len(steps.sizes)) < taken - 1))
    assert table.model(channel_map, ~fewer) > target


def test_a_staircase_is_used():
    """17 of 32 channels cost what 20 cost: the budget takes what is free."""
    table = Device()
    plan = kn.plan_pruning(
        chain(32, 32), kn.Random(), latency_reduction=0.4, latency=table, round_to=4
    )
    assert all(width % 4 == 0 for layer, width in widths(plan).items() if layer != "head")
    assert "latency_reduction=0.4 (table: " in plan.budget_text
    assert "ms, float32, 1 thread)" in plan.budget_text


@pytest.mark.parametrize("target", MULTIPLES)
def test_targets_round_to_nearest_with_the_budget_met(target):
    block, totals = MULTIPLES[target], (64, 48, 100, 32, 7)
    for amount in (0.3, 0.5, 0.7):
        plan = kn.plan_pruning(chain(*totals), kn.Random(), flops_reduction=amount, target=target)
        kept = [widths(plan)[f"conv{i}"] for i in range(len(totals))]
        assert plan.flops_reduction >= amount
        assert f"target={target}, round_to={block}" in plan.budget_text
        assert kept[-1] == 7  # narrower than a block
        assert all(w == t or w % block == 0 for w, t in zip(kept, totals, strict=True))
        # There is a common share of which each width is the nearest that may be had.
        low, high = 0.0, 1.0
        for width, total in zip(kept, totals, strict=True):
            possible = [total, *range(block, total, block)]
            between_ = [(width + w) / 2 / total for w in possible if w != width]
            middle = width / total
            low = max([low, *(x for x in between_ if x < middle)])
            high = min([high, *(x for x in between_ if x > middle)])
        assert low <= high + 1e-12


def test_groups_narrower_than_a_block_say_so():
    plan = kn.plan_pruning(chain(64, 12), kn.Random(), ratio=0.5, target="x86")
    assert widths(plan) == {"conv0": 32, "conv1": 12, "head": 2}
    assert "the least width" in plan.explain("conv1")


@pytest.mark.parametrize(("stairs", "block"), [(1, 8), (8, 8), (16, 16), (32, 32), (64, 64)])
def test_latency_budgets_take_the_block_that_is_measured(stairs, block):
    table = Device(stairs=stairs)
    budget = Budget(latency_reduction=0.5, latency=table)
    assert table.block == budget.multiples[0] == block
    assert budget.multiples[-1] == 8
    assert Budget(latency_reduction=0.5, latency=table, round_to=1).multiples == (1,)
    assert Budget(latency_reduction=0.5, latency=table, target="gpu").multiples == (8,)
    assert budget.with_amount(0.2).latency is table
    assert Budget(ratio=0.5).multiples == (1,)


def test_a_finer_block_where_the_measured_one_cannot_do():
    table, model = Device(stairs=64), chain(128, 48)
    texts = [
        kn.plan_pruning(model, kn.Random(), latency_reduction=share, latency=table).budget_text
        for share in (0.3, 0.6)
    ]
    assert texts[0].endswith("round_to=64")
    assert texts[1].endswith("round_to=32")
    with pytest.raises(kn.BudgetError, match="latency"):
        kn.plan_pruning(model, kn.Random(), latency_reduction=0.6, latency=table, round_to=64)


@pytest.mark.parametrize(
    ("budget", "error", "message"),
    [
        ({"ratio": 0.5, "target": "tpu"}, ValueError, "one of x86, arm, gpu"),
        ({"ratio": 0.5, "target": "x86", "round_to": 8}, ValueError, "not both"),
        ({"ratio": 0.5, "latency": Device()}, ValueError, "`latency_reduction` alone"),
        ({"latency_reduction": 0.5, "latency": "table"}, TypeError, "a LatencyTable"),
        ({"latency_reduction": 1.0}, ValueError, r"\[0, 1\)"),
        ({"latency_reduction": 0.99, "latency": Device()}, kn.BudgetError, "reduction of latency"),
    ],
)
def test_bad_budgets(budget, error, message):
    with pytest.raises(error, match=message):
        kn.plan_pruning(plain(), kn.Random(), **budget)


# Realised budgets. -----------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """Makes measurements say what a test wants: shares that are gone, one after another."""

    def say(*shares):
        shares = iter(shares)
        monkeypatch.setattr(
            latency_budget, "_stopwatch", lambda model, table: lambda *small: next(shares)
        )

    return say


def realise(wanted=0.3, **limits):
    limits = {"latency": Device(), "round_to": 1, **limits}
    budget = Budget(latency_reduction=wanted, **limits)
    return pruned(chain(64, 64), kn.Random(), budget).latency


def test_what_is_met_at_once_is_kept(clock):
    clock(0.29)  # within what measurements differ by
    result = realise()
    assert result.met
    assert result.tries == 1
    assert "wanted -30.0 %" in str(result)
    assert "measured -29.0 % in 1 try" in str(result)


def test_what_is_missing_is_asked_for_on_top(clock):
    clock(0.2, 0.31)
    result = realise()
    assert result.met
    assert result.tries == 2
    clock(0.5)
    first = realise()
    assert result.plan.budget.amount == pytest.approx(1 - (1 - first.estimated) * 0.7 / 0.8)
    assert sum(widths(result.plan).values()) < sum(widths(first.plan).values())


def test_the_best_is_kept_if_the_budget_is_never_met(clock):
    clock(0.1, 0.2, 0.15, 0.12)
    result = realise()
    assert not result.met
    assert result.tries == 4
    assert result.measured == 0.2
    assert "not met, this is the best of them" in str(result)


def test_what_the_table_cannot_give(clock):
    clock(0.01)
    assert realise(0.6, min_channels=32).measured == 0.01  # more cannot be asked for
    with pytest.raises(kn.BudgetError, match="latency"):
        realise(0.999)


def test_scores_are_computed_once(clock):
    calls = []

    def importance(channel_map):
        calls.append(1)
        return np.arange(channel_map.count, dtype=float)

    clock(0.1, 0.2, 0.3)
    kn.prune(
        chain(64, 64), importance, latency_reduction=0.3, latency=Device(), round_to=1, verbose=0
    )
    assert len(calls) == 1


@pytest.mark.parametrize("size", [6, None])
def test_prune_measures_what_it_made(size, capsys):
    model = chain(64, 64, size=size)
    table = LatencyTable(cache=False)
    small = kn.prune(
        model, kn.Random(), latency_reduction=0.2, latency=table, input_shape=(6, 6, 3)
    )
    assert small.count_params() < model.count_params()
    text = capsys.readouterr().out
    assert "latency: wanted -20.0 %" in text
    assert "measured" in text
    assert "verified" in text
