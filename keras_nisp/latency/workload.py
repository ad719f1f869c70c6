"""What a layer computes at given widths: enough to build that layer alone, and to recognize it."""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.cost import CostModel
from keras_nisp.channels.named_tensor import Traced
from keras_nisp.channels.registry import rule_of
from keras_nisp.channels.unit_map import resized_arguments
from keras_nisp.keras_graph import calling, copying

Shape = tuple[int, ...]

# Parts of a config that have nothing to do with time.
NAMELESS = ("name", "trainable", "dtype", "seed", "module", "registered_name", "build_config")
PASSING = ("initializer", "regularizer", "constraint")


@dataclasses.dataclass(frozen=True, eq=False)
class Workload:
    """One call of one layer at given widths.

    Attributes:
        path: path of the layer; not a part of `key`.
        kind: name of the layer's class.
        settings: config of the layer, without entries that do not affect time, such as names.
        inputs: shapes of the input tensors, with the batch axis.
        elements: number of output values.
        flops: number of multiply-adds.
        build: returns a function of the input tensors that computes the layer, with new weights.
    """

    path: str
    kind: str
    settings: dict
    inputs: tuple[Shape, ...]
    elements: int
    flops: int
    build: Callable[[], Callable]

    @functools.cached_property
    def key(self) -> str:
        """A text that is equal for workloads that take the same time, in any model."""
        settings = json.dumps(self.settings, sort_keys=True, default=_title)
        return f"{self.kind} {' '.join(map(str, self.inputs))} {settings}"


def layer_workload(layer: keras.Layer, inputs: tuple[Shape, ...], flops: int = 0) -> Workload:
    """The workload of a layer that is not yet built and takes its inputs one by one."""
    outputs = layer.compute_output_shape(*inputs)
    settings = _settings(copying.layer_config(layer))
    elements = int(np.prod(outputs))
    kind = type(layer).__name__
    return Workload(layer.name, kind, settings, inputs, elements, flops, lambda: layer)


class Workloads:
    """The workloads of a model, as a function of which units are kept.

    What the runtime computes inside of another kernel is none: BatchNormalization and ReLU behind
    a kernel, zero padding before a convolution, and what does nothing at inference.

    Args:
        channel_map: the traced model.
    """

    def __init__(self, channel_map: ChannelMap):
        self._costs = CostModel(channel_map)
        self._rows: list[tuple[Call, tuple, dict]] = []
        channel_map.walk(channel_map.inputs, self._note)
        paths = [call.path for call, _, _ in self._rows]
        self._calls = {path: paths.count(path) for path in set(paths)}
        self._fused = _fused_calls(channel_map, [(call, _tensors(a)) for call, *a in self._rows])

    def _note(self, call, args, kwargs):
        self._rows.append((call, args, kwargs))
        return call.outputs

    def __call__(self, keep: np.ndarray) -> list[Workload]:
        """The remaining workloads if only the units of the boolean array are kept."""
        costs = self._costs.layers(keep)
        return [
            self._workload(call, args, kwargs, keep, costs[call.path].flops)
            for call, args, kwargs in self._rows
            if call not in self._fused
        ]

    def _workload(self, call, args, kwargs, keep, flops) -> Workload:
        def positions(units):
            return np.flatnonzero(keep[units])

        def width(units):
            return int(np.count_nonzero(keep[units]))

        config = copying.layer_config(call.layer)
        if not all(keep[tensor.names].all() for tensor in (*call.inputs, *call.outputs)) or any(
            not keep[units].all() for units in call.hidden.values()
        ):
            config = call.ask("resize", config, width)
        return Workload(
            call.path,
            type(call.layer).__name__,
            _settings(config),
            tuple(_shape(tensor, width) for tensor in _tensors((args, kwargs))),
            sum(int(np.prod(_shape(tensor, width))) for tensor in call.outputs),
            flops // self._calls[call.path],
            lambda: _computation(call, config, args, kwargs, positions),
        )


def _computation(call, config, args, kwargs, positions) -> Callable:
    """A function of tensors that calls a new layer as the call does."""
    before = copying.layer_config(call.layer)
    layer = copying.copy_layer(call.layer, **copying.changes(before, _buildable(config)))

    def compute(*tensors):
        values = iter(tensors)
        given, named = keras.tree.map_structure(
            lambda x: next(values) if isinstance(x, Traced) else x, (args, kwargs)
        )
        new_args, new_kwargs = resized_arguments(call, given, named, positions)
        return calling.infer(layer, *new_args, **new_kwargs)

    return compute


def _tensors(arguments: Any) -> list[Traced]:
    return [x for x in keras.tree.flatten(arguments) if isinstance(x, Traced)]


def _shape(tensor: Traced, width: Callable) -> Shape:
    """A tensor's shape after a removal, with the batch axis."""
    sizes = zip(tensor.names.shape, tensor.shape, strict=True)
    kept = [width(tensor.line(i)) if n > 1 else size for i, (n, size) in enumerate(sizes)]
    return (*kept[: tensor.batch_axis], tensor.batch, *kept[tensor.batch_axis :])


def _settings(config: Any) -> Any:
    """A config without what changes no time, so that equal work has equal keys."""
    if isinstance(config, dict):
        known = {k: v for k, v in config.items() if k not in NAMELESS and not k.endswith(PASSING)}
        return {k: _settings(v) for k, v in known.items() if v is not None and v is not False}
    return [_settings(v) for v in config] if isinstance(config, (list, tuple)) else config


def _buildable(config: Any) -> Any:
    """A config that gives quick, ordinary weights (no zeros, which might be computed faster)."""
    if isinstance(config, dict):
        return {k: _quick(k, v) for k, v in config.items() if k != "build_config"}
    return [_buildable(v) for v in config] if isinstance(config, list) else config


def _quick(key: str, value: Any) -> Any:
    if key == "dtype":
        return "float32"
    if key.endswith("initializer") and value is not None:
        return keras.initializers.serialize(keras.initializers.RandomUniform(0.01, 1.0, seed=0))
    return None if key.endswith(PASSING) else _buildable(value)


def _title(value: Any) -> str:
    return getattr(value, "__name__", type(value).__name__)


def _fused_calls(channel_map: ChannelMap, rows: list[tuple[Call, list[Traced]]]) -> set[Call]:
    """Calls that the runtime computes inside of their neighbors."""
    kernels = {b.layer for b in channel_map.bindings.values() if b.positions}
    makers = {id(tensor): call for call, _ in rows for tensor in call.outputs}
    readers: dict[int, list[Call]] = {}
    for call, tensors in rows:
        for tensor in tensors:
            readers.setdefault(id(tensor), []).append(call)
    fused = set()
    for call, tensors in rows:
        maker = makers.get(id(tensors[0])) if tensors else None
        read_by = readers.get(id(call.outputs[0]), [])
        if _is_fused(call, maker, read_by, kernels):
            fused.add(call)
    return fused


def _is_fused(call: Call, maker: Call | None, readers: list[Call], kernels: set[str]) -> bool:
    rule = rule_of(call.layer)
    if rule.idle:
        return True
    if rule.pads and call.inputs[0].rank == 3:  # images
        return bool(readers) and all(rule_of(reader.layer).convolves for reader in readers)
    behind_kernel = maker is not None and maker.path in kernels
    if rule.normalisation(call.layer):
        return behind_kernel
    if maker is None or not rule.clamps(call.layer):
        return False
    made = rule_of(maker.layer)
    joined = made.elementwise and made.does == "joins"
    return behind_kernel or joined or made.normalisation(maker.layer) is not None
