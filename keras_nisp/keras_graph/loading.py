"""Can a model be loaded again after it was saved? Tried by its config, without its weights."""

import contextlib
import json
import warnings

import keras

from keras_nisp.errors import reason_of
from keras_nisp.keras_graph import calling, copying, keras_models

ADVICE = "let its class give a `get_config` from which its constructor makes it again"


def loading_fault(model: keras.Model) -> str | None:
    """Says what keeps a `.keras` file of a model from being loaded.

    Nothing is written, and no memory is taken for weights. Who loads the file is taken to
    have the model's own classes.

    Args:
        model: a built model.

    Returns:
        `None` if the model can be saved and loaded; else why not, with the layer's name where
        it is one layer.
    """
    with keras.saving.custom_object_scope(copying.own_objects(model)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Saving and loading will say the same.
        fault = _fault(model)
        if fault is None:
            return None
        for layer in keras_models.all_layers(model):
            if not keras_models.is_graph(layer) and (own := _fault(layer)) is not None:
                return f"layer '{layer.name}' ({type(layer).__name__}): {own}"
    return fault


def _fault(part: keras.Layer) -> str | None:
    try:
        config = keras.saving.serialize_keras_object(part)
        config.pop("compile_config", None)
        config = json.dumps(config)
    except Exception as error:  # whatever code of users raises in `get_config`
        return f"its config cannot be written ({reason_of(error)}): {ADVICE}"
    # Without values for weights first; some layers need them when they are built.
    for scope in (calling.without_memory, contextlib.nullcontext):
        try:
            with scope():
                return _difference(part, _loaded(config))
        except Exception as error:  # whatever code of users raises in `__init__` or `build`
            reason = reason_of(error)
    return f"it cannot be made from its config ({reason}): {ADVICE}"


def _loaded(config: str) -> keras.Layer:
    return keras.saving.deserialize_keras_object(json.loads(config), safe_mode=False)


def _difference(part: keras.Layer, loaded: keras.Layer) -> str | None:
    """What weights of another number or shape are there; a layer may build them when called."""
    expected, received = ([tuple(w.shape) for w in x.weights] for x in (part, loaded))
    if expected == received or not (keras_models.is_graph(part) or received):
        return None
    if keras_models.is_graph(part) and len(received) > len(expected):
        return "Keras gives each of its nested models a copy of the layers that they share"
    return (
        f"made from its config, it has weights of the shapes {received} instead of {expected}: "
        f"{ADVICE}"
    )
