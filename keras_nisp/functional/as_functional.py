"""`as_functional`: converts subclassed models and composite layers to functional graphs."""

import collections
import warnings
from typing import Any

import keras

from keras_nisp.channels.registry import rule_of
from keras_nisp.channels.tracing import InputShape
from keras_nisp.errors import reason_of, several, warn
from keras_nisp.functional.converted import Constants, Converted, Kept, number_calls
from keras_nisp.functional.converting import Converter, Shapes
from keras_nisp.functional.equivalence import check_same
from keras_nisp.functional.moved_batch import is_tensor
from keras_nisp.keras_graph import calling, keras_layers, keras_models, symbolic, walking
from keras_nisp.keras_graph.loading import loading_fault, warn_of_functions, warn_of_names

# What a training run calls; a model class that has its own does something else in `fit`.
TRAINING_METHODS = ("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics")


def as_functional(
    model: keras.Model,
    inputs: Any = None,
    input_shape: InputShape | None = None,
    verbose: int = 1,
) -> keras.Model:
    """Converts a model to a functional graph of layers whose channels can be followed.

    A subclassed model becomes a functional one, and every custom layer that is made of other
    layers and operations becomes a nested functional model of its name. What cannot be converted
    stays as it is: layers with code that needs values, or that do something else in training.

    Args:
        model: any Keras model. It is not changed; the result shares its layers and weights.
        inputs: for a subclassed model: a `keras.Input` for each tensor that it is called with, in
            the same structure.
        input_shape: shape of one sample (or a list of shapes, in the order of `model.inputs`, or a
            dict by the inputs' names), for models that leave sizes open. The result is checked at
            these sizes. Open sizes stay open, unless a layer (one that builds a causal mask, say)
            can only be converted at a fixed size. The result then accepts only these sizes.
        verbose: 1 prints which layers stay as they are and why, one line for each kind; 0 prints
            nothing.

    Returns:
        A functional model that computes the same, checked on a random sample; the model itself
        if there is nothing to convert.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: `inputs` are missing, the model's `call` cannot be traced on symbolic
            tensors, or the graph would not do what the model does.

    Example:

    >>> class Classifier(keras.Model):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.hidden, self.head = keras.layers.Dense(8), keras.layers.Dense(2)
    ...     def call(self, x):
    ...         return self.head(keras.ops.relu(self.hidden(x)))
    >>> model = as_functional(Classifier(), keras.Input((4,)))
    >>> prune(model, Magnitude(), ratio=0.5, verbose=0).count_params()
    30
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"Expected `model` to be a keras.Model. Received: {model!r}")
    with calling.PATCHING, warnings.catch_warnings(), calling.operations_of_tensorflow():
        # What Keras says of nested models, which pass masks on nevertheless.
        warnings.filterwarnings("ignore", message=".*destroy the mask information")
        if keras_models.is_graph(model):
            keras_models.check_model(model)
            converted, kept = _convert_graph(model, input_shape)
        else:
            converted, kept = _convert_subclassed(model, inputs, input_shape)
    if converted is not model:
        _warn_of_what_is_lost(model, converted)
    left = _unused_weights(model, converted)
    kept = [part for part in kept if rule_of(part.layer).warns]  # others are followed as they are
    if verbose and left:
        print(f"{model.name}, as a functional graph, leaves out weights that no call uses: {left}")
    if verbose and kept:
        print(_told(model, kept, input_shape is None and keras_models.is_open(converted)))
    return converted


def _convert_graph(
    model: keras.Model, input_shape, whole: dict[int, Kept] | None = None
) -> tuple[keras.Model, list[Kept]]:
    own = keras_models.body(model).inputs
    shapes = _known_shapes(input_shape, keras_models.input_structure(model))
    arguments = (keras_models.structured_inputs(model, _inputs(own, shapes)),)
    faults: list[Exception] = []
    for lookups in (True, False):
        converter = Converter(_open_sizes(own, shapes), own[0].shape[0], lookups, whole)
        converted = converter.graph(model, shapes)
        if whole is None and (torn := _torn(converted, converter.kept)):
            return _convert_graph(model, input_shape, torn)
        number_calls(converted, converter.composites.values())
        try:
            if converted is not model:
                lost = converter.lost.values()
                check_same(converted, model, arguments, {}, converter.sizes, lost=lost)
        except Exception as error:  # whatever code of users raises
            faults.append(error)  # the last is told: the first may come of our own change
        else:
            if converted is not model:
                _warn_of_losses(model, converter)
            return converted, list(converter.kept.values())
        if not converter.looked_up:
            break  # it would be the same again
    raise ValueError(
        f"Model '{model.name}' cannot be converted to a functional graph: {reason_of(faults[-1])}. "
        "(A layer that is not of Keras may give other shapes than it says.)"
    ) from faults[-1]


def _convert_subclassed(
    model: keras.Model, inputs: Any, input_shape, whole: dict[int, Kept] | None = None
) -> tuple[keras.Model, list[Kept]]:
    flat = keras.tree.flatten(inputs)
    if not flat or not all(map(is_tensor, flat)):
        raise ValueError(
            f"Expected `inputs` for the subclassed model '{model.name}', such as "
            "`keras.Input((224, 224, 3))`: the shape of what it is called with. "
            f"Received: inputs={inputs!r}"
        )
    keras_models.check_not_quantized(model)
    shapes = _known_shapes(input_shape, inputs)
    converter = Converter(_open_sizes(flat, shapes), flat[0].shape[0], whole=whole)
    given = inputs
    converted, kept = converter.noted(converter.composite, model, (inputs,), {})
    if kept and converter.sizes:
        closed = keras.tree.pack_sequence_as(inputs, _inputs(flat, shapes))
        again, fewer = converter.noted(converter.composite, model, (closed,), {})
        if kept.keys() - fewer.keys():
            converted, inputs = again, closed
        kept = fewer  # whose reasons are not that sizes are open
    if converted is None:
        raise ValueError(
            f"Model '{model.name}' ({type(model).__name__}) cannot be converted to a functional "
            f"graph: {_reason(model, kept)}. Build it from layers and `keras.ops` as "
            "`keras.Model(inputs, outputs)`."
        )
    graph = _structured(converted, inputs, model)
    if whole is None and (torn := _torn(graph, kept)):
        return _convert_subclassed(model, given, input_shape, torn)
    number_calls(graph, converter.composites.values())
    _warn_of_losses(model, converter)
    return graph, list(kept.values())


def _torn(model: keras.Model, kept: dict[int, Kept]) -> dict[int, Kept]:
    """The layers that stay as they are in one call and were converted in another: a smaller model
    would have their weights twice."""
    parts = set(keras_models.operations(model))
    leaves = [x for x in parts if isinstance(x, keras.Layer) and not keras_models.is_graph(x)]
    holders = collections.Counter(id(weight) for layer in leaves for weight in layer.weights)
    return {
        number: part
        for number, part in kept.items()
        if any(holders[id(weight)] > 1 for weight in part.layer.weights)
    }


def _reason(model: keras.Model, kept: dict[int, Kept]) -> str:
    """Why a model could not be converted, and the parts of it that could not be."""
    parts = [
        f"'{part.layer.name}' ({type(part.layer).__name__}) in it cannot be either: {part.reason}"
        for part in kept.values()
        if part.layer is not model and rule_of(part.layer).warns
    ]
    return several([kept[id(model)].reason, *parts], what="parts", between="; ")


def _told(model: keras.Model, kept: list[Kept], sizes_may_help: bool) -> str:
    """What stays as it is and why: one line for each kind of layer."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for part in kept:
        kinds.setdefault((type(part.layer).__name__, part.reason), []).append(part.layer.name)
    lines = [f"{model.name}, as a functional graph: these layers stay as they are"]
    for (kind, reason), names in kinds.items():
        lines.append(f"  {several(map(repr, names))} ({kind}): {reason}")
    if sizes_may_help:
        lines.append(
            "  Its inputs leave sizes open: with `input_shape`, the shape of one sample, layers "
            "that must know them can be converted."
        )
    return "\n".join(lines)


