"""The rebuilt model against the original without the removed channels, in numbers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src import applications
from marked import first_is_fast, slow
from nets import NETS, example_inputs, random_plan, randomise, saturating

import keras_nisp as kn
from keras_nisp.keras_graph.rounding import amplification

EXACT = 1e-5


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
@pytest.mark.parametrize("seed", first_is_fast(*range(4)))
def test_random_plans(net, seed):
    model = randomise(net(), seed)
    plan = random_plan(model, seed, low=0.1, high=0.9)
    small = kn.rebuild(model, plan)
    result = kn.verify(small, model, plan, tolerance=EXACT)
    assert result.ok, result
    assert small.count_params() == plan.after.parameters < plan.before.parameters
    assert model.count_params() == plan.before.parameters
    assert kn.profile(small).total == plan.after
    assert bool(plan.inexact) == (net.__name__ == "layer_norm")


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_nothing_removed_is_bit_equal(net):
    model = randomise(net())
    small = kn.rebuild(model, kn.plan_pruning(model, kn.Random(), ratio=0.0))
    for old, new in zip(model.weights, small.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    x = example_inputs(model)
    for old, new in zip(*map(keras.tree.flatten, (model(x), small(x))), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_oracle_notices_wrong_channels(net):
    """A model rebuilt from a plan with one index shifted must not pass for the plan."""
    model = randomise(net())
    plan = random_plan(model)
    channel_map = kn.trace(model)
    removed = plan.removed_units(channel_map)
    group = max(channel_map.groups, key=lambda group: len(group.units))
    shifted = removed.copy()
    shifted[group.units] = np.roll(removed[group.units], 1)
    assert (shifted != removed).any()
    from keras_nisp.channels.unit_map import UnitMap
    from keras_nisp.surgery.rebuilding import rebuild_traced

    wrong = rebuild_traced(channel_map, UnitMap.removing(shifted), optimizer_state=False)
    result = kn.verify(wrong, model, plan)
    assert result.relative > 1e-2
    with pytest.raises(kn.VerificationError, match="wrong"):
        result.check()


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_removed_channels_do_not_matter_in_the_oracle(net):
    """Independent of the bindings: noise on a removed channel must not reach the output."""
    model = randomise(net())
    plan = random_plan(model)
    small = kn.rebuild(model, plan)
    for row in plan.creators:
        *parents, name = row.layer.split("/")
        holder = model
        for parent in parents:
            holder = holder.get_layer(parent)
        layer = holder.get_layer(name)
        if getattr(layer, "bias", None) is not None and row.removed:
            bias = layer.bias.numpy().copy()
            bias[list(row.removed)] += 100.0
            layer.bias.assign(bias)
    assert kn.verify(small, model, plan).relative < 1e-3


def test_networks_that_amplify_rounding_get_their_tolerance():
    calm, chaotic = saturating(0.1), saturating(1.0)
    x = [tf.constant(example_inputs(calm))]
    assert amplification(calm, x) < 1e-5
    assert amplification(chaotic, x) > 1e-3
    plan = random_plan(chaotic, low=0.1, high=0.2)
    small = kn.rebuild(chaotic, plan)
    for weight in small.weights:  # as if every kernel had been rounded otherwise
        weight.assign(weight * (1 + 1e-7))
    assert not kn.verify(small, chaotic, plan, tolerance=1e-4).ok
    assert kn.verify(small, chaotic, plan).ok
    # However chaotic, wrong channels are noticed.
    wrong = _shifted(chaotic, plan)
    assert not kn.verify(wrong, chaotic, plan).ok


def _shifted(model, plan):
    """The model of which one layer lost its neighbours' channels."""
    from keras_nisp.channels.unit_map import UnitMap
    from keras_nisp.surgery.rebuilding import rebuild_traced

    channel_map = kn.trace(model)
    removed, units = plan.removed_units(channel_map), channel_map.creators[0].units
    removed[units] = np.roll(removed[units], 1)
    return rebuild_traced(channel_map, UnitMap.removing(removed), optimizer_state=False)


def test_rebuilding_twice_prunes_further():
    model = randomise(NETS[1]())
    small = kn.prune(model, kn.Magnitude(), ratio=0.3, verbose=0)
    smaller = kn.prune(small, kn.Magnitude(), ratio=0.3, verbose=0)
    assert smaller.count_params() < small.count_params() < model.count_params()


# With fewer blocks than those that have names; benchmarks/zoo.py has the whole ones.
APPLICATIONS = {
    "MobileNetV2": keras.applications.MobileNetV2,
    "MobileNetV3Small": keras.applications.MobileNetV3Small,
    "ResNetV2": lambda **settings: applications.resnet.ResNet(
        lambda x: applications.resnet.stack_residual_blocks_v2(x, 16, 2, name="stack"),
        preact=True,
        use_bias=True,
        **settings,
    ),
    "EfficientNet": lambda **settings: applications.efficientnet.EfficientNet(
        1.0, 0.3, 65, **settings
    ),
    "DenseNet": lambda **settings: applications.densenet.DenseNet([2, 2, 2, 2], **settings),
    "NASNet": lambda **settings: applications.nasnet.NASNet(
        penultimate_filters=96, num_blocks=1, stem_block_filters=8, default_size=65, **settings
    ),
    "ConvNeXt": lambda **settings: applications.convnext.ConvNeXt(
        [1, 1, 2, 1], [16, 32, 48, 64], **settings
    ),
}
LEFT_TO_SLOW = ("NASNet", "MobileNetV3Small", "EfficientNet")


@pytest.mark.parametrize(
    "name",
    [slow(name) if name in LEFT_TO_SLOW else name for name in APPLICATIONS],
)
def test_applications(name):
    """A fast part of benchmarks/zoo.py."""
    settings = {"input_shape": (65, 65, 3), "classes": 10, "classifier_activation": None}
    model = APPLICATIONS[name](weights=None, **settings)
    randomise(model)
    plan = random_plan(model)
    result = kn.verify(kn.rebuild(model, plan), model, plan, tolerance=EXACT)
    assert result.ok, result
    assert bool(plan.inexact) == name.startswith("ConvNeXt")
