"""`as_functional`: converts subclassed models and composite layers to functional graphs."""

import contextlib
import dataclasses
import functools
import threading
import warnings
from collections.abc import Callable
from typing import Any

import keras

from keras_nisp.channels.registry import registered
from keras_nisp.channels.tracing import InputShape
from keras_nisp.errors import reason_of, warn
from keras_nisp.functional.call_graphs import NotAGraphError, modes, one_graph, same
from keras_nisp.functional.equivalence import check_same, filled, masks_of, tensors_of
from keras_nisp.keras_graph import calling, copying, keras_layers, keras_models, walking
from keras_nisp.keras_graph.loading import loading_fault
from keras_nisp.keras_graph.masks import mask_of, set_mask
from keras_nisp.keras_graph.model_class import of_class
from keras_nisp.keras_graph.wrappers import is_wrapper

PROBE = 7  # batch size at which a call is traced that does not take an open one
MOST_NAMED = 3  # parts in an error
_LOCK = threading.RLock()  # Two threads must not add nodes to the same layers at a time.
# What a training run calls; a model class that has its own does something else in `fit`.
TRAINING_METHODS = ("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics")


def as_functional(
    model: keras.Model, inputs: Any = None, input_shape: InputShape | None = None
) -> keras.Model:
    """Writes a model out as a functional graph of layers whose channels can be followed.

    A subclassed model becomes a functional one, and every custom layer that is made of other
    layers and operations becomes a nested functional model of its name. What cannot be written
    out stays as it is: layers with weights of their own, with code that needs values, or that
    do something else in training.

    Args:
        model: any Keras model. It is not changed; the result shares its layers and weights.
        inputs: for a subclassed model: `keras.Input` (or a structure of them) like what it is
            called with.
        input_shape: shape of one sample (or a list of them), for models that leave sizes open
            and do not take any: the result is checked at these sizes.

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
    with _LOCK, warnings.catch_warnings():
        # What Keras says of nested models, which pass masks on nevertheless.
        warnings.filterwarnings("ignore", message=".*destroy the mask information")
        if keras_models.is_graph(model):
            keras_models.check_model(model)
            written = _write_graph(model, _open_sizes(input_shape, keras_models.body(model).inputs))
        else:
            written = _write_subclassed(model, inputs, input_shape)
    if written is not model:
        _warn_of_what_is_lost(model, written)
    return written


def _write_graph(model: keras.Model, sizes: list[int]) -> keras.Model:
    written = _Writer(sizes).graph(model)
    if written is not model:
        arguments = (keras_models.structured_inputs(model, keras_models.body(model).inputs),)
        try:
            check_same(written, model, arguments, {}, sizes)
        except Exception as error:
            raise ValueError(
                f"Model '{model.name}' cannot be converted to a functional graph: "
                f"{reason_of(error)}. (A layer that is not of Keras may give other shapes than it "
                "says.)"
            ) from error
    return written


def _write_subclassed(model: keras.Model, inputs: Any, input_shape) -> keras.Model:
    flat = keras.tree.flatten(inputs)
    if not flat or not all(isinstance(tensor, keras.KerasTensor) for tensor in flat):
        raise ValueError(
            f"Expected `inputs` for the subclassed model '{model.name}', such as "
            "`keras.Input((224, 224, 3))`: the shape of what it is called with. "
            f"Received: inputs={inputs!r}"
        )
    writer = _Writer(_open_sizes(input_shape, flat))
    written = writer.composite(model, (inputs,), {})
    if written is None:
        raise ValueError(
            f"Model '{model.name}' ({type(model).__name__}) cannot be converted to a functional "
            f"graph: {writer.reason(model)}. Build it from layers and `keras.ops` as "
            "`keras.Model(inputs, outputs)`."
        )
    return _structured(written, inputs, model)


def _structured(written: "_Written", inputs: Any, model: keras.Model) -> keras.Model:
    """A model that takes and gives what the subclassed model does, under the inputs' names."""
    others = [x for x in keras.tree.flatten(written.structure) if not _is_tensor(x)]
    if others:
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
        written.model,
        keras.tree.flatten(new),
        lambda node, args, kwargs: node.operation(*args, **kwargs),
    )
    outputs = keras.tree.pack_sequence_as(written.structure, keras.tree.flatten(outputs))
    return keras.Model(new, outputs, name=model.name)


def _warn_of_what_is_lost(model: keras.Model, written: keras.Model) -> None:
    """What a user would find out later: methods of `fit`, and files that do not load."""
    own = [m for m in TRAINING_METHODS if getattr(type(model), m) is not getattr(keras.Model, m)]
    if own and type(written) is not type(model):
        warn(
            f"Model '{model.name}' ({type(model).__name__}) has its own {', '.join(own)}: the "
            "functional model that it is converted to has those of `keras.Model`. Train it "
            "by a loop of yours, or put it into a model class that has them.",
        )
    fault = loading_fault(written)
    if fault is not None:
        warn(
            f"Model '{model.name}', converted to a functional graph, does not come back from a "
            f"`.keras` file: {fault}. Its weights can be kept alone (`save_weights`).",
        )


