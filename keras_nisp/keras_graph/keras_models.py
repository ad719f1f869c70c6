"""What Keras knows of its models: graph, layers, inputs and outputs."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras.src.models.functional import Functional

from keras_nisp._environment import legacy_keras_hint


def is_graph(operation: Any) -> bool:
    """Whether `operation` is a model whose graph of layers is known, and all that it computes."""
    known = isinstance(operation, (Functional, keras.Sequential))
    return known and type(operation).call in (Functional.call, keras.Sequential.call)


def check_model(model: Any) -> None:
    """Raises unless `model` is a built functional or sequential model."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"Expected `model` to be a keras.Model. Received: {model!r} "
            f"(of type {type(model).__name__}).{_instead(model)}{legacy_keras_hint()}"
        )
    if (student := student_of(model)) is not model:
        raise TypeError(
            f"Expected the model itself. Received '{model.name}', a distiller: pass its `student`, "
            f"'{student.name}'. A callback that prunes goes to the `fit` of that model; or prune "
            "first, and let the original teach afterwards."
        )
    if not is_graph(model):
        raise TypeError(
            f"Model '{model.name}' is a subclassed model ({type(model).__name__}): its "
            "graph of layers is not known to Keras, so channels cannot be followed "
            "through it. Expected a functional or Sequential model: convert it with "
            "`keras_nisp.as_functional(model, keras.Input(...))`."
        )
    if not model.built or (isinstance(model, keras.Sequential) and not model.inputs):
        raise ValueError(
            f"Model '{model.name}' is not built: its weights do not exist yet. Start it "
            "with `keras.Input(shape=...)` or call `model.build(input_shape)` first."
        )
    check_not_quantized(model)


def check_not_quantized(model: keras.Model) -> None:
    """Raises if Keras has quantized any layer of a model."""
    for layer in all_layers(model):
        if mode := getattr(layer, "quantization_mode", None):
            raise TypeError(
                f"Model '{model.name}' was quantized by Keras (`model.quantize('{mode}')`): the "
                f"kernel of layer '{layer.name}' holds integers and a scale for each channel, "
                "which can be neither pruned nor exported as they are. Prune and export the "
                "model as it was before; `keras_nisp.export_tflite` quantizes while it exports."
            )


def student_of(model: keras.Model) -> keras.Model:
    """The model that learns in a Distiller; any other model itself."""
    return model.student if isinstance(model, keras.distillation.Distiller) else model


def _instead(model: Any) -> str:
    """What to pass instead of what is no model, as far as one can guess."""
    if hasattr(type(model), "pruned_model"):  # which raises before the end of training
        return " Pass its `pruned_model`, which it has after `fit`."
    if model is None:
        return " `pruned_model` of a NISPPruner is None until `fit` has ended."
    if isinstance(model, (str, os.PathLike)):
        return " Load it first: `keras.models.load_model(path)`."
    return ""


def all_layers(model: keras.Model) -> list[keras.Layer]:
    """The layers of a model, those of nested models and inside layers too."""
    return [layer for layer in model._flatten_layers() if layer is not model]


def operations(model: keras.Model) -> Iterator[keras.Operation]:
    """The layers and operations of a graph, and those of the graphs in it."""
    for operation in body(model).operations:
        yield operation
        if is_graph(operation):
            yield from operations(operation)


def body(model: keras.Model) -> Functional:
    """The functional graph of a functional or sequential model."""
    return model._functional if isinstance(model, keras.Sequential) else model


def batch_size(model: keras.Model) -> int | None:
    """The batch size that a model is bound to, or `None`."""
    sizes = (tensor.shape[0] for tensor in body(model).inputs)
    return next((size for size in sizes if size is not None), None)


def is_open(model: keras.Model) -> bool:
    """Whether a model leaves sizes of its inputs open, the batch size apart."""
    check_model(model)
    return any(None in tensor.shape[1:] for tensor in body(model).inputs)


def is_optional(tensor: keras.KerasTensor) -> bool:
    """Whether a model's input may be left out."""
    return bool(getattr(tensor._keras_history.operation, "optional", False))


def listed_shapes(shapes: Any, known: list[list[str]]) -> list[tuple]:
    """Shapes in the order of a model's inputs, as users give them: one, a list, or a dict by the
    inputs' names.

    Args:
        shapes: what users give.
        known: what the inputs may be called, as `names_of` says.
    """
    listed = shapes
    if isinstance(shapes, Mapping):
        names = next((names for names in known if set(names) == set(shapes)), None)
        if names is None:
            raise ValueError(
                "Expected `input_shape` to give a shape for each of the inputs "
                f"{' or '.join(map(str, known))}. Received: input_shape={shapes!r}"
            )
        listed = [shapes[name] for name in names]
    elif len(known[0]) == 1 and not (_is_list(shapes) and any(map(_is_list, shapes))):
        listed = [shapes]
    if not _is_list(listed) or not all(map(_is_shape, listed)):
        raise ValueError(
            "Expected `input_shape` to be the shape of one sample, such as (224, 224, 3); for "
            "several inputs a list of shapes, or a dict of them by name. The inputs are "
            f"{' or '.join(map(str, known))}. Received: input_shape={shapes!r}"
        )
    return [tuple(shape) for shape in listed]


def _is_list(given: Any) -> bool:
    return isinstance(given, Iterable) and not isinstance(given, (str, Mapping))


def _is_shape(given: Any) -> bool:
    sizes = given if _is_list(given) else ["none"]
    return all(n is None or (isinstance(n, (int, np.integer)) and n > 0) for n in sizes)


def names_of(inputs: Any) -> list[list[str]]:
    """What symbolic inputs may be called, in their order: by the keys of the dict that they are
    in, and by their layers."""
    layers = list(map(source_name, keras.tree.flatten(inputs)))
    paths = [path for path, _ in keras.tree.flatten_with_path(inputs)]
    keys = [path[0] for path in paths if isinstance(inputs, Mapping) and len(path) == 1]
    return [keys, layers] if len(keys) == len(layers) and keys != layers else [layers]


def source_name(tensor: keras.KerasTensor) -> str:
    """Name of the layer or operation that gives a symbolic tensor."""
    return tensor._keras_history.operation.name


def input_names(model: keras.Model) -> list[str]:
    """Names of the model's input layers."""
    return list(map(source_name, body(model).inputs))


def output_names(model: keras.Model) -> list[str]:
    """Names of the layers that give the model's outputs."""
    return list(map(source_name, body(model).outputs))


def structured_inputs(model: keras.Model, inputs: list) -> Any:
    """A flat list of inputs in the structure in which the model takes them."""
    if isinstance(model, keras.Sequential):
        return inputs[0]
    return keras.tree.pack_sequence_as(model._inputs_struct, inputs)


def input_structure(model: keras.Model) -> Any:
    """The structure (dict, list, a single one) of the symbolic tensors that the model takes."""
    return body(model)._inputs_struct


def output_structure(model: keras.Model) -> Any:
    """The structure of the symbolic tensors that the model gives."""
    return body(model)._outputs_struct


def is_half(model: keras.Model) -> bool:
    """Whether any layer computes in half precision."""
    return any("16" in layer.compute_dtype for layer in all_layers(model))
