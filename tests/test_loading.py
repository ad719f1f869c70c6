"""`loading_fault`: what it says of a model is what saving and loading do."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_nisp as kn
from keras_nisp.keras_graph.loading import loading_fault


class ExtraKey(layers.Dense):
    """Puts into its config what its constructor does not take."""

    def get_config(self):
        return {**super().get_config(), "patches": 16}


class Unwritten(layers.Layer):
    """Says nothing of an argument that no config can hold."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def call(self, x):
        return x * self.table


class Narrow(layers.Layer):
    """Is made with other sizes from its config than it has."""

    def __init__(self, width=2, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.width))

    def call(self, x):
        return x @ self.kernel


LAYERS = {
    "plain": lambda: layers.BatchNormalization(name="special"),
    "state": lambda: layers.Normalization(mean=[1.0] * 4, variance=[2.0] * 4, name="special"),
    "function": lambda: layers.Dense(4, activation=ops.relu, name="special"),
    "lambda": lambda: layers.Lambda(lambda x: x + 1.0, name="special"),
    "extra key": lambda: ExtraKey(4, name="special"),
    "no config": lambda: Unwritten(np.ones(4, "float32")),
    "sizes": lambda: Narrow(4, name="special"),
}


@pytest.mark.filterwarnings("ignore:.*includes a `lambda`")
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("nested", [False, True])
def test_fault_is_there_where_loading_fails(kind, nested, tmp_path):
    inputs = keras.Input((4,))
    layer = LAYERS[kind]()
    model = keras.Model(inputs, ops.relu(layer(inputs)))
    if nested:
        model = keras.Model(inputs, layers.Dense(2)(model(inputs)))
    fault = loading_fault(model)
    classes = {cls.__name__: cls for cls in (ExtraKey, Unwritten, Narrow)}
    try:
        model.save(tmp_path / "model.keras")
        keras.saving.load_model(tmp_path / "model.keras", classes, safe_mode=False)
        loads = True
    except (ValueError, TypeError, NotImplementedError):
        loads = False
    assert (fault is None) == loads
    if not loads:
        assert layer.name in fault
        assert type(layer).__name__ in fault


def test_fault_takes_no_memory_and_leaves_nothing_behind():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(3)(inputs))
    assert loading_fault(model) is None
    dense = layers.Dense(3)
    dense.build((None, 4))
    assert np.abs(dense.kernel.numpy()).sum() > 0


def test_fault_of_what_stands_between_layers():
    inputs = keras.Input((4,))

    class Opaque:
        def __init__(self):
            self.factor = 2.0

    class Scale(keras.Operation):
        def __init__(self, by):
            super().__init__()
            self.by = by

        def call(self, x):
            return x * self.by.factor

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    assert loading_fault(keras.Model(inputs, Scale(Opaque())(inputs))) is not None
    assert loading_fault(keras.Model(inputs, inputs * np.ones((1, 4), "float32"))) is None


class Weighted(layers.Layer):
    """Is called with a table by number, which a file has by text."""

    def call(self, x, by):
        return x * by[0]


def test_fault_of_a_call_names_its_layer():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, Weighted(name="special")(inputs, by={0: 2.0}))
    fault = loading_fault(model)
    assert "calls of 'special' cannot be made from its config (KeyError: 0): let the call" in fault


@pytest.mark.filterwarnings("ignore:.*includes a `lambda`")
def test_fault_of_code_names_its_layer():
    """What the function uses is not there when it is loaded."""
    inputs = keras.Input((4,))
    inner = keras.Sequential([inputs, layers.Lambda(lambda x: ops.relu6(x), name="special")])
    fault = loading_fault(keras.Model(inputs, layers.Dense(2)(inner(inputs))))
    assert "calls of 'special' cannot be made from its config" in fault
    assert "a layer class in place of the `Lambda`" in fault


@keras.saving.register_keras_serializable("tests")
class OfOneWidth(layers.Dense):
    """Says that it has 8 units, whatever it was made with."""

    def get_config(self):
        return {**super().get_config(), "units": 8}


def test_rebuild_refuses_what_could_not_be_loaded(tmp_path):
    """The original's file loads, that of the smaller model would not."""
    inputs = keras.Input((4,))
    x = layers.Dense(6, name="free")(OfOneWidth(8, name="odd")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(x), name="net")
    model.save(tmp_path / "model.keras")
    keras.saving.load_model(tmp_path / "model.keras")
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    with (
        pytest.warns(UserWarning, match="'odd'"),
        pytest.raises(ValueError, match=r"'net' can be saved and loaded, but .*'odd'.*`exclude`"),
    ):
        kn.rebuild(model, plan)
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5, exclude="odd")
    kn.rebuild(model, plan).save(tmp_path / "small.keras")
    assert keras.saving.load_model(tmp_path / "small.keras").get_layer("free").units == 3


def own_gelu(x):
    return x * ops.sigmoid(1.702 * x)


def own_penalty(weight):
    return 1e-3 * ops.sum(weight * weight)


def own_values(shape, dtype=None):
    return keras.random.normal(shape, dtype=dtype, seed=1)


def own_bound(weight):
    return ops.relu(weight)


FUNCTIONS = {
    "activation": own_gelu,
    "kernel_regularizer": own_penalty,
    "kernel_initializer": own_values,
    "kernel_constraint": own_bound,
}


@keras.saving.register_keras_serializable("test_loading")
class GivesItsFunction(layers.Layer):
    """Loads by itself; the layer of Keras in it does not without the function."""

    def __init__(self, argument, **kwargs):
        super().__init__(**kwargs)
        self.argument = argument
        self.dense = layers.Dense(4, **{argument: FUNCTIONS[argument]})

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return {**super().get_config(), "argument": self.argument}


@pytest.mark.parametrize("argument", FUNCTIONS)
def test_functions_that_files_do_not_hold_are_named(argument, tmp_path):
    inputs = keras.Input((3,))
    x = GivesItsFunction(argument, name="own")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(x), name="net")
    keras.models.load_model(_saved(model, tmp_path))
    name = FUNCTIONS[argument].__name__
    with pytest.warns(UserWarning, match=f"{name}.*custom_objects={{'{name}': {name}}}"):
        graph = kn.as_functional(model, verbose=0)
    with pytest.raises(TypeError, match=name):
        keras.models.load_model(_saved(graph, tmp_path))
    own = {name: FUNCTIONS[argument]}
    loaded = keras.models.load_model(_saved(graph, tmp_path), custom_objects=own)
    x = np.ones((2, 3), "float32")
    np.testing.assert_allclose(loaded(x), model(x), atol=1e-6)


def _saved(model, folder):
    model.save(folder / "model.keras")
    return folder / "model.keras"
