"""The papers' networks: published sizes, reductions that the papers state, and surgery on them."""

import functools
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from marked import first_is_fast, slow
from nets import example_inputs, randomise

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import models

import keras_nisp as kn
from keras_nisp.centripetal.merging import level
from keras_nisp.keras_graph.calling import without_memory

EXACT = 1e-5


def bottlenecks():
    """A ResNet-50 with one block in each stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules["models.resnet"].BLOCKS, 50, (1, 1, 1, 1))
        return models.resnet(50, input_shape=(33, 33, 3), classes=10)


SMALL = {
    "lenet5": lambda: models.lenet5((16, 16, 1)),
    "cifar_quick": lambda: models.cifar_quick((18, 18, 3)),
    "vgg": lambda: models.vgg(((6, 1), (8, 2)), (12, 10), (9, 9, 3)),
    "vgg16": lambda: models.vgg16(scale=1 / 16),
    "projection": lambda: models.cifar_resnet(8, "projection", (15, 17, 3), widths=(6, 12, 23)),
    "padded": lambda: models.cifar_resnet(8, "padded", (15, 17, 3), widths=(6, 12, 23)),
    "densenet10": lambda: models.densenet(6, 2, (16, 16, 3)),
    "mobilenet": lambda: models.mobilenet(0.25, (65, 65, 3), 10),
    "inception": lambda: models.inception((16, 16, 3), modules=2),
    "squeeze_excite": lambda: models.squeeze_excite((16, 16, 3)),
}
LARGE = {  # too wide for k-means in a test
    "alexnet": lambda: models.alexnet(input_shape=(67, 67, 3), classes=10),
    "googlenet": lambda: models.googlenet((64, 64, 3), 10),
    "resnet18": lambda: models.resnet(18, input_shape=(33, 33, 3), classes=10),
    "bottlenecks": bottlenecks,
}
ALL = {**SMALL, **LARGE}
ALIKE = ("googlenet", "resnet18")  # to "inception" and "projection", with more of the same


def networks(*left_to_slow):
    return [slow(name) if name in left_to_slow else name for name in ALL]


def outputs(model, samples):
    return np.asarray(model(samples, training=False))


# Sizes -----------------------------------------------------------------------------------

# Trained parameters (integers are exact) and multiply-adds, as far as they are published; how far
# rounding of the published figures lets them be apart.
PUBLISHED = {
    # Caffe's LeNet and cifar10_quick.
    "lenet5": (models.lenet5, 431_080, 2.293e6, 1e-3),
    "cifar_quick": (models.cifar_quick, 145_578, None, 0),
    # Caffe's AlexNet (724 M in its published profiles), and the same in one group.
    "alexnet": (models.alexnet, 60_965_224, 724e6, 1e-3),
    "alexnet, one group": (lambda: models.alexnet(grouped=False), 62_378_344, 1135e6, 1e-3),
    # Caffe's GoogLeNet without auxiliary classifiers; multiply-adds as torchvision rounds them.
    "googlenet": (models.googlenet, 6_998_552, 1.58e9, 5e-3),
    # Li et al., ICLR 2017: 1.5e7 and 3.13e8 for VGG-16, 0.85 M and 1.25e8 for ResNet-56, 1.72 M
    # and 2.53e8 for ResNet-110. The other depths: He et al., CVPR 2016, table 6.
    "vgg16": (models.vgg16, 1.5e7, 313e6, 2e-3),
    "resnet20": (lambda: models.cifar_resnet(20, "padded"), 0.27e6, None, 0.02),
    "resnet32": (lambda: models.cifar_resnet(32, "padded"), 0.46e6, None, 0.02),
    "resnet44": (lambda: models.cifar_resnet(44, "padded"), 0.66e6, None, 0.01),
    "resnet56": (lambda: models.cifar_resnet(56, "padded"), 0.85e6, 125e6, 5e-3),
    "resnet110": (lambda: models.cifar_resnet(110, "padded"), 1.72e6, 253e6, 5e-3),
    # C-SGD's count, with a projection of the size that is built.
    "resnet56, projection": (lambda: models.cifar_resnet(56), 0.855e6, 125.8e6, 2e-3),
    # torchvision, and He et al. for the stride on the 1x1 (3.8e9 there, 3.86e9 in later papers).
    "resnet18": (lambda: models.resnet(18), 11_689_512, 1.81e9, 5e-3),
    "resnet34": (lambda: models.resnet(34), 21_797_672, 3.66e9, 5e-3),
    "resnet50": (models.resnet, 25_557_032, 4.09e9, 5e-3),
    "resnet50, stride on 1x1": (lambda: models.resnet(50, "1x1"), 25_557_032, 3.86e9, 5e-3),
    # Huang et al., CVPR 2017.
    "densenet40": (models.densenet, 1.0e6, None, 0.03),
    # Howard et al. (4.2 M, 569 M) with the digit more that TensorFlow's release states.
    "mobilenet": (models.mobilenet, 4.23e6, 569e6, 1e-3),
}


@pytest.fixture(scope="module")
def published():
    """Networks by name, each built once, without values for their weights: nobody reads them."""

    @functools.cache
    def build(name):
        with without_memory():
            return PUBLISHED[name][0]()

    return build


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name, published):
    _, parameters, flops, tolerance = PUBLISHED[name]
    model = published(name)
    trained = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    if isinstance(parameters, int):
        assert trained == parameters
    else:
        assert trained == pytest.approx(parameters, rel=tolerance)
    total = kn.profile(model).total
    assert total.parameters == model.count_params()  # running statistics are in these
    if flops:
        assert total.flops == pytest.approx(flops, rel=tolerance)
    assert (model.input.name, model.layers[-1].name) == ("image", "logits")


CONVS = tuple(f"conv{i}" for i in range(1, 6))
# Per cent of the FLOPs that NISP's table 1 states. It removes a share of every layer, or half
# of some: of AlexNet all convolutions (A), all but conv5 (B), all but conv4 and conv5 (C); of
# GoogLeNet most likely all convolutions but the reductions of its modules.
NISP_REDUCTIONS = {
    "alexnet-a": ("alexnet", {"ratios": dict.fromkeys(CONVS, 0.5)}, 67.85),
    "alexnet-b": ("alexnet", {"ratios": dict.fromkeys(CONVS[:4], 0.5)}, 62.69),
    "alexnet-c": ("alexnet", {"ratios": dict.fromkeys(CONVS[:3], 0.5)}, 53.70),
    "googlenet": ("googlenet", {"ratio": 0.5, "exclude": "inception*_reduce"}, 58.34),
    "resnet56": ("resnet56", {"ratio": 0.25}, 43.61),
    "resnet110": ("resnet110", {"ratio": 0.25}, 43.78),
    "resnet34-a": ("resnet34", {"ratio": 0.15}, 27.32),
    "resnet34-b": ("resnet34", {"ratio": 0.25}, 43.76),
    "resnet50-a": ("resnet50, stride on 1x1", {"ratio": 0.15}, 27.31),
    "resnet50-b": ("resnet50, stride on 1x1", {"ratio": 0.25}, 44.01),
}


@pytest.mark.parametrize("name", NISP_REDUCTIONS)
def test_reductions_of_the_nisp_paper(name, published):
    network, budget, percent = NISP_REDUCTIONS[name]
    plan = kn.plan_pruning(published(network), kn.Random(), **budget)
    assert 100 * plan.flops_reduction == pytest.approx(percent, abs=1.0)


@pytest.mark.parametrize("shortcut", ["projection", "padded"])
@pytest.mark.parametrize(
    ("depth", "percent"),
    [(56, 60.85), slow(110, 60.90), slow(164, 60.91)],
)
def test_five_eighths(depth, percent, shortcut):
    """C-SGD's headline: every layer of a CIFAR ResNet at 5/8."""
    model = models.cifar_resnet(depth, shortcut)
    plan = kn.plan_merging(model, ratio=3 / 8, clustering="even")
    assert 100 * plan.flops_reduction == pytest.approx(percent, abs=0.01)


