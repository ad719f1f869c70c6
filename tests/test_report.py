"""Plans as pages: what stands on them, and how they are written."""

import dataclasses
import os
import re
from html import unescape
from html.parser import HTMLParser

import keras
import numpy as np
import pytest
from keras import layers
from nets import NETS, example_inputs, layer_norm, nested, plain, random_plan, randomise, residual

import keras_nisp as kn
from keras_nisp.plans.recipe import EarlierRecipe
from keras_nisp.plans.report import render

VOID = {"meta", "input", "wbr"}


class Page(HTMLParser):
    """The text, elements and figures of a page; fails if elements are not closed in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.pieces = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join("".join(self.pieces).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag not in ("wbr", "b", "i", "code"):
            self.pieces.append(" ")

    def handle_data(self, data):
        if "style" not in self.open:
            self.pieces.append(data)

    def figures(self):
        """How many channels the bars of each figure say stay and go."""
        counts = []
        for tag, attrs in self.elements:
            if tag == "figure":
                counts.append([0, 0])
            if tag == "svg":
                inside = "Group" in attrs["aria-label"]
            if tag == "path" and inside and attrs["class"] in ("kept", "gone"):
                heights = map(int, re.findall(r"v-(\d+)", attrs["d"]))
                counts[-1][attrs["class"] == "gone"] += sum(heights)
        return counts


def page(plan, **kwargs):
    return Page(render(plan, **kwargs))


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_page_says_what_the_plan_says(net):
    plan = random_plan(net())
    found = page(plan)
    assert plan.model in found.text
    assert f"{plan.before.parameters:,} → {plan.after.parameters:,}" in found.text
    assert f"{plan.before.flops:,} → {plan.after.flops:,}" in found.text
    for row in plan.layers:
        assert re.search(
            rf"{re.escape(row.layer)} {row.kind} {row.channels[0]:,} {row.channels[1]:,}\b",
            found.text,
        ), row.layer
    assert found.figures() == [[g.units - g.removed, g.removed] for g in plan.groups]
    assert plan.exactness() in found.text


def test_headline():
    plan = random_plan(residual())
    assert f"\N{MINUS SIGN}{100 * plan.flops_reduction:.1f} %" in page(plan).text
    removed, units = (sum(getattr(g, w) for g in plan.groups) for w in ("removed", "units"))
    assert f"removes {removed} of {units} channels, in 3 of 3 coupled groups" in page(plan).text
    titles = [attrs.get("title") for _, attrs in page(plan).elements]
    assert f"{plan.after.memory:,} bytes" in titles


def test_page_needs_nothing_else():
    html = render(random_plan(residual()))
    assert not re.search(r"https?:|src=|@import|url\(|<script|<link", html)
    anchors = {attrs["href"] for tag, attrs in Page(html).elements if tag == "a"}
    ids = {f"#{attrs['id']}" for _, attrs in Page(html).elements if "id" in attrs}
    assert anchors <= ids


def test_hostile_names_are_escaped():
    plan = random_plan(plain())
    name = """<script>alert('1')</script>_"&amp;"""

    def renamed(row):
        return dataclasses.replace(row, layer=name) if row.layer == "a" else row

    group = dataclasses.replace(plan.groups[0], creators=(name,), followers=(name,))
    plan = dataclasses.replace(
        plan,
        model=name,
        recipe=EarlierRecipe(name, name),
        inexact=(name,) * 9,
        creators=tuple(map(renamed, plan.creators)),
        layers=tuple(map(renamed, plan.layers)),
        groups=(group, *plan.groups[1:]),
    )
    html = render(plan, command=name)
    assert "<script" not in html
    assert name in Page(html).text
    assert all("alert" not in tag + "".join(attrs) for tag, attrs in Page(html).elements)


def test_scores_and_threshold():
    """The line lies between what goes and what stays."""

    def index(channel_map):
        scores = np.full(channel_map.count, np.nan)
        scores[channel_map.groups[0].units] = np.arange(len(channel_map.groups[0].units))
        return scores

    plan = kn.plan_pruning(plain(), index, ratio=0.5)
    assert plan.groups[0].scores == tuple(range(8))
    assert plan.groups[0].removed_units == (0, 1, 2, 3)
    found = page(plan)
    assert "4 of 8 go, below 3.5" in found.text
    assert "all 12 stay; 12 without a score" in found.text
    assert found.figures()[:2] == [[4, 4], [0, 0]]


