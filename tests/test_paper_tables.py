"""The structures of the papers: which of their rows our plans agree with."""

import fnmatch
import itertools
from types import SimpleNamespace

import keras
import paper_tables
import pytest

import keras_nisp as kn

QUICK = ["ResNet-56 *", "DenseNet-40 *", "AlexNet A"]
SLOW = [
    "AlexNet [B-D]",
    "GoogLeNet *",
    "ResNet-110 *",
    "ResNet-164 *",
    "ResNet-34 *",
    "ResNet-50 *",
]


@pytest.mark.parametrize(
    "pattern", QUICK + [pytest.param(pattern, marks=pytest.mark.slow) for pattern in SLOW]
)
def test_rows(pattern):
    """Those without an explanation are within half a point; those with one do need it."""
    rows = paper_tables.chosen([pattern])
    for row, record in zip(rows, paper_tables.measure(rows), strict=True):
        assert record["within"] == (row.title not in paper_tables.WHY), record
        assert record["within"] == (not record["why"])


def test_every_row_is_tested_and_no_explanation_is_stray():
    titles = [row.title for row in paper_tables.ROWS]
    assert len(set(titles)) == len(titles)
    assert set(paper_tables.WHY) <= set(titles)
    for title in titles:
        assert sum(fnmatch.fnmatch(title, pattern) for pattern in QUICK + SLOW) == 1


def test_the_nearest_reading_counts_and_the_verdict_is_computed(monkeypatch):
    monkeypatch.setitem(paper_tables.WHY, "Net row", "A reason.")
    row = paper_tables.Row("NISP", "Net", "row", "alexnet", {}, flops=50.0, params=30.0)

    def record(**reductions):
        plans = {
            text: SimpleNamespace(flops_reduction=flops, params_reduction=params)
            for text, (flops, params) in reductions.items()
        }
        return paper_tables.record(row, plans)

    fits = record(far=(0.6, 0.3), near=(0.503, 0.296))
    assert (fits["interpretation"], fits["within"], fits["why"]) == ("near", True, "")
    assert fits["differences"] == {"flops": 0.3, "params": -0.4}
    assert [other["interpretation"] for other in fits["others"]] == ["far"]
    misses = record(parameters=(0.5, 0.306))
    assert (misses["within"], misses["why"]) == (False, "A reason.")


def test_what_is_not_published_is_not_compared():
    row = paper_tables.Row("C-SGD", "Net", "row", "alexnet", {}, flops=50.0)
    plan = SimpleNamespace(flops_reduction=0.5, params_reduction=0.9)
    assert paper_tables.record(row, {"": plan})["within"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("title", "kinds", "distance"),
    [
        ("AlexNet D", ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"], 1),
        (
            "GoogLeNet 50 %",
            ["conv1_7x7", "conv2_3x3_reduce", "conv2_3x3"]
            + [f"inception*_{kind}" for kind in ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5")]
            + ["inception*_pool_proj"],
            5,
        ),
    ],
)
def test_no_set_of_halved_layers_explains(title, kinds, distance):
    """As `WHY` says of two rows."""
    (row,) = paper_tables.chosen([title])
    model = paper_tables.MODELS[row.model]()
    for count in range(1, len(kinds) + 1):
        for some in itertools.combinations(kinds, count):
            plan = kn.plan_pruning(model, kn.Random(0), ratios=dict.fromkeys(some, 0.5))
            apart = paper_tables.record(row, {"": plan})["differences"].values()
            assert max(map(abs, apart)) > distance, some
    keras.backend.clear_session()
