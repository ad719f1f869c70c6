"""What Keras knows of its layers and operations."""

import inspect
from typing import Any

import keras
import numpy as np
from keras.src.activations import activations
from keras.src.applications.convnext import LayerScale, StochasticDepth  # noqa: F401
from keras.src.applications.inception_resnet_v2 import CustomScaleLayer  # noqa: F401
from keras.src.layers.rnn.conv_lstm import ConvLSTMCell  # noqa: F401
from keras.src.utils.naming import to_snake_case

# What functions of `keras.activations` leave in a graph, unless it is what those of `keras.ops` do.
ACTIVATIONS = [
    cls
    for _, cls in inspect.getmembers(activations, inspect.isclass)
    if issubclass(cls, keras.Operation)
]


def operation_class(name: str) -> Any:
    """The class behind a function of `keras.ops`, which represents it in a graph; `None`
    where this Keras has none."""
    function = keras.ops
    for part in name.split("."):
        function = getattr(function, part, None)
    function = inspect.unwrap(function) if function is not None else None
    named = getattr(getattr(function, "__code__", None), "co_names", ())
    for found in [getattr(function, "__globals__", {}).get(used) for used in named]:
        if inspect.isclass(found) and issubclass(found, keras.Operation):
            return found
    return None


def title(operation: keras.Operation) -> str:
    """What users know it by: a layer by its name, an operation by its function in `keras.ops`,
    since Keras makes up the names of those."""
    if isinstance(operation, keras.Layer):
        return f"'{operation.name}' ({type(operation).__name__})"
    return f"`{to_snake_case(type(operation).__name__)}`"


def is_of_keras(what: Any, *modules: str) -> bool:
    """Whether Keras defines a class or function, in one of these modules if any are given."""
    # A function has no module at all if the code was run by `exec` with globals of its own.
    defined = what.__module__ or ""
    return defined.startswith(tuple(f"keras.src.{m}" for m in modules) or "keras.")


def takes_training(layer: keras.Operation) -> bool:
    """Whether a layer's `call` has an argument `training`."""
    return getattr(layer, "_call_has_training_arg", False)


def fixed_weights(layer: keras.Layer) -> list[keras.Variable]:
    """The weights of a layer and its parts that were made not to be trained, frozen or not."""
    return [v for part in layer._flatten_layers() for v in part._non_trainable_variables]


def own_weights(layer: keras.Layer) -> list[keras.Variable]:
    """The weights that a layer was given to be trained, and no part of it holds."""
    return list(layer._trainable_variables)


def projection(attention: keras.Layer, which: str) -> Any:
    """The layer inside an attention layer that makes its queries, keys, values or gates, or its
    output; `None` if there is none."""
    return getattr(attention, f"_{which}_dense", None)


def attended_axes(attention: keras.Layer) -> list[int]:
    """The axes along which a built attention layer attends, the batch axis not counted."""
    return [axis - 1 for axis in getattr(attention, "_attention_axes", None) or (1,)]


def low_rank_kernel(layer: keras.Operation, value: Any) -> tuple | None:
    """What a kernel with LoRA is made of: a variable, two factors of the rest, and their scale.

    Args:
        layer: the layer, or what holds it.
        value: its kernel, or its embeddings, as it computes them.
    """
    parts = layer._flatten_layers() if isinstance(layer, keras.Layer) and value is not None else ()
    for part in parts:
        if not getattr(part, "lora_enabled", False):
            continue
        name = "embeddings" if hasattr(part, "lora_embeddings_a") else "kernel"
        if np.array_equal(np.asarray(getattr(part, name)), np.asarray(value)):
            factors = (getattr(part, f"lora_{name}_{letter}") for letter in "ab")
            return getattr(part, f"_{name}"), *factors, part.lora_alpha / part.lora_rank
    return None


def called_on(layer: keras.Layer) -> list[tuple[int | None, ...]]:
    """The shapes of the first tensors on which a layer is called, as far as Keras has noted them:
    those of its calls in graphs, or else that for which it was built."""
    nodes = [node.input_tensors for node in layer._inbound_nodes if node.input_tensors]
    if nodes:
        return list(dict.fromkeys(tuple(tensors[0].shape) for tensors in nodes))
    config = layer.get_build_config() or {}
    shape = config.get("input_shape")
    return [tuple(shape)] if isinstance(shape, (tuple, list)) and shape else []


def is_called_plainly(layer: keras.Layer) -> bool:
    """Whether all calls of a layer, as far as Keras has noted them, are on one tensor and leave
    other arguments at their defaults; a mask and `training` may be given."""
    signature = inspect.signature(layer.call)
    for node in layer._inbound_nodes:
        # Keras takes `training` off a layer that does not name it, and notes it nevertheless.
        kwargs = {k: v for k, v in node.arguments.kwargs.items() if k != "training"}
        given = signature.bind(*node.arguments.args, **kwargs).arguments
        for name, value in list(given.items())[1:]:
            default = signature.parameters[name].default
            if name not in ("mask", "training") and value is not default:
                if keras.tree.is_nested(value) or isinstance(value, keras.KerasTensor):
                    return False
                if not np.array_equal(value, default):
                    return False
    return True


def parts(layer: keras.Layer) -> list[keras.Layer]:
    """The layers that a layer holds."""
    return list(layer._flatten_layers(include_self=False))


def check_shared(layers: list) -> None:
    """Raises if an activation with weights belongs to several layers.

    Keras makes it from the config of each of them, so copies (and files) no longer share it.

    Args:
        layers: the layers and operations of a model.
    """
    owners: dict[int, keras.Operation] = {id(layer): layer for layer in layers}
    for layer in {id(layer): layer for layer in layers if isinstance(layer, keras.Layer)}.values():
        for part in layer._flatten_layers():
            for key in ("activation", "recurrent_activation"):
                held = vars(part).get(key)
                if not isinstance(held, keras.Layer) or not held.weights:
                    continue
                owner = owners.setdefault(id(held), part)
                if owner is not part:
                    raise ValueError(
                        f"Layer '{held.name}' ({type(held).__name__}) has weights, and is the "
                        f"activation of '{layer.name}' and belongs to '{owner.name}' as well: a "
                        "copy would not share them, and Keras cannot load such a model. Call it "
                        f"as a layer of its own instead: `{held.name}(layer(x))`."
                    )