@dataclasses.dataclass(frozen=True)
class _Written:
    """A composite, converted.

    Attributes:
        model: takes the tensors of the composite's call, and gives those of its result.
        structure: the composite's result; what is no tensor in it stands as it is.
        masks: for each tensor of the result which of its arguments' masks it carries.
    """

    model: keras.Model
    structure: Any
    masks: list[int | None]

    def __call__(self, args, kwargs):
        settings = {"training": kwargs["training"]} if "training" in kwargs else {}
        tensors = tensors_of(args, kwargs)
        masks = masks_of(tensors)
        outputs = keras.tree.flatten(self.model(_single([*tensors, *masks]), **settings))
        for tensor, index in zip(outputs, self.masks, strict=True):
            if index is not None:
                set_mask(tensor, masks[index])
        pending = iter(outputs)
        return keras.tree.map_structure(
            lambda x: next(pending) if _is_tensor(x) else x, self.structure
        )


class _Writer:
    """Writes out composites; each of them once, so that what is shared stays shared.

    Args:
        sizes: which open axes may have.
    """

    def __init__(self, sizes: list[int]):
        self.sizes = sizes
        self.models: dict[int, tuple] = {}
        self.composites: dict[int, list[tuple[Any, _Written | None]]] = {}
        self.reasons: dict[int, tuple[str, keras.Layer]] = {}

    def graph(self, model: keras.Model) -> keras.Model:
        """A functional or sequential model with its composites converted."""
        if id(model) not in self.models:
            changed = False

            def visit(node, args, kwargs):
                nonlocal changed
                operation = node.operation
                if keras_models.is_graph(operation):
                    written = self.graph(operation)
                    changed |= written is not operation
                    return written(*args, **kwargs)
                written = self.call(operation, args, kwargs)
                changed |= written is not None
                return operation(*args, **kwargs) if written is None else written()

            inputs = copying.new_inputs(model, [t.shape for t in keras_models.body(model).inputs])
            outputs = walking.replay(model, inputs, visit)
            structure = keras_models.structured_inputs(model, inputs)
            written = of_class(model, structure, outputs, quiet=True) if changed else model
            self.models[id(model)] = written, model  # which stays alive, and its id with it
        return self.models[id(model)][0]

    def call(self, operation: keras.Operation, args, kwargs) -> Callable | None:
        """What to call in place of an operation, if that is a composite that can be converted."""
        if not (_is_composite(operation) and tensors_of(args, kwargs)):
            return None
        written = self.composite(operation, args, kwargs)
        return written and functools.partial(written, args, kwargs)

    def composite(self, layer: keras.Layer, args, kwargs) -> _Written | None:
        """A model that does what a layer does, or `None` (and a reason) if there is none."""
        variants = self.composites.setdefault(id(layer), [])
        described = _described(args, kwargs)
        for known, written in variants:
            if same(known, described):
                return written
        variants.append((described, None))  # a layer that calls itself is not converted
        place = len(variants) - 1
        written = self._written(layer, args, kwargs)
        variants[place] = described, written
        if written is not None and place:  # called with other shapes or settings, too
            written.model.name += f"_{place + 1}"
        return written

    def _written(self, layer, args, kwargs) -> _Written | None:
        """With an open batch size if that will do; else with one that is then opened."""
        reasons = []
        for batch in (None, PROBE):
            try:
                return self._write(layer, args, kwargs, batch)
            except NotAGraphError as error:
                reasons = [reason_of(error)]
                break
            except Exception as error:  # whatever code of users raises on symbolic tensors
                reasons.append(reason_of(error))
        first, *others = dict.fromkeys(reasons)
        at_probe = "".join(f" (traced at a batch of {PROBE}: {other})" for other in others)
        self.reasons[id(layer)] = first + at_probe, layer
        return None

    def reason(self, layer: keras.Layer) -> str:
        """Why a layer could not be converted, and the parts of it that could not be."""
        parts = [
            f"'{part.name}' ({type(part).__name__}) in it cannot be either: {reason}"
            for reason, part in self.reasons.values()
            if part is not layer
        ]
        return "; ".join([self.reasons[id(layer)][0], *parts[:MOST_NAMED]])

    def _write(self, layer, args, kwargs, batch) -> _Written:
        kwargs = {k: v for k, v in kwargs.items() if k != "training"}
        if not layer.built:
            _build(layer, args, kwargs)
        inference, _ = self._trace(layer, args, kwargs, batch, training=False)
        training, structure = self._trace(layer, args, kwargs, batch, training=True)
        in_mode = modes(inference, training)
        tensors = tensors_of(args, kwargs)
        masks = [tensor for tensor in training.inputs[len(tensors) :]]
        batches = [tensor.shape[0] for tensor in (*tensors, *masks_of(tensors))]
        inputs, outputs = one_graph(training, in_mode, batches, batch)
        model = keras.Model(_single(inputs), outputs, name=layer.name)
        _check_weights(model, layer)
        check_same(model, layer, args, kwargs, self.sizes)
        carried = [_index(mask_of(x), masks) for x in tensors_of(structure, {})]
        return _Written(model, structure, carried)

    def _trace(self, layer, args, kwargs, batch, training) -> tuple[keras.Function, Any]:
        """The graph that a layer's `call` makes of symbolic tensors and their masks, and its
        whole result."""

        def call(part, proceed, args, kwargs):
            written = None if part is layer else self.call(part, args, kwargs)
            return proceed(part, *args, **kwargs) if written is None else written()

        tensors = tensors_of(args, kwargs)
        inputs = [_input(tensor, batch) for tensor in tensors]
        cast = [calling.as_layer_takes_it(layer, tensor) for tensor in inputs]
        for tensor, like in zip(cast, tensors, strict=True):
            if mask_of(like) is not None:
                set_mask(tensor, _input(mask_of(like), batch))
        masks = masks_of(cast)
        args, kwargs = filled(args, kwargs, cast)
        if keras_layers.takes_training(layer):
            kwargs |= {"training": training}
        if len(cast) == len(masks) == 1 and calling.takes(layer, "mask"):
            kwargs = {"mask": masks[0], **kwargs}  # as Keras would
        watched = calling.intercepted_calls(call)
        with watched, calling.mode(training), calling.noted_updates() as noted:
            result = layer.call(*args, **kwargs)
        if noted:
            raise NotAGraphError(f"its call changes {noted[0]}")
        return keras.Function([*inputs, *masks], tensors_of(result, {})), result


