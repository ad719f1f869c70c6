"""What the trace finds out, and how it deals with what it does not know."""

import gc
import warnings
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from nets import NETS, example_inputs, nested, randomise

import keras_nisp as kn
from keras_nisp.keras_graph import walking


class Doubler(layers.Layer):
    """A custom layer without a rule."""

    def call(self, x):
        return keras.ops.concatenate([x, x], -1)


def around(layer):
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, name="before")(inputs)
    x = layers.Conv2D(5, 1, name="enters")(x)
    x = layer(x)
    x = layers.Conv2D(6, 1, name="after")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return randomise(keras.Model(inputs, layers.Dense(2, name="head")(x)))


def test_layer_without_a_rule_is_a_barrier():
    class WithWeights(layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(shape[-1],))

        def call(self, x):
            return x[..., ::-1] * self.w

    model = around(WithWeights(name="mystery"))
    with pytest.warns(kn.UnknownLayerWarning, match="'mystery'.*register_rule"):
        plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    assert {c.layer: c.kept for c in plan.creators} == {
        "before": 2,
        "enters": 5,
        "after": 3,
        "head": 2,
    }
    assert "enters 'mystery', a layer without a rule" in plan.explain("enters")


@pytest.mark.parametrize(
    "layer",
    [
        lambda: Doubler(name="unknown"),
        lambda: layers.Lambda(lambda x: x[..., ::-1], name="unknown"),
        lambda: layers.Activation(lambda x: keras.ops.flip(x, -1), name="unknown"),
        lambda: layers.Activation("log_softmax"),
        lambda: layers.RandomHue(0.5),
        lambda: keras.Sequential([layers.Permute((3, 1, 2)), layers.Conv2D(3, 1)]),
    ],
)
def test_what_is_not_understood_is_never_pruned_wrongly(layer):
    model = around(layer())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kn.UnknownLayerWarning)
        plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)
        small = kn.rebuild(model, plan)
        assert kn.verify(small, model, plan).ok
        scores = kn.NISP(example_inputs(model))(kn.trace(model))
    assert [c.kept for c in plan.creators if c.layer == "enters"] == [5]
    assert [c.kept for c in plan.creators if c.layer == "before"] == [2]
    assert np.isfinite(scores[plan.removed_units(_quiet_trace(model))]).all()


def _quiet_trace(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kn.UnknownLayerWarning)
        return kn.trace(model)


def test_one_warning_names_all_layers():
    inputs = x = keras.Input((4,))
    for index in range(10):
        x = Doubler(name=f"custom{index}")(layers.Dense(4)(x))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(4)(x)))
    with pytest.warns(kn.UnknownLayerWarning) as caught:
        kn.trace(model)
    assert len(caught) == 1
    assert r"'custom0' (Doubler), 'custom1' (Doubler)" in str(caught[0].message)
    assert "and 2 more layers" in str(caught[0].message)


def test_warning_names_what_would_hold_the_channels_next():
    """A rule for the first of these alone would free nothing."""
    inputs = keras.Input((4,))
    x = Doubler(name="first")(layers.Dense(4)(Doubler(name="of_inputs")(inputs)))
    x = layers.Dropout(0.1)(Doubler(name="second")(x))
    x = layers.Lambda(lambda x: x[..., ::-1], name="third")(x)
    model = keras.Model(inputs, Doubler(name="last")(layers.Dense(2)(x)))
    with pytest.warns(kn.UnknownLayerWarning) as caught:
        kn.trace(model)
    said = str(caught[0].message)
    assert "through 'first' (Doubler), 'second' (Doubler), 'third' (Lambda, a layer that" in said
    assert "of_inputs" not in said


def test_augmentation_of_the_input_needs_no_warning():
    """What has no rule and holds nothing that could be removed is not worth a word."""
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.RandomFlip(), layers.Conv2D(4, 3), layers.Conv2D(2, 3)]
    )
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)  # warnings are errors here
    assert plan.creators[0].kept == 2


def test_subclass_with_its_own_call_has_no_rule():
    class Reversing(layers.ReLU):
        def call(self, x):
            return super().call(x)[..., ::-1]

    class Renamed(layers.ReLU):
        pass

    with pytest.warns(kn.UnknownLayerWarning):
        assert kn.plan_pruning(around(Reversing()), kn.Random(), ratio=0.5)
    assert kn.plan_pruning(around(Renamed()), kn.Random(), ratio=0.5).creators[1].kept == 3


def test_weight_that_the_rule_does_not_know_holds_channels():
    model = around(layers.ReLU())
    layer = model.get_layer("enters")
    layer._tracker.unlock()
    layer.gate = layer.add_weight(shape=(2,), name="gate")
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)
    assert plan.creators[1].kept == 5
    assert "no rule says" in plan.explain("enters")


