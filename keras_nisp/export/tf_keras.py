"""`to_tf_keras`: Keras 3 models as tf_keras models, on which TFMOT works.

A layer of the same name need not compute the same in both: some settings were renamed or got
another meaning. So only known layers are converted, every setting is accounted for, and numbers
are compared at the end, layer by layer and as a whole.
"""

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_nisp.data.random_samples import random_samples
from keras_nisp.errors import ConversionError, from_extra
from keras_nisp.export.signature import check_exportable
from keras_nisp.export.tf_keras_layers import (
    ACTIVATIONS,
    COMPOSED,
    accepted_by,
    as_layer,
    check_layer,
    refusal,
    settings_of,
)
from keras_nisp.export.tflite import in_float32
from keras_nisp.keras_graph import calling, keras_models, masks, walking
from keras_nisp.keras_graph.rounding import allowed, amplification, relative_difference

if TYPE_CHECKING:
    import tf_keras

TOLERANCE = 1e-5
ASSUMED_SIZE = 32  # for input axes whose size is open


def to_tf_keras(model: keras.Model) -> "tf_keras.Model":
    """Converts a Keras 3 model to tf_keras (Keras 2), for TFMOT and other tools that need it.

    The result is a functional model that is not compiled. Layers keep names, weights, `trainable`,
    regularizers and constraints; initializers are left out. Nested models are inlined, because
    TFMOT takes none: their layers are named `"backbone/conv1"`. Sums, products and activations of
    `keras.ops` become layers, and so do activations that tf_keras does not have (`hard_silu`).

    Args:
        model: a functional or `Sequential` model. A mixed-precision model is converted to float32.

    Returns:
        A `tf_keras.Model` with copies of the weights. Each layer and the whole model have been
        compared with the original on random data: they agree to 1e-5 of their outputs' scale. (In a
        network that amplifies rounding errors, the outputs of the whole model may differ by ten
        times what a change of 1e-6 at its inputs does to them.)

    Raises:
        ConversionError: a layer, operation, setting or dtype has no counterpart in tf_keras, or
            numbers differ.
        TypeError: `model` is no functional or `Sequential` model of Keras 3, or `model.quantize`
            has turned its weights into integers.
        ImportError: tf_keras is not installed.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 3)),
    ...     keras.layers.Conv2D(4, 3, activation="hard_silu", name="conv"),
    ...     keras.layers.GlobalAveragePooling2D(name="pool"),
    ... ])
    >>> converted = to_tf_keras(model)
    >>> x = np.random.rand(2, 8, 8, 3).astype("float32")
    >>> np.allclose(model(x), converted(x), atol=1e-6)
    True
    """
    check_exportable(model)
    model = in_float32(model)
    keras_2 = _import_tf_keras()
    converter = _Converter(keras_2)
    inputs = converter.inputs(model)
    outputs = converter.run(model, inputs, converter.call)
    structure = keras_models.structured_inputs(model, inputs)
    converted = keras_2.Model(structure, outputs, name=model.name)
    converter.copy_weights()
    indices = [id(tensor) in converter.looked_up for tensor in inputs]
    with calling.fresh_states(model):
        _check(model, converted, converter, indices)
    converted.reset_states()
    return converted


def _import_tf_keras() -> ModuleType:
    with from_extra("tfmot", "A conversion to Keras 2 needs"):
        import tf_keras
    return tf_keras


