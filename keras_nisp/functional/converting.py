"""Converts layers that are made of others, and models around them, to functional graphs."""

import contextlib
import functools
import warnings
from collections.abc import Callable
from typing import Any

import keras

from keras_nisp.channels.registry import registered, rule_of
from keras_nisp.errors import ReasonError, reason_of
from keras_nisp.functional.batch_axis import PROBE, places_of, rows_of, with_open_batch
from keras_nisp.functional.call_graphs import Weights, modes, one_graph, same
from keras_nisp.functional.converted import Constants, Converted, Kept, single
from keras_nisp.functional.equivalence import check_same, filled, masks_of, tensors_of
from keras_nisp.functional.moved_batch import (
    NotAGraphError,
    batch_of,
    is_tensor,
    rows_for_each_sample,
    shape_batch_first,
    tensor_of,
)
from keras_nisp.keras_graph import (
    calling,
    copying,
    keras_layers,
    keras_models,
    symbolic,
    walking,
)
from keras_nisp.keras_graph.masks import mask_of, set_mask
from keras_nisp.keras_graph.model_class import of_class
from keras_nisp.keras_graph.weight_layers import WeightLayers
from keras_nisp.keras_graph.wrappers import is_wrapper

Shapes = tuple[tuple[int | None, ...], ...]  # of a model's inputs, with the batch axis


class NeedsBatchError(ReasonError):
    """A call that can be converted at a batch size alone."""