def test_channels_that_stay_below_the_threshold():
    """What is excluded stays, whatever its score."""
    plan = random_plan(plain())
    group = plan.groups[0]
    mixed = dataclasses.replace(
        group, scores=tuple(map(float, range(8))), removed_units=(1, 2, 5), removed=3
    )
    found = page(dataclasses.replace(plan, groups=(mixed, *plan.groups[1:])))
    assert "3 of 8 go, up to 5" in found.text
    assert found.figures()[0] == [5, 3]
    same = dataclasses.replace(mixed, scores=(1.0,) * 8)
    found = page(dataclasses.replace(plan, groups=(same, *plan.groups[1:])))
    assert found.figures()[0] == [5, 3]


def damages(plan):
    """Where the area of each figure of damages ends, and how high: shares of its axes."""
    found = []
    for tag, attrs in page(plan).elements:
        if tag == "svg":
            inside = attrs["aria-label"].startswith("Damage, by")
            whole = float(attrs["viewbox"].split()[2])
            found += [(0.0, 0.0)] * inside
        if tag == "path" and inside and attrs["class"] == "gone":
            *_, (x, y) = re.findall(r"L(\S+) ([^\sVL]+)", attrs["d"])
            found[-1] = (float(x) / whole, 1 - float(y) / 100)
    return found


@pytest.mark.parametrize("allocation", ["predicted", "measured"])
def test_damages_by_which_widths_were_chosen(allocation, tmp_path):
    model = randomise(residual())
    data = {"calibration": example_inputs(model, 64), "allocation": allocation}
    plan = kn.plan_pruning(model, kn.Magnitude(), flops_reduction=0.4, **data)
    plan.save(tmp_path / "plan.json")
    assert kn.Plan.load(tmp_path / "plan.json") == plan
    costs, total = np.array(plan.rounds).T
    assert (costs[0], total[0]) == (1, 0)
    assert (np.diff(costs) < 0).all()
    assert costs[-1] == pytest.approx(plan.after.flops / plan.before.flops, rel=1e-2)
    ends = {}
    for index, group in enumerate(plan.groups):
        widths, values = np.array(group.damages).T
        assert (widths[0], values[0]) == (group.units, 0)
        assert (np.diff(widths) < 0).all()
        assert widths[-1] <= group.units - group.removed
        ends[index] = values[list(widths).index(group.units - group.removed)]
    assert total[-1] == pytest.approx(sum(ends.values()), rel=0.05, abs=1e-4)
    whole, *each = damages(plan)
    assert whole[0] == pytest.approx(plan.flops_reduction, abs=1e-2)
    assert [gone for gone, _ in each] == [group.removed / group.units for group in plan.groups]
    heights = np.array([height for _, height in each])
    kept = [g.units - g.removed for g in plan.groups]
    taken = [d for n, g in zip(kept, plan.groups, strict=True) for w, d in g.damages if w >= n]
    expected = np.clip([*ends.values()], 0, None) / (1.5 * max(taken))
    np.testing.assert_allclose(heights, expected, atol=0.01)
    assert f"% of the FLOPs go: damage {total[-1]:.3g}" in page(plan).text


def test_plans_without_damages():
    """Other allocations, and files of before, have no curves; damaged ones are refused."""
    assert damages(random_plan(plain())) == []
    model = randomise(plain())
    x = example_inputs(model, 32)
    plan = kn.plan_pruning(model, kn.Magnitude(), flops_reduction=0.4, calibration=x)
    data = plan.to_dict()
    for damage in ([[99, 0.0]], [[8, 0.0], [8, 1.0]], [[7, 0.0]], [[8, float("inf")]]):
        groups = [{**data["groups"][0], "damages": damage}, *data["groups"][1:]]
        with pytest.raises(kn.PlanFileError, match=r"groups.0|JSON"):
            kn.Plan.from_dict({**data, "groups": groups})
    with pytest.raises(kn.PlanFileError, match="rounds"):
        kn.Plan.from_dict({**data, "rounds": [[2.0, 0.0]]})
    del data["rounds"]
    for group in data["groups"]:
        del group["damages"]
    before = kn.Plan.from_dict(data)
    assert damages(before) == []
    assert (before.creators, before.rounds) == (plan.creators, ())