def _input(like: keras.KerasTensor, batch: int | None) -> keras.KerasTensor:
    shape = (like.shape[0] or batch, *like.shape[1:])
    return keras.Input(batch_shape=shape, dtype=like.dtype)


def _index(value, values: list) -> int | None:
    return next((i for i, x in enumerate(values) if x is value), None)


def _check_weights(model: keras.Model, layer: keras.Layer) -> None:
    for kind in ("weights", "trainable_weights"):
        own = {id(weight): weight.path for weight in getattr(layer, kind)}
        others = {id(weight): weight.path for weight in getattr(model, kind)}
        missing = [path for key, path in own.items() if key not in others]
        added = [path for key, path in others.items() if key not in own]
        if missing or added:
            raise NotAGraphError(
                f"it has {kind.replace('_', ' ')} that are not those of the layers it calls: "
                f"'{(missing or added)[0]}'"
            )


def _build(layer, args, kwargs) -> None:
    """Lets a layer make its weights, if a symbolic call does; else its parts do when traced."""
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        layer(*args, **kwargs)


def _is_composite(operation) -> bool:
    """Whether something is a layer without a rule, which may be made of others."""
    rule = registered(type(operation))
    known = keras_models.is_graph(operation) or (
        rule is not None and not getattr(rule, "warns", False)
    )
    return isinstance(operation, keras.Layer) and not known and not is_wrapper(operation)


def _single(values: list) -> Any:
    return values[0] if len(values) == 1 else values


def _is_tensor(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


def _described(args, kwargs) -> Any:
    """The shapes and settings of a call, but for `training`."""
    kwargs = {key: value for key, value in kwargs.items() if key != "training"}
    return keras.tree.map_structure(
        lambda x: (x.shape, x.dtype, mask_of(x) is not None) if _is_tensor(x) else x,
        (args, kwargs),
    )


def _open_sizes(input_shape, tensors: list) -> list[int]:
    """The sizes that `input_shape` gives to axes that inputs leave open."""
    if input_shape is None:
        return []
    several = len(tensors) > 1 or keras.tree.is_nested(input_shape[0])
    shapes = list(input_shape) if several else [input_shape]
    declared = [tuple(tensor.shape[1:]) for tensor in tensors]
    fits = [len(shape) for shape in shapes] == [len(shape) for shape in declared] and all(
        isinstance(size, int) and size > 0 and known in (None, size)
        for shape, sizes in zip(declared, shapes, strict=True)
        for known, size in zip(shape, sizes, strict=True)
    )
    if not fits:
        raise ValueError(
            f"Expected `input_shape` to fit inputs of the shapes {declared} (without the batch "
            f"axis). Received: input_shape={input_shape!r}"
        )
    pairs = zip(keras.tree.flatten(declared), keras.tree.flatten(shapes), strict=True)
    return [size for known, size in pairs if known is None]