class Converter:
    """Converts composites; each of them once, so that what is shared stays shared.

    Args:
        sizes: which open axes may have.
        batch: the batch size of the whole, `None` if it is open.
        lookups: whether constant indices become a row for each sample, so that what is looked up
            shows in the graph. Wrong where a layer's first axis is not that of samples.
        whole: layers that are to stay as they are, by their `id`, and why.

    Attributes:
        kept: the layers that could not be converted, by their `id`.
        lost: those that were converted without the losses that they add in training.
    """

    def __init__(
        self,
        sizes: list[int],
        batch: int | None,
        lookups: bool = True,
        whole: dict[int, Kept] | None = None,
    ):
        self.sizes, self.batch, self.lookups = sizes, batch, lookups
        self.whole = whole or {}
        self.looked_up: set[int] = set()  # layers in which indices became rows
        self.models: dict[tuple, tuple] = {}
        self.composites: dict[int, tuple[keras.Layer, list[tuple]]] = {}
        self.kept: dict[int, Kept] = {}
        self.lost: dict[int, keras.Layer] = {}
        self.weight_layers = WeightLayers()

    def graph(self, model: keras.Model, shapes: Shapes) -> keras.Model:
        """A functional or sequential model with its composites converted.

        Args:
            model: the model.
            shapes: of what it is called with. Axes that the model leaves open stay open, unless
                a layer can be converted only where they are known.
        """
        own = tuple(tuple(tensor.shape) for tensor in keras_models.body(model).inputs)
        known = tuple(
            tuple(n if n is not None else m for n, m in zip(mine, theirs, strict=True))
            for mine, theirs in zip(own, shapes, strict=True)
        )
        converted, kept = self.noted(self._graph, model, own)
        if kept and known != own:
            closed, fewer = self.noted(self._graph, model, known)
            if kept.keys() - fewer.keys():
                converted = closed
            kept = fewer  # whose reasons are not that sizes are open
        self.kept |= kept
        return converted

    def noted(self, write: Callable, *args) -> tuple[Any, dict[int, Kept]]:
        """What a function gives, and the layers that it could not convert."""
        before, self.kept = self.kept, {}
        try:
            return write(*args), self.kept
        finally:
            self.kept = before

    def _graph(self, model: keras.Model, shapes: Shapes) -> keras.Model:
        key = id(model), shapes
        if key not in self.models:
            changed = False

            def visit(node, args, kwargs):
                nonlocal changed
                try:
                    converted = self.call(node.operation, args, kwargs)
                except NeedsBatchError as error:
                    converted = None
                    self.kept[id(node.operation)] = Kept(node.operation, reason_of(error))
                if converted is None:
                    return symbolic.called_for_files(node.operation, args, kwargs)
                changed = True
                return converted()

            inputs = copying.new_inputs(model, list(shapes))
            outputs, kept = self.noted(walking.replay, model, inputs, visit)
            structure = keras_models.structured_inputs(model, inputs)
            converted = of_class(model, structure, outputs, quiet=True) if changed else model
            self.models[key] = converted, kept, model  # which stays alive, and its id with it
        converted, kept, _ = self.models[key]
        self.kept |= kept
        return converted

    def call(
        self, operation: keras.Operation, args, kwargs, probe: int | None = None
    ) -> Callable | None:
        """What to call in place of an operation, if that can be converted and need be.

        Args:
            operation: the layer or operation.
            args, kwargs: of the call.
            probe: the batch size of the call that is to be opened, if there is one.
        """
        if not tensors_of(args, kwargs):
            return None
        rows = probe and rows_of(tensors_of(args, kwargs), probe)
        described = keras.tree.map_structure(lambda x: with_open_batch(x, rows), (args, kwargs))
        tensors = tensors_of(*described)
        if keras_models.is_graph(operation):
            converted = self.graph(operation, tuple(tuple(tensor.shape) for tensor in tensors))
            return (
                functools.partial(converted, *args, **kwargs)
                if converted is not operation
                else None
            )
        composite = _is_composite(operation)
        opened, settings = described
        converted = self.composite(operation, opened, settings, rows) if composite else None
        if probe is None and isinstance(converted, Constants) and converted.has_rows:
            raise NeedsBatchError("it gives constants for each sample")
        return converted and functools.partial(converted, args, kwargs)

    def composite(
        self, layer: keras.Layer, args, kwargs, rows: int | None = None
    ) -> Converted | Constants | None:
        """A model that does what a layer does, or `None` (and a reason) if there is none.

        Args:
            layer: made of others.
            args, kwargs: of its call.
            rows: a batch size at which it is called, if that is open.
        """
        if id(layer) in self.whole:
            self.kept[id(layer)] = self.whole[id(layer)]
            return None
        _, variants = self.composites.setdefault(id(layer), (layer, []))
        described = _described(args, kwargs)
        for (known, *tried), converted, kept in variants:
            if same(known, described) and (converted or rows in (None, PROBE, *tried)):
                self.kept |= kept
                return converted
        itself = {id(layer): Kept(layer, "it calls itself")}
        variants.append(((described, rows), None, itself))
        place = len(variants) - 1
        with calling.apart():  # from the trace of a layer around this one
            converted, kept = self.noted(self._converted, layer, args, kwargs, rows)
        variants[place] = (described, rows), converted, kept
        self.kept |= kept
        if isinstance(converted, Converted):  # until `number_calls`: the layer itself may stay
            converted.model.name = f"{layer.name}_in_call_{place + 1}"
        return converted

    def _converted(self, layer, args, kwargs, rows) -> Converted | Constants | None:
        """With an open batch size if that will do; else with one that is then opened; else
        without `rows_for_each_sample`. Layers with weights that a rule follows stay as they are."""
        kwargs = {k: v for k, v in kwargs.items() if k != "training"}
        if not layer.built:  # else its parts make their weights when traced; what fails does again
            with warnings.catch_warnings(), contextlib.suppress(Exception):
                warnings.simplefilter("ignore")
                layer(*args, **kwargs)
        if keras_layers.own_weights(layer) and not rule_of(layer).warns:
            return None
        batches = dict.fromkeys((None, PROBE, rows or PROBE))
        without_lookups = [(batch, False) for batch in batches if batch]
        for batch, lookups in [*((batch, True) for batch in batches), *without_lookups]:
            if not lookups and id(layer) not in self.looked_up:
                break  # it would be the same again
            self.kept, lost = {}, dict(self.lost)
            try:
                return self._convert(layer, args, kwargs, batch, lookups and self.lookups)
            except NotAGraphError as error:
                self.lost, reason = lost, reason_of(error)
                break
            except Exception as error:  # whatever code of users raises on symbolic tensors
                # The last is told: an earlier one may come of the batch size that was left open.
                self.lost, reason = lost, calling.with_advice(reason_of(error))
        self.kept[id(layer)] = Kept(layer, reason)
        return None

    def _convert(self, layer, args, kwargs, batch, lookups) -> Converted | Constants:
        with calling.noted_reads() as read:
            traces = [(layer, args, kwargs, batch, lookups, mode) for mode in (False, True)]
            results = [self._trace(*given) for given in traces]
        if not all(tensors_of(result, {}) for _, result in results):
            return _constants(layer, [result for _, result in results], batch)
        inference, training = (keras.Function(x, tensors_of(y, {})) for x, y in results)
        structure = results[1][1]
        in_mode = modes(inference, training)
        tensors, weights = tensors_of(args, kwargs), self._weights(layer)
        masks = training.inputs[len(tensors) : len(training.inputs) - len(weights.own)]
        takes = places_of(tensors, self.batch)
        given = [shape_batch_first(x.shape, place) for x, place in zip(tensors, takes, strict=True)]
        batches = [shape[0] for shape in (*given, *(mask.shape for mask in masks_of(tensors)))]
        at = [*takes, *[0] * len(masks)]
        inputs, outputs = one_graph(training, in_mode, batches, at, batch, weights)
        places = list(map(batch_of, outputs))
        if None in places:
            raise NotAGraphError("it gives something that follows from its weights alone")
        model = keras.Model(single(inputs), _apart_from(inputs, outputs), name=layer.name)
        _check_weights(model, layer, read)
        carried = [_index(mask_of(x), masks) for x in tensors_of(structure, {})]
        converted = Converted(model, structure, carried, places, takes)
        lost = self.lost.values()
        check_same(model, layer, args, kwargs, self.sizes, structure, places, takes, lost)
        return converted

    def _weights(self, layer: keras.Layer) -> Weights:
        own = keras_layers.own_weights(layer)
        known = set(map(id, own))
        parts = [weight for weight in _trained(layer) if id(weight) not in known]
        return Weights(own, parts, self.weight_layers, layer.dtype_policy)

    def _trace(self, layer, args, kwargs, batch, lookups, training) -> tuple[list, Any]:
        """Symbolic tensors like those of a call, and their masks, and what a layer makes of
        them."""

        def call(part, proceed, args, kwargs):
            if part is layer:
                return proceed(part, *args, **kwargs)
            looks_up = isinstance(part, keras.layers.Embedding) and len(args) == 1
            if lookups and looks_up and like is not None:
                args = (rows_for_each_sample(args[0], like),)
                self.looked_up.add(id(layer))
            symbolic.as_dense(args, kwargs)
            converted = self.call(part, args, kwargs, batch)
            if converted is None:
                return symbolic.with_known_sizes(part, args, kwargs, proceed(part, *args, **kwargs))
            return converted()

        tensors = tensors_of(args, kwargs)
        places = places_of(tensors, self.batch)
        inputs = [_input(x, batch, place) for x, place in zip(tensors, places, strict=True)]
        like = next((x for x, place in zip(inputs, places, strict=True) if not place), None)
        cast = [calling.as_layer_takes_it(layer, tensor) for tensor in inputs]
        for tensor, given in zip(cast, tensors, strict=True):
            if mask_of(given) is not None:
                set_mask(tensor, _input(mask_of(given), batch, 0))
        masks = masks_of(cast)
        args, kwargs = filled(args, kwargs, cast)
        if keras_layers.takes_training(layer):
            kwargs |= {"training": training}
        if len(cast) == len(masks) == 1 and calling.takes(layer, "mask"):
            kwargs = {"mask": masks[0], **kwargs}  # as Keras would
        with (
            calling.intercepted_calls(call),
            calling.like_arrays(),
            calling.mode(training),
            calling.noted_updates() as noted,
            calling.symbolic_weights(layer) as own,
            calling.without_losses(layer) as losses,
        ):
            result = layer.call(*args, **kwargs)
        if losses and not training:
            raise NotAGraphError("it adds to the loss (`add_loss`) in inference, too")
        if losses:
            self.lost[id(layer)] = layer
        if noted:
            raise NotAGraphError(f"its call changes {noted[0]}")
        return [*inputs, *masks, *own], result


