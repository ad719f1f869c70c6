"""The networks of the C-SGD paper: structure, and merging in every layer at once."""

import sys
from pathlib import Path

import numpy as np
import pytest
from nets import example_inputs, randomise

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import networks

import keras_nisp as kn
from keras_nisp.merging import level

SMALL = {
    "resnet8": lambda: networks.resnet(8, (16, 16, 3)),
    "densenet10": lambda: networks.densenet(6, 2, (16, 16, 3)),
    "vgg16": lambda: networks.vgg16(scale=1 / 16),
    "mobilenet": lambda: networks.mobilenet((16, 16, 3), alpha=0.25),
    "inception": lambda: networks.inception((16, 16, 3), modules=2),
    "squeeze_excite": lambda: networks.squeeze_excite((16, 16, 3)),
}


@pytest.mark.parametrize("name", SMALL)
def test_merged_and_unmerged_agree(name):
    model = randomise(SMALL[name]())
    plan = kn.plan_merging(model, ratio=3 / 8)
    assert all(row.clusters for row in plan.creators[:-1])  # every layer but the classifier
    level(model, plan)
    small = kn.rebuild(model, plan, verbose=0)
    x = example_inputs(model, 32)
    before, after = (np.asarray(net(x)) for net in (model, small))
    np.testing.assert_allclose(before, after, atol=1e-5 * np.abs(before).max())
    assert (before.argmax(-1) == after.argmax(-1)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["resnet20", "resnet56", "resnet110", "densenet40", "vgg16", "mobilenet", "inception"],
)
def test_full_networks(name):
    from merges import measure

    images = np.random.default_rng(0).normal(size=(64, 32, 32, 3)).astype("float32")
    row = measure(name, images, None)
    assert row["difference"] < 1e-5
    assert row["same_prediction"] == 1


def test_published_sizes():
    """Parameters as the papers state them; FLOPs of ResNet-56 as C-SGD counts (125.8 M)."""
    assert kn.profile(networks.resnet(20)).total.parameters == pytest.approx(0.27e6, rel=0.03)
    resnet56 = kn.profile(networks.resnet(56)).total
    assert resnet56.parameters == pytest.approx(0.86e6, rel=0.02)
    assert resnet56.flops == pytest.approx(125.8e6, rel=0.002)
    assert kn.profile(networks.densenet()).total.parameters == pytest.approx(1.0e6, rel=0.05)


def test_five_eighths_of_resnet56():
    """The paper's headline: 60.85 % of the FLOPs, every layer at 5/8."""
    plan = kn.plan_merging(networks.resnet(56), ratio=3 / 8, clustering="even")
    assert 100 * plan.flops_reduction == pytest.approx(60.85, abs=0.1)