def _structured(converted: Converted | Constants, inputs: Any, model: keras.Model) -> keras.Model:
    """A model that takes and gives what the subclassed model does, under the inputs' names."""
    others = [x for x in keras.tree.flatten(converted.structure) if not is_tensor(x)]
    if others or isinstance(converted, Constants):
        raise ValueError(
            f"Model '{model.name}' ({type(model).__name__}) cannot be converted to a functional "
            f"graph: it gives {others[0]!r} besides tensors, which a functional model cannot. "
            "Let its `call` return tensors alone."
        )
    new = keras.tree.map_structure(
        lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=keras_models.source_name(x)),
        inputs,
    )
    outputs = walking.replay(
        converted.model,
        keras.tree.flatten(new),
        lambda node, args, kwargs: symbolic.called(node.operation, args, kwargs),
    )
    outputs = keras.tree.pack_sequence_as(converted.structure, keras.tree.flatten(outputs))
    graph = keras.Model(new, outputs, name=model.name)
    graph.dtype_policy = model.dtype_policy  # by which `compile` decides on a loss scale
    return graph


def _unused_weights(model: keras.Model, converted: keras.Model) -> str:
    """The weights that a graph has not, by name; those that are not trained became constants."""
    known = {id(w) for w in (*converted.weights, *keras_layers.fixed_weights(model))}
    names = [weight.path for weight in model.weights if id(weight) not in known]
    return several(names)