def _constants(layer: keras.Layer, results: list, probe: int | None) -> Constants:
    """What stands for a call whose result is not symbolic."""
    if _trained(layer):
        raise NotAGraphError("what it gives follows from its weights and from no input")
    if not same(*results):
        raise NotAGraphError("it does something else in training: it gives other constants there")
    arrays = [x for x in keras.tree.flatten(results) if keras.ops.is_tensor(x)]
    return Constants(results[0], any(tuple(x.shape[:1]) == (probe,) for x in arrays))


def _input(like: keras.KerasTensor, batch: int | None, place: int) -> keras.KerasTensor:
    shape = list(like.shape)
    if shape:
        shape[place] = shape[place] or batch
    return keras.Input(batch_shape=shape, dtype=like.dtype)


def _apart_from(inputs: list, outputs: list) -> list:
    """The tensors of outputs, copied where they are inputs: Keras would take a model that gives
    what it gets for a cycle, where it is called at other sizes."""
    given = set(map(id, inputs))
    return [keras.ops.copy(x) if id(x) in given else x for x in map(tensor_of, outputs)]


def _index(value, values: list) -> int | None:
    return next((i for i, x in enumerate(values) if x is value), None)


def _trained(layer: keras.Layer) -> list[keras.Variable]:
    """The weights of a layer for which no constant may stand."""
    fixed = {id(weight) for weight in keras_layers.fixed_weights(layer)}
    return [weight for weight in layer.weights if id(weight) not in fixed]


def _check_weights(model: keras.Model, layer: keras.Layer, read: set[int]) -> None:
    """Raises unless a graph has the weights whose values its layer read, and no others."""
    trained = {id(weight) for weight in _trained(layer)} & read
    for kind in ("weights", "trainable_weights"):
        own = {id(weight): weight.path for weight in getattr(layer, kind)}
        others = {id(weight): weight.path for weight in getattr(model, kind)}
        missing = [path for key, path in own.items() if key in trained and key not in others]
        added = [path for key, path in others.items() if key not in own]
        if missing:
            raise NotAGraphError(
                f"it has {kind.replace('_', ' ')} of its own, such as "
                f"'{missing[0].rpartition('/')[2]}', whose values it computes with elsewhere"
            )
        if added:
            raise NotAGraphError(
                f"the graph has {kind.replace('_', ' ')} that the layer does not own: {added}"
            )


def _is_composite(operation) -> bool:
    """Whether something is a layer without a rule, which may be made of others."""
    rule = registered(type(operation))
    known = keras_models.is_graph(operation) or (
        rule is not None and not getattr(rule, "warns", False)
    )
    return isinstance(operation, keras.Layer) and not known and not is_wrapper(operation)


def _described(args, kwargs) -> Any:
    """The shapes and settings of a call, but for `training`."""
    kwargs = {key: value for key, value in kwargs.items() if key != "training"}
    return keras.tree.map_structure(
        lambda x: (x.shape, x.dtype, mask_of(x) is not None) if is_tensor(x) else x,
        (args, kwargs),
    )