def test_merging_plans():
    plan = kn.plan_merging(plain(), ratio=0.5)
    assert plan.groups[0].scores == plan.groups[0].removed_units == ()
    found = page(plan)
    assert "Merging plan" in found.text
    assert "8 channels in 4 clusters" in found.text
    assert found.figures()[0] == [4, 4]
    assert "kn.plan_merging( model, clustering='kmeans', ratio=0.5, )" in found.text


def test_plans_without_scores():
    data = random_plan(plain()).to_dict()
    for group in data["groups"]:
        del group["scores"], group["removed_units"]
    found = page(kn.Plan.from_dict(data))
    assert "This plan holds no scores" in found.text
    assert found.figures() == []


def test_inexact_plans():
    plan = kn.plan_pruning(layer_norm(), kn.Random(), ratio=0.5)
    assert "Not exact: these layers take statistics" in page(plan).text


def test_channels_that_no_tensor_shows():
    inputs = keras.Input((6, 8))
    x = layers.Dense(8, name="in")(inputs)
    x = layers.MultiHeadAttention(4, 6, name="attention")(x, x)
    model = keras.Model(inputs, layers.Dense(2, name="out")(x))
    found = page(kn.plan_pruning(model, kn.Magnitude(), ratio=0.5))
    assert "attention:heads heads 4 2" in found.text


def called(code, **names):
    """The plan that the code of a page makes."""
    exec(code, names)
    return names["plan"]


def code_of(plan):
    """The code that stands on the page of a plan."""
    found = re.search("<code>(import keras_nisp.*?)</code>", render(plan), re.DOTALL)
    return unescape(found.group(1))


@pytest.mark.parametrize(
    "budget",
    [
        {"flops_reduction": 0.5},
        {"ratio": 0.3, "allocation": "global", "min_channels": 0.25},
        {"params_reduction": 0.4, "round_to": 4},
        {"ratio": 0.5, "target": "arm"},
        {"ratios": {"a": 0.5, "[bc]": 0.25}},
        {"widths": {"a": 3, "head": 3}},
        {"ratio": 0.5, "exclude": ["a", "conv*"][:1]},
    ],
)
@pytest.mark.parametrize(
    "importance",
    [
        kn.Magnitude(p=2),
        kn.NISPMag(propagate_pruned=False),
        kn.Random(np.int64(7)),
        kn.GeometricMedian(),
    ],
    ids=lambda importance: importance.name,
)
def test_the_code_of_a_page_makes_the_plan(importance, budget):
    model = wide_plain()
    plan = kn.plan_pruning(model, importance, **budget)
    assert called(code_of(plan), model=model) == plan
    assert plan.params_reduction > 0
    # So does the budget as an object, and a plan that was read from a file.
    assert kn.plan_pruning(model, importance, budget=plan.budget) == plan
    assert code_of(kn.Plan.from_dict(plan.to_dict())) == code_of(plan)


def test_the_code_names_data_and_their_settings():
    model = wide_plain()
    x = np.random.default_rng(0).normal(size=(40, 12, 12, 3)).astype("float32")
    y = np.eye(3)[np.arange(40) % 3]
    nisp = kn.NISP(x, frl="head", alpha=0.25, max_samples=16, seed=3)
    plan = kn.plan_pruning(model, nisp, ratio=0.5)
    code = code_of(plan)
    settings = "frl='head', alpha=0.25, max_samples=16, seed=3"
    assert f"importance=kn.NISP(calibration=calibration, {settings})," in code
    assert called(code, model=model, calibration=x) == plan
    assert called(code, model=model, calibration=x[::-1] ** 2) != plan
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    for taylor in (kn.Taylor((x, y), loss), kn.Taylor((x, y), "mse", max_samples=8)):
        plan = kn.plan_pruning(model, taylor, ratio=0.5)
        assert called(code_of(plan), model=model, data=(x, y), loss=loss) == plan
    plan = kn.plan_pruning(model, kn.LayerByLayer(x, 0.25), ratio=0.5)
    assert called(code_of(plan), model=model, calibration=x) == plan