def _warn_of_losses(model: keras.Model, converter: Converter) -> None:
    """Losses that layers add in training have no place in a graph."""
    if converter.lost:
        layers = [f"'{layer.name}' ({type(layer).__name__})" for layer in converter.lost.values()]
        begin = "Layers {} add" if len(layers) > 1 else "Layer {} adds"
        warn(
            f"{begin.format(several(layers))} to the loss in training (`add_loss`), which the "
            f"functional graph of model '{model.name}' leaves out: its "
            "outputs are the same. Add what it is to the loss of your own training step."
        )


def _warn_of_what_is_lost(model: keras.Model, converted: keras.Model) -> None:
    """What a user would find out later: methods of `fit`, and files that do not load."""
    own = [m for m in TRAINING_METHODS if getattr(type(model), m) is not getattr(keras.Model, m)]
    if own and type(converted) is not type(model):
        warn(
            f"Model '{model.name}' ({type(model).__name__}) has its own {', '.join(own)}: the "
            "functional model that it is converted to has those of `keras.Model`. Train it "
            "by a loop of yours, or put it into a model class that has them.",
        )
    warn_of_names(converted)
    fault = loading_fault(converted)
    if fault is None:
        warn_of_functions(converted)
    else:
        warn(
            f"Model '{model.name}', converted to a functional graph, does not come back from a "
            f"`.keras` file: {fault}. Its weights can be kept alone (`save_weights`).",
        )


def _known_shapes(input_shape: InputShape | None, inputs: Any) -> Shapes:
    """The shapes of inputs, with the sizes that `input_shape` gives to axes that are open."""
    tensors = keras.tree.flatten(inputs)
    own = tuple(tuple(tensor.shape) for tensor in tensors)
    if input_shape is None:
        return own
    shapes = keras_models.listed_shapes(input_shape, keras_models.names_of(inputs))
    declared = [shape[1:] for shape in own]
    fits = list(map(len, shapes)) == list(map(len, declared)) and all(
        size is not None and known in (None, size)
        for shape, sizes in zip(declared, shapes, strict=True)
        for known, size in zip(shape, sizes, strict=True)
    )
    if not fits:
        raise ValueError(
            "Expected `input_shape` to fit the inputs (without the batch axis): "
            f"{dict(zip(map(keras_models.source_name, tensors), declared, strict=True))}. "
            f"Received: input_shape={input_shape!r}"
        )
    return tuple((shape[0], *map(int, sizes)) for shape, sizes in zip(own, shapes, strict=True))


def _open_sizes(tensors: list, shapes: Shapes) -> list[int]:
    """The sizes that are given to axes that inputs leave open."""
    pairs = zip(
        (n for tensor in tensors for n in tensor.shape[1:]),
        (n for shape in shapes for n in shape[1:]),
        strict=True,
    )
    return [size for own, size in pairs if own is None and size is not None]


def _inputs(tensors: list, shapes: Shapes) -> list:
    """Symbolic inputs like others, of known sizes."""
    return [
        keras.Input(batch_shape=shape, dtype=tensor.dtype, name=keras_models.source_name(tensor))
        for tensor, shape in zip(tensors, shapes, strict=True)
    ]