# Surgery ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", networks(*ALIKE, "mobilenet"))
def test_pruned_against_the_oracle(name):
    model = randomise(ALL[name]())
    plan = kn.plan_pruning(model, kn.NISP(example_inputs(model, 64)), ratio=0.4)
    assert all(row.removed for row in plan.creators[:-1])  # every layer but the classifier
    small = kn.rebuild(model, plan)
    result = kn.verify(small, model, plan, tolerance=EXACT)
    assert result.ok, result
    assert kn.profile(small).total == plan.after


@pytest.mark.parametrize("name", networks(*ALIKE, "bottlenecks", "alexnet", "inception"))
def test_merged_and_unmerged_agree(name):
    model = randomise(ALL[name]())
    clustering = "kmeans" if name in SMALL else "even"
    plan = kn.plan_merging(model, ratio=3 / 8, clustering=clustering)
    assert all(row.clusters for row in plan.creators[:-1])
    level(model, plan)
    small = kn.rebuild(model, plan, verbose=0)
    x = example_inputs(model, 32)
    before, after = outputs(model, x), outputs(small, x)
    np.testing.assert_allclose(before, after, atol=EXACT * np.abs(before).max())
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
    assert row["difference"] < EXACT
    assert row["same_prediction"] == 1


# Shortcuts without parameters --------------------------------------------------------------


@pytest.fixture
def padded():
    return randomise(SMALL["padded"]())


@pytest.mark.parametrize("importance", ["NISP", "BNScale"])
def test_every_stage_of_a_padded_stream_loses_its_share(importance):
    """The first channels of the stream are in all stages, the last in one: nothing holds them."""
    model = randomise(models.cifar_resnet(8, "padded", (16, 16, 3)))
    samples = example_inputs(model, 64)
    importance = {"NISP": kn.NISP(samples), "BNScale": kn.BNScale()}[importance]
    plan = kn.plan_pruning(model, importance, ratio=0.25)
    kept = {row.layer: row.kept for row in plan.creators}
    writers = ("stem_conv", *(f"stage{i}_block1_2_conv" for i in (1, 2, 3)))
    assert [kept[writer] for writer in writers] == [12, 12, 24, 48]
    assert "Coupled with" in plan.explain("stem_conv")
    assert "Kept" not in plan.explain("stem_conv")