class Scaled(kn.Importance):
    """A user's importance, with settings."""

    def __init__(self, scale, power=1.0, table=None):
        self.scale, self.power, self.table = scale, power, table

    def __call__(self, channel_map):
        return (self.scale * np.arange(channel_map.count)) ** self.power


def last_first(channel_map):
    return -np.arange(channel_map.count, dtype=float)


def test_the_code_names_what_is_the_users():
    model = wide_plain()
    plan = kn.plan_pruning(model, Scaled(2.0, power=0.5, table={}), ratio=0.5)
    code = code_of(plan)
    assert "importance=Scaled(table=table, scale=2.0, power=0.5)" in code
    assert called(code, model=model, Scaled=Scaled, table={}) == plan
    plan = kn.plan_pruning(model, last_first, ratio=0.5)
    assert called(code_of(plan), model=model, last_first=last_first) == plan
    plan = kn.plan_pruning(model, lambda channel_map: last_first(channel_map), ratio=0.5)
    assert "importance=importance," in code_of(plan)


def test_the_code_of_a_merging_plan_makes_it():
    model = residual()
    for settings in (
        {"clustering": "even"},
        {"clustering": "kmeans", "owners": "pacesetter", "seed": 2},
        {"clustering": "imbalanced", "exclude": "inner0", "round_to": 4},
    ):
        plan = kn.plan_merging(model, ratio=0.5, **settings)
        assert called(code_of(plan), model=model) == plan
    x = np.random.default_rng(0).normal(size=(16, *model.input_shape[1:])).astype("float32")
    plan = kn.plan_merging(model, ratio=0.5, clustering="activations", calibration=x)
    assert called(code_of(plan), model=model, calibration=x) == plan


def test_the_code_names_layers_by_their_paths():
    model = nested()
    inner = model.get_layer("part").get_layer("conv")
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5, exclude=[inner])
    assert plan.budget.exclude == ("part/conv",)
    assert called(code_of(plan), model=model) == plan


def test_the_code_of_models_that_leave_sizes_open():
    """The size is that of the data, given, or assumed."""
    inputs = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, name="a")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(x))
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5, input_shape=(10, 10, 3))
    assert "input_shape=((10, 10, 3),)" in code_of(plan)
    assert called(code_of(plan), model=model) == plan
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    assert "input_shape" not in code_of(plan)
    assert called(code_of(plan), model=model) == plan
    images = np.random.default_rng(0).normal(size=(8, 9, 9, 3)).astype("float32")
    plan = kn.plan_pruning(model, kn.NISP(images), ratio=0.5)
    assert called(code_of(plan), model=model, calibration=images) == plan


