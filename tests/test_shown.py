"""What results say of themselves: in a line, in a notebook, without escape codes."""

import json
import re
from html.parser import HTMLParser

import keras
import numpy as np
import pytest

import keras_nisp as kn

X = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")


@pytest.fixture(scope="module")
def model():
    units = [keras.layers.Dense(8, activation="relu", name=name) for name in ("a", "b")]
    return keras.Sequential([keras.Input((6,)), *units, keras.layers.Dense(3)], name="net")


@pytest.fixture(scope="module")
def results(model, tmp_path_factory):
    merging = kn.plan_merging(model, ratio=0.5)
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    path = tmp_path_factory.mktemp("files") / "net.tflite"
    return {
        "Plan": plan,
        "Profile": kn.profile(model),
        "Deviation": kn.deviation(model, merging),
        "Forecast": merging.check(steps=100, learning_rate=0.1),
        "Verification": kn.verify(kn.rebuild(model, plan), model, plan),
        "Sensitivity": kn.sensitivity(model, kn.Magnitude(), calibration=X),
        "Benchmark": kn.benchmark(model, rounds=2, repeats=2),
        "TFLiteExport": kn.export_tflite(model, path, verbose=0),
    }


class Text(HTMLParser):
    """The words of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.words, self.frames = [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.frames += [value for name, value in attributes if name == "srcdoc"]

    def handle_data(self, data):
        self.words += data


def test_results_are_one_short_line(results):
    for name, result in results.items():
        line = repr(result)
        assert line.startswith(f"<{name}"), line
        assert "\n" not in line
        assert len(line) < 130
        assert "\x1b" not in str(result)
        assert str(result) != line


def test_notebooks_show_results_in_full(results):
    for name in set(results) - {"Plan"}:
        page = Text(results[name]._repr_html_())
        assert page.tags == ["pre"]
        assert page.words == str(results[name])


def test_notebooks_show_a_plan_as_its_report(results, tmp_path):
    (page,) = Text(results["Plan"]._repr_html_()).frames
    results["Plan"].report(tmp_path / "report.html")
    assert page == (tmp_path / "report.html").read_text()


def test_a_plan_says_what_it_costs(results):
    assert re.fullmatch(
        r"<Plan for 'net': parameters 155 -> \d+ \(-\d+\.\d %\), FLOPs 136 -> \d+ \(-\d+\.\d %\)>",
        repr(results["Plan"]),
    )
    json.dumps(results["Plan"].to_dict())  # plain data all the same