class _Converter:
    """Makes the counterpart of each operation; one each, so that what is shared stays shared.

    Args:
        keras_2: the module tf_keras.
    """

    def __init__(self, keras_2: ModuleType):
        self.keras_2 = keras_2
        self.counterparts: dict[int, Callable] = {}
        self.pairs: list[tuple] = []  # layers that hold the same weights
        self.names: set[str] = set()
        self.looked_up: set[int] = set()  # tensors that are indices, whatever their dtype

    def inputs(self, model: keras.Model) -> list:
        """New symbolic inputs, flat."""
        inputs = []
        names = keras_models.input_names(model)
        for tensor, name in zip(keras_models.body(model).inputs, names, strict=True):
            if tensor.sparse:
                raise ConversionError(f"Input '{name}' is sparse: tf_keras takes dense ones here.")
            size, *shape = tensor.shape
            self.names.add(name)
            inputs.append(self.keras_2.Input(shape, size, name=name, dtype=tensor.dtype))
        return inputs

    def run(self, model, inputs: list, call: Callable, prefix: str = "", training=None) -> Any:
        """Runs `call(operation, path, args, kwargs)` over all calls, those of nested models too.

        What a nested model is told about `training`, the layers in it are told.
        """

        def visit(node, args, kwargs):
            operation, path = node.operation, prefix + node.operation.name
            if masks.enter(operation, node.input_tensors):
                raise refusal(operation, path, "masks (`mask_zero`) are not converted")
            mode = kwargs.pop("training", None)
            mode = training if mode is None else mode
            if keras_models.is_graph(operation):
                nested = keras.tree.flatten(args[0])
                return self.run(operation, nested, call, path + "/", mode)
            if mode is not None and "training" in inspect.signature(operation.call).parameters:
                kwargs["training"] = mode
            return call(operation, path, args, kwargs)

        return walking.replay(model, inputs, visit)

    def call(self, operation, path: str, args: tuple, kwargs: dict) -> Any:
        """The outputs of a call, by the operation's counterpart."""
        if isinstance(operation, keras.Layer):
            part = self._once(operation, lambda: self._layer(operation, path))
            if kwargs.get("training"):
                raise refusal(operation, path, "it is called with `training=True`")
            kwargs = {key: value for key, value in kwargs.items() if value is not None}
        else:
            kind, settings, args = as_layer(operation, path, args)
            make = self.activation if kind in ACTIVATIONS or kind in COMPOSED else self.make
            part = self._once(operation, lambda: make(kind, path, **settings))
        if isinstance(operation, layers.Embedding) and args:
            self.looked_up.add(id(args[0]))
        try:
            return part(*args, **kwargs)
        except (ValueError, TypeError, NotImplementedError, tf.errors.OpError) as error:
            raise refusal(operation, path, f"tf_keras does not take it ({error})") from error

    def compare(self, operation, path: str, args: tuple, kwargs: dict) -> Any:
        """The outputs of a call by the original, if the counterpart gives the same."""
        expected = calling.infer(operation, *args, **kwargs)
        difference = relative_difference(expected, self.call(operation, path, args, kwargs))
        if not difference <= TOLERANCE:
            reason = f"outputs differ by {difference:.1e} of their scale (please report this)"
            raise refusal(operation, path, reason)
        return expected

    def copy_weights(self) -> None:
        for old, new in self.pairs:
            new.set_weights([np.asarray(weight) for weight in old.weights if new.weights])

    def make(self, kind: str, name: str, **settings) -> Any:
        """A new tf_keras layer of a name that is not taken yet."""
        unique, count = name, 0
        while unique in self.names:
            count += 1
            unique = f"{name}_{count}"
        self.names.add(unique)
        return getattr(self.keras_2.layers, kind)(name=unique, **settings)

    def activation(self, name: str, path: str) -> Callable:
        """An activation as a layer, or composed of several."""
        if name not in COMPOSED:
            return self.make("Activation", path, activation=ACTIVATIONS.get(name, name))
        if name == "relu6":
            return self.make("ReLU", path, max_value=6.0)
        if name == "leaky_relu":
            return self.make("LeakyReLU", path, alpha=0.2)
        # What hard sigmoid means in Keras 3; in tf_keras it is clip(0.2 * x + 0.5).
        product = self.make("Multiply", path) if name == "hard_silu" else None
        shift = self.make("Rescaling", f"{path}_shift", scale=1.0, offset=3.0)
        clip = self.make("ReLU", f"{path}_clip", max_value=6.0)
        scale = self.make("Rescaling", f"{path}_gate" if product else path, scale=1 / 6)
        if product is None:
            return lambda x: scale(clip(shift(x)))
        return lambda x: product([x, scale(clip(shift(x)))])

    def _once(self, operation, make: Callable) -> Callable:
        if id(operation) not in self.counterparts:
            self.counterparts[id(operation)] = make()
        return self.counterparts[id(operation)]

    def _layer(self, layer: keras.Layer, path: str) -> Callable:
        check_layer(layer, path)
        kind = type(layer).__name__
        settings = settings_of(layer, path, accepted_by(getattr(self.keras_2.layers, kind)))
        activation = settings.get("activation", "linear")
        if isinstance(layer, layers.Activation):
            return self.activation(activation, path)
        if activation not in COMPOSED:
            return self._paired(layer, self.make(kind, path, **settings))
        new = self._paired(layer, self.make(kind, path, **{**settings, "activation": "linear"}))
        after = self.activation(activation, f"{path}_{activation}")
        return lambda *args, **kwargs: after(new(*args, **kwargs))

    def _paired(self, old: keras.Layer, new) -> Any:
        self.pairs.append((old, new))
        return new


def _check(model, converted: "tf_keras.Model", converter: _Converter, indices: list) -> None:
    """Raises unless each layer, and then the whole, gives what the original gives.

    A softmax over many classes, say, hides what goes wrong inside: hence each layer.

    Args:
        indices: for each input whether an embedding looks it up.
    """
    tensors = keras_models.body(model).inputs
    shapes = [tuple(ASSUMED_SIZE if n is None else n for n in t.shape[1:]) for t in tensors]
    inputs, _ = next(random_samples(model, shapes, keras_models.batch_size(model) or 2).batches())
    pairs = zip(inputs, indices, strict=True)
    inputs = [tf.cast(x > 0, x.dtype) if index else x for x, index in pairs]
    converter.run(model, inputs, converter.compare)
    structure = keras_models.structured_inputs(model, inputs)
    expected, received = (net(structure, training=False) for net in (model, converted))
    difference = relative_difference(expected, received)
    if not difference <= TOLERANCE and not difference <= allowed(model, inputs, TOLERANCE):
        raise ConversionError(
            f"Model '{model.name}' does not become the same in tf_keras, although each of its "
            f"layers does: outputs differ by {difference:.1e} of their scale. (A change of its "
            f"inputs by 1e-6 changes them by {amplification(model, inputs):.1e}.) Please report "
            "this."
        )