def test_the_code_of_whole_groups():
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, name="first")(inputs)
    x = layers.Flatten()(layers.Conv2D(12, 3, groups=4, name="grouped")(x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5, whole_groups="gr*")
    assert called(code_of(plan), model=model) == plan


class Device(kn.LatencyTable):
    def measure(self, work):
        return 1e-6 * (1 + work.elements)


def test_the_code_of_a_latency_budget():
    model, limits = wide_plain(), {"latency_reduction": 0.3, "latency": Device(threads=2)}
    plan = kn.plan_pruning(model, kn.Magnitude(), round_to=2, **limits)
    assert "table: " in plan.budget_text
    assert "latency=Device(threads=2)," in code_of(plan)
    assert called(code_of(plan), model=model, Device=Device) == plan
    assert kn.Plan.from_dict(plan.to_dict()) == plan
    assert plan.latency.reduction >= 0.3
    merging = kn.plan_merging(model, clustering="even", **limits)
    assert merging.latency.reduction >= 0.3
    assert called(code_of(merging), model=model, Device=Device) == merging


def wide_plain():
    filters = [layers.Conv2D(32, 3, name=name) for name in ("a", "b")]
    head = [layers.GlobalAveragePooling2D(), layers.Dense(3, name="head")]
    return keras.Sequential([keras.Input((12, 12, 3)), *filters, *head])


def test_commands():
    plan = kn.plan_pruning(plain(), kn.NISPMag(), ratios={"a": 0.5}, round_to=2, exclude="c")
    text = page(plan, command="python prune.py").text
    assert "python prune.py" in text
    assert "kn.plan_pruning(" not in text
    text = page(plan).text
    code = text[text.index("plan = kn.plan_pruning(") :].partition(" The plan itself")[0]
    budget = "ratios={'a': 0.5}, round_to=2, exclude=('c',), )"
    assert code == f"plan = kn.plan_pruning( model, importance=kn.NISPMag(), {budget}"


def test_pages_are_the_same_byte_for_byte(tmp_path):
    plan = random_plan(residual())
    plan.report(tmp_path / "a.html", command="é")
    plan.save(tmp_path / "plan.json")
    kn.Plan.load(tmp_path / "plan.json").report(str(tmp_path / "b.html"), command="é")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    random_plan(plain()).report(path)
    before = path.read_bytes()

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        random_plan(residual()).report(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_folders_that_cannot_be_written_to(tmp_path):
    plan = random_plan(plain())
    with pytest.raises(FileNotFoundError, match="make it first"):
        plan.report(tmp_path / "missing" / "report.html")
    with pytest.raises(IsADirectoryError):
        plan.report(tmp_path)


def test_large_networks_stay_readable():
    """A page of 500 layers is small, and folds up what would fill screens."""
    x = inputs = keras.Input((16,))
    for i in range(160):
        x = layers.Dense(16, name=f"dense{i}")(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    html = render(kn.plan_pruning(model, kn.Magnitude(), ratio=0.5))
    assert len(html) < 600_000
    assert "136 more groups" in Page(html).text
    assert len(Page(html).figures()) == 160


def test_the_outcome_stands_at_the_top():
    outcome = {"accuracy": "0.92 -> 0.91", "surgery": "<b>verified</b>"}
    plan = random_plan(plain())
    text = page(plan, outcome=outcome).text
    assert text.index("accuracy 0.92 -> 0.91 surgery <b>verified</b>") < text.index("Along the")
    assert "outcome" not in {attrs.get("class") for _, attrs in page(plan).elements}


def test_all_numbers_are_words():
    """What a tooltip says of each layer is in a table, too."""
    plan = random_plan(plain())
    text = page(plan).text
    for row in plan.layers:
        if row.before.parameters:
            pairs = (row.channels, (row.before.flops, row.after.flops))
            pairs += ((row.before.parameters, row.after.parameters),)
            cells = (f"{a:,}" if a == b else f"{a:,} → {b:,}" for a, b in pairs)
            assert " ".join([row.layer, *cells]) in text


def luminance(colour):
    """Of `#rrggbb`, as WCAG defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_colours_can_be_told_from_the_paper():
    light, dark, *_ = re.findall(r":root \{([^}]*)\}", render(random_plan(plain())))
    schemes = [dict(re.findall(r"--(\w+): (#\w{6})", text)) for text in (light, light + dark)]
    for colours in schemes:
        for name in ("ink", "soft", "kept", "edge", *(f"c{i}" for i in range(6))):
            pair = sorted(luminance(colours[n]) + 0.05 for n in (name, "paper"))
            assert pair[1] / pair[0] >= 3, (name, colours[name], colours["paper"])


def test_layers_that_one_dwarfs_are_seen():
    """Heights are square roots then, and the page says so."""

    def heights(units):
        x = inputs = keras.Input((8,))
        for i in range(10):
            x = layers.Dense(8, name=f"dense{i}")(x)
        x = layers.Dense(4)(layers.Dense(units, name="wide")(x))
        html = render(kn.plan_pruning(keras.Model(inputs, x), kn.Magnitude(), ratio=0.25))
        outline = re.findall(r'<path class="gone" d="M0 \d+(V[^"]*)z"', html)[1]
        tops = [float(step) for step in re.findall(r"V([\d.]+)h1", outline)]
        bottom = float(re.search(r"V([\d.]+)$", outline)[1])
        return "heights are square roots" in html, (bottom - tops[0]) / (bottom - tops[-2])

    assert heights(64) == (False, pytest.approx(1 / 8, abs=0.01))
    assert heights(1024) == (True, pytest.approx((8 / 1024) ** 0.5, abs=0.01))