def test_coupling_goes_through_nested_and_shared_models():
    channel_map = kn.trace(nested())
    layers_of = [
        {channel_map.creators[i].layer for i in group.creators} for group in channel_map.groups
    ]
    assert {"a", "b", "part/conv"} in layers_of
    assert {"tail/conv"} in layers_of


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_fingerprint(net):
    first, again = kn.trace(randomise(net(), 0)), kn.trace(randomise(net(), 1))
    assert first.fingerprint == again.fingerprint
    others = [kn.trace(other()).fingerprint for other in NETS if other is not net]
    assert first.fingerprint not in others


def test_fixed_channels_keep_their_identity():
    """The classifier's outputs are all fixed, and all distinct."""
    channel_map = kn.trace(NETS[0]())
    head = channel_map.creators[-1].units
    assert len(np.unique(head)) == len(head)
    assert not channel_map.free[head].any()


def test_open_input_sizes():
    inputs = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="conv")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(x))
    assert kn.profile(model).input_shapes == [(224, 224, 3)]
    assert kn.profile(model, (8, 8, 3)).layers["conv"].flops == 6 * 6 * 3 * 3 * 3 * 4
    for wrong in ((8, 8, 4), (8, 3)):
        with pytest.raises(ValueError, match="input_shape"):
            kn.profile(model, wrong)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, x):
        return self.dense(x)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (Subclassed, TypeError, "subclassed model.*as_functional"),
        (lambda: keras.Sequential([layers.Dense(2)]), ValueError, "not built"),
        (lambda: "model", TypeError, "keras.Model"),
        (lambda: None, TypeError, "keras.Model"),
    ],
)
def test_models_that_cannot_be_traced(model, error, message):
    with pytest.raises(error, match=message):
        kn.prune(model(), kn.Random(), ratio=0.5)
    with pytest.raises(error, match=message):
        kn.profile(model())


def test_values_are_let_go_after_their_last_use():
    """A walk over large images must not keep the activations of all layers."""
    inputs = x = keras.Input((4,))
    early = layers.Dense(4, name="early")(x)
    for _ in range(8):
        x = layers.Dense(4)(x)
    model = keras.Model(inputs, [layers.Add()([x, early]), early])

    class Value:
        pass

    known, alive = weakref.WeakSet(), []

    def visit(site, args, kwargs):
        value = Value()
        known.add(value)
        alive.append(len(known))
        return value

    outputs = walking.walk(model, [Value()], visit)
    assert len(alive) == 10
    assert max(alive) == 3  # early, which the sum still takes, what is read and what is made
    assert len(outputs) == len(known) == 2  # early is an output, too


class Opaque(layers.Layer):
    def call(self, x):
        return x + 1


@pytest.mark.parametrize("plan", [kn.prune, kn.plan_pruning, kn.plan_merging, kn.sensitivity])
@pytest.mark.parametrize(
    ("middle", "why"),
    [
        ([], r"'head' \(2: model output 'head'\)\.$"),
        (
            [layers.Dense(4, name="hidden"), Opaque(name="odd")],
            r"'hidden' \(4: enters 'odd', a layer without a rule\), 'head' .*as_functional",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::keras_nisp.UnknownLayerWarning")
def test_nothing_to_prune(plan, middle, why):
    """What holds channels is said, and what to do, wherever there are none to remove."""
    model = keras.Sequential([keras.Input((3,)), *middle, layers.Dense(2, name="head")])
    x = np.zeros((8, 3), "float32")
    keywords = {"calibration": x} if plan is kn.sensitivity else {"ratio": 0.5}
    if plan is not kn.plan_merging:
        keywords["importance"] = kn.Random()
    with pytest.raises(ValueError, match=f"no channels that may be removed: {why}"):
        plan(model, **keywords)


def test_a_walk_leaves_nothing_alive():
    """Activations and tapes are large: they must not wait for the collection of cycles."""
    seen = []

    class Visit:
        def __call__(self, site, args, kwargs):
            outputs = site.operation(*args, **kwargs)
            seen.append(weakref.ref(outputs))
            return outputs

    visit = Visit()
    gc.disable()
    try:
        walking.walk(nested(), [tf.ones((1, 8, 8, 3)), tf.ones((1, 6, 6, 1))], visit)
        gone = weakref.ref(visit)
        del visit
        assert gone() is None
        assert seen
        assert all(tensor() is None for tensor in seen)
    finally:
        gc.enable()


def test_shapes_by_the_names_of_inputs():
    inputs = [keras.Input((None, 4), name=name) for name in ("short", "long")]
    pooled = [layers.GlobalAveragePooling1D()(layers.Dense(8)(x)) for x in inputs]
    model = keras.Model(inputs, layers.Dense(2)(layers.Concatenate()(pooled)))
    by_name = {"long": (9, 4), "short": (5, 4)}
    assert kn.profile(model, by_name) == kn.profile(model, [(5, 4), (9, 4)])
    assert kn.plan_pruning(model, kn.Magnitude(), ratio=0.5, input_shape=by_name).input_shapes == (
        (5, 4),
        (9, 4),
    )
    with pytest.raises(ValueError, match=r"each of the inputs \['short', 'long'\]"):
        kn.trace(model, {"long": (9, 4)})
