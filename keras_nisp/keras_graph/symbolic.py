"""Calls on symbolic tensors, of which graphs are made."""

from typing import Any

import keras
from keras.src.backend import compute_output_spec

from keras_nisp.keras_graph.keras_layers import is_of_keras


def called(operation: keras.Operation, args: tuple, kwargs: dict) -> Any:
    """The outputs of a symbolic call, with all sizes that can be known."""
    if isinstance(operation, keras.Layer):
        as_dense(args, kwargs)
    return with_known_sizes(operation, args, kwargs, operation(*args, **kwargs))


def as_dense(args: tuple, kwargs: dict) -> None:
    """Clears the `sparse` flag that Keras sets on a product with a number; layers would otherwise
    be traced with sparse tensors."""
    for tensor in filter(_seems_sparse, keras.tree.flatten((args, kwargs))):
        tensor._sparse = False


def _seems_sparse(value: Any) -> bool:
    """Whether Keras flags a tensor as sparse that cannot be: only inputs are sparse."""
    if not isinstance(value, keras.KerasTensor) or not value.sparse:
        return False
    return not isinstance(value._keras_history.operation, keras.layers.InputLayer)


def called_for_files(operation: keras.Operation, args: tuple, kwargs: dict) -> Any:
    """`called`, in a graph that files hold: an operation makes dense there what Keras takes for
    sparse, because it does so again when it loads the file, and tries layers of users on that."""
    if isinstance(operation, keras.Layer) and not is_of_keras(type(operation)):
        args, kwargs = keras.tree.map_structure(
            lambda x: keras.ops.convert_to_tensor(x, sparse=False) if _seems_sparse(x) else x,
            (args, kwargs),
        )
    return called(operation, args, kwargs)


def with_known_sizes(operation: keras.Operation, args: tuple, kwargs: dict, outputs: Any) -> Any:
    """The outputs of a symbolic call, with the sizes that they will have: Keras leaves some open
    that follow from those of the inputs, such as those that an EinsumDense was not told, and
    layers of others may say wrong ones."""
    given, made = _symbolic((args, kwargs)), _symbolic(outputs)
    is_layer = isinstance(operation, keras.Layer)
    told = not is_layer or is_of_keras(type(operation))
    is_open = [any(None in tensor.shape[1:] for tensor in tensors) for tensors in (given, made)]
    if not made or (told and is_open != [False, True]):
        return outputs
    try:
        computed = _symbolic(
            compute_output_spec(operation if is_layer else operation.call, *args, **kwargs)
        )
    except Exception:  # whatever code of users raises on what is not there yet
        return outputs  # what needs a size that stays open says so
    for tensor, known in zip(made, computed, strict=False):
        if len(tensor.shape) == len(known.shape):
            sizes = zip(known.shape[1:], tensor.shape[1:], strict=True)
            tensor._shape = (*tensor.shape[:1], *(n if n is not None else m for n, m in sizes))
    return outputs


def _symbolic(values: Any) -> list[keras.KerasTensor]:
    return [x for x in keras.tree.flatten(values) if isinstance(x, keras.KerasTensor)]
