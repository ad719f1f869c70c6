"""Plans as pages: what stands on them, and how they are written."""

import dataclasses
import os
import re
from html.parser import HTMLParser

import keras
import numpy as np
import pytest
from keras import layers
from nets import NETS, layer_norm, plain, random_plan, residual

import keras_nisp as kn
from keras_nisp.plans.report import _sketch as sketch_of
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
        importance=name,
        budget=name,
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


def test_merging_plans():
    plan = kn.plan_merging(plain(), ratio=0.5)
    assert plan.groups[0].scores == plan.groups[0].removed_units == ()
    found = page(plan)
    assert "Merging plan" in found.text
    assert "8 channels in 4 clusters" in found.text
    assert found.figures()[0] == [4, 4]
    assert 'kn.plan_merging( model, clustering="kmeans", seed=0, ratio=0.5, )' in found.text


def test_plans_without_scores():
    data = random_plan(plain()).to_dict()
    for group in data["groups"]:
        del group["scores"], group["removed_units"]
    found = page(kn.Plan.from_dict({**data, "version": 2}))
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


@pytest.mark.parametrize(
    "budget",
    [
        {"flops_reduction": 0.5},
        {"ratio": 0.3, "ranking": "global", "min_channels": 0.25},
        {"params_reduction": 0.4, "round_to": 4},
        {"ratio": 0.5, "target": "arm"},
    ],
)
def test_a_sketch_makes_the_plan(budget):
    model = wide_plain()
    plan = kn.plan_pruning(model, kn.Magnitude(), **budget)
    names = {"model": model}
    exec(sketch_of(plan), names)
    assert names["plan"] == plan
    assert plan.params_reduction > 0


def test_a_sketch_of_a_latency_budget_leaves_out_what_the_table_said():
    class Device(kn.LatencyTable):
        def measure(self, work):
            return 1e-6 * (1 + work.elements)

    table = Device(cache=False)
    limits = {"latency_reduction": 0.3, "round_to": 2, "latency": table}
    plan = kn.plan_pruning(wide_plain(), kn.Magnitude(), **limits)
    assert "table:" in plan.budget
    names = {"kn": kn}
    arguments = {}
    code = sketch_of(plan).replace("kn.plan_pruning", "note").replace("import keras_nisp as kn", "")
    exec(code, names | {"model": None, "note": lambda *_, **given: arguments.update(given)})
    assert arguments == {"latency_reduction": 0.3, "round_to": 2}


def wide_plain():
    filters = [layers.Conv2D(32, 3, name=name) for name in ("a", "b")]
    head = [layers.GlobalAveragePooling2D(), layers.Dense(3, name="head")]
    return keras.Sequential([keras.Input((12, 12, 3)), *filters, *head])


def test_command_and_sketch():
    plan = kn.plan_pruning(plain(), kn.NISPMag(), ratios={"a": 0.5}, round_to=2, exclude="c")
    assert "A sketch" not in page(plan, command="python prune.py").text
    text = page(plan).text
    assert "A sketch" in text
    sketch = text[text.index("plan = kn.plan_pruning(") :].partition(" The plan itself")[0]
    expected = "kn.NISPMag(), ratios={'a': 0.5}, round_to=2, exclude=[...], )"
    assert sketch == f"plan = kn.plan_pruning( model, {expected}"
    plan = kn.plan_pruning(plain(), kn.NISPMag(), ratio=0.5, ranking="global")
    assert 'ratio=0.5, ranking="global"' in page(plan).text
    widths = kn.plan_pruning(plain(), kn.Random(), widths=plain())
    assert "NISP(calibration)" not in page(widths).text


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