def test_padded_read_from_a_file(padded, tmp_path):
    """Where Keras puts lists for tuples."""
    padded.save(tmp_path / "padded.keras")
    loaded = keras.saving.load_model(tmp_path / "padded.keras")
    plans = [kn.plan_pruning(net, kn.BNScale(), ratio=0.5) for net in (padded, loaded)]
    assert plans[0].creators == plans[1].creators
    small = kn.rebuild(loaded, plans[0])
    assert kn.verify(small, loaded, plans[0], tolerance=EXACT).ok
    small.save(tmp_path / "small.keras")
    x = example_inputs(padded)
    again = keras.saving.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(outputs(small, x), outputs(again, x))


@pytest.mark.parametrize("factor", first_is_fast(1.6, 2.0))
def test_padded_widened_and_back(padded, factor):
    wide = kn.widen(padded, factor, init="preserve")
    assert wide.count_params() > 2 * padded.count_params()
    small = kn.rebuild(wide, kn.plan_merging(wide, widths=padded), verbose=0)
    assert small.count_params() == padded.count_params()
    x = example_inputs(padded)
    expected = outputs(padded, x)
    for net in (wide, small):
        np.testing.assert_allclose(outputs(net, x), expected, atol=EXACT * np.abs(expected).max())


def pytorch_arrays(depth):
    """Random arrays under the names and in the layout of the trained weights."""
    rng, arrays = np.random.default_rng(0), {}

    def conv_bn(prefix, number, before, after):
        arrays[f"{prefix}conv{number}.weight"] = rng.normal(0, 0.1, (after, before, 3, 3))
        for name in ("weight", "running_var"):
            arrays[f"{prefix}bn{number}.{name}"] = rng.uniform(0.5, 1.5, after)
        for name in ("bias", "running_mean"):
            arrays[f"{prefix}bn{number}.{name}"] = rng.normal(0, 0.3, after)

    conv_bn("", 1, 3, 16)
    before = 16
    for stage, width in enumerate((16, 32, 64), 1):
        for block in range(depth // 6):
            conv_bn(f"layer{stage}.{block}.", 1, before, width)
            conv_bn(f"layer{stage}.{block}.", 2, width, width)
            before = width
    arrays["linear.weight"] = rng.normal(0, 0.1, (10, 64))
    arrays["linear.bias"] = rng.normal(size=10)
    return {key: array.astype("float32") for key, array in arrays.items()}


def by_hand(arrays, x):
    """What a network with these arrays computes, in TensorFlow's own functions."""

    def conv_bn(x, prefix, number, strides=1):
        kernel = arrays[f"{prefix}conv{number}.weight"].transpose(2, 3, 1, 0)
        x = tf.nn.conv2d(x, kernel, strides, [[0, 0], [1, 1], [1, 1], [0, 0]])
        names = ("running_mean", "running_var", "bias", "weight")
        statistics = (arrays[f"{prefix}bn{number}.{name}"] for name in names)
        return tf.nn.batch_normalization(x, *statistics, variance_epsilon=1e-5)

    x = tf.nn.relu(conv_bn(x, "", 1))
    for prefix in dict.fromkeys(key.rsplit(".", 2)[0] + "." for key in arrays if "layer" in key):
        strides = 2 if prefix in ("layer2.0.", "layer3.0.") else 1
        y = tf.nn.relu(conv_bn(x, prefix, 1, strides))
        y = conv_bn(y, prefix, 2)
        zeros = (y.shape[-1] - x.shape[-1]) // 2
        x = tf.pad(x[:, ::strides, ::strides], [[0, 0]] * 3 + [[zeros, zeros]])
        x = tf.nn.relu(x + y)
    return tf.reduce_mean(x, (1, 2)) @ arrays["linear.weight"].T + arrays["linear.bias"]


@pytest.mark.parametrize("shortcut", ["padded", "projection"])
def test_trained_weights_are_converted(shortcut, tmp_path):
    arrays = pytorch_arrays(14)
    np.savez(tmp_path / "resnet14.npz", **arrays)
    model = models.load_cifar_resnet(tmp_path / "resnet14.npz", shortcut=shortcut)
    assert model.name == "resnet14"
    x = example_inputs(model)
    expected = by_hand(arrays, x)
    np.testing.assert_allclose(
        outputs(model, x), expected, atol=EXACT * np.abs(expected).max(), rtol=0
    )


# Wrong arguments ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: models.cifar_resnet(18), r"depth of 6n \+ 2.*Received: 18"),
        (lambda: models.cifar_resnet(2), r"depth of 6n \+ 2.*Received: 2"),
        (lambda: models.cifar_resnet(20, "identity"), r"'projection', 'padded'.*'identity'"),
        (lambda: models.resnet(101), r"depth of \(18, 34, 50\).*Received: 101"),
        (lambda: models.resnet(50, "7x7"), r"'3x3' or '1x1'.*'7x7'"),
    ],
)
def test_wrong_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
