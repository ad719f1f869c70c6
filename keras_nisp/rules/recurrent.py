"""Recurrent layers: hidden units are channels."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_nisp.channels.named_tensor import Traced
from keras_nisp.channels.registry import register_rule
from keras_nisp.channels.rule import PlainKernel, Rule, absolute, positions, spread
from keras_nisp.keras_graph import keras_layers
from keras_nisp.rules.activation import activated

# How many gates of a cell lie side by side in its kernels.
GATES = {
    layers.SimpleRNNCell: 1,
    layers.GRUCell: 3,
    layers.LSTMCell: 4,
    keras_layers.ConvLSTMCell: 4,
}


@register_rule(
    layers.RNN,
    layers.SimpleRNN,
    layers.GRU,
    layers.LSTM,
    layers.ConvLSTM1D,
    layers.ConvLSTM2D,
    layers.ConvLSTM3D,
)
class Recurrent(Rule):
    """All gates of a unit, and the recurrent weights that read it, are removed together.

    In the absolute network the state is the mean of the inputs over time as all gates read it, plus
    that state read through the recurrent kernel once: one step back in time.
    """

    does = "creates"

    def trace(self, call, x, initial_state=None, mask=None):
        cells = _cells(call.layer)
        if any(type(cell) not in GATES for cell in cells):
            return call.fix_all("whose cell is not one of Keras", unknown=True)
        axis = _channel_axis(call.layer, x.rank)
        names, states = call.along(x, axis), []
        for index, cell in enumerate(cells):
            label = f":{index}" if len(cells) > 1 else ""
            names = self._bind_cell(call, cell, names, label)
            states += [names] * len(np.atleast_1d(_state_size(cell)))
        given = keras.tree.flatten(initial_state) + keras.tree.flatten(
            getattr(call.layer, "states", None)
        )
        for index, state in enumerate(s for s in given if s is not None):
            own = states[index % len(states)]
            if isinstance(state, Traced):
                call.join(own, call.along(state, _channel_axis(call.layer, state.rank)))
            elif isinstance(state, keras.Variable):
                call.bind(state, own={_channel_axis(call.layer, len(state.shape) - 1) + 1: own})
            else:
                return call.fix_all("whose initial state is a constant")
        lines = [names, *states]
        ranks = [len(shape) for shape in call.output_shapes]
        return [
            spread(line, _channel_axis(call.layer, rank), rank)
            for line, rank in zip(lines, ranks, strict=False)
        ]

    def _bind_cell(self, call, cell, inputs, label) -> np.ndarray:
        """Binds a cell's kernels and gives the names of its units."""
        names = call.hidden[f"units{label}"] = call.create(_units(cell), label)
        gates = np.tile(names, GATES[type(cell)])
        state = call.output_shapes[0][1 - call.inputs[0].rank :] if _is_map(cell) else names.shape
        axis = _channel_axis(call.layer, len(state))
        applied = call.inputs[0].shape[0] * positions(state, axis)
        call.bind(cell.kernel, read={-2: inputs}, create={-1: gates}, positions=applied)
        call.bind(cell.recurrent_kernel, read={-2: names}, own={-1: gates}, positions=applied)
        call.bind(cell.bias, own={-1: gates})
        for key in ("activation", "recurrent_activation"):
            activated(call, spread(names, axis, len(state)), state, key, cell)
        return names

    def plain_kernels(self, layer):
        cell = _cells(layer)[0]  # the others read the states of the one before
        if type(cell) not in GATES or _is_map(cell):
            return []
        return [PlainKernel(cell.kernel, cell.bias, gives=False)]

    def resize(self, call, config, width):
        if "cell" not in config:
            return _resize_cell(config, width(call.hidden["units"]))
        configs = [config["cell"]["config"]]
        if isinstance(call.layer.cell, layers.StackedRNNCells):
            configs = [entry["config"] for entry in configs[0]["cells"]]
        for entry, names in zip(configs, call.hidden.values(), strict=True):
            _resize_cell(entry, width(names))
        return config

    def absolute(self, call, x, initial_state=None, mask=None):
        layer, cells = call.layer, _cells(call.layer)
        first = getattr(layer, "data_format", None) == "channels_first"
        given = [s for s in keras.tree.flatten(initial_state) if s is not None]
        x = tf.reduce_mean(x, 1)
        x = _channels_last(x) if first else x
        states = []
        for cell, label in zip(cells, call.hidden, strict=True):
            count = len(np.atleast_1d(_state_size(cell)))
            own, given = given[:count], given[count:]
            state = _read(cell, x, cell.kernel, _settings(cell))
            for start in own:
                state = state + (_channels_last(start) if first else start)
            back = call.tap(label, state, -1)
            x = state + _read(cell, back, cell.recurrent_kernel, {"padding": "same"})
            states += [x] * count
        outputs = []
        for tensor, out in zip([x, *states], call.outputs, strict=False):
            tensor = _channels_first(tensor) if first else tensor
            if len(out.shape) == len(tensor.shape):
                tensor = tensor[:, None]
            outputs.append(tf.broadcast_to(tensor, (tensor.shape[0], *out.shape)))
        return outputs


def _cells(layer) -> list:
    cell = layer.cell
    return list(cell.cells) if isinstance(cell, layers.StackedRNNCells) else [cell]


def _is_map(cell) -> bool:
    """Whether a cell's states are feature maps."""
    return isinstance(cell, keras_layers.ConvLSTMCell)


def _units(cell) -> int:
    return cell.filters if _is_map(cell) else cell.units


def _state_size(cell):
    """One entry for each state; those of convolutional cells are shapes or counts of channels."""
    return [0, 0] if _is_map(cell) else cell.state_size


def _resize_cell(config: dict, units: int) -> dict:
    config["filters" if "filters" in config else "units"] = units
    return config


def _channel_axis(layer, rank: int) -> int:
    """The channel axis of a state or a sequence, batch axis not counted."""
    if getattr(layer, "data_format", None) != "channels_first":
        return rank - 1
    spatial = layer.rank
    return rank - spatial - 1


def _settings(cell) -> dict:
    if not _is_map(cell):
        return {}
    return {
        "strides": tuple(cell.strides),
        "padding": cell.padding,
        "dilation_rate": tuple(cell.dilation_rate),
    }


def _read(cell, x, kernel, settings):
    """What all gates of each unit read, by absolute weights."""
    weights = absolute(kernel)
    shape = weights.shape.as_list()
    gates = GATES[type(cell)]
    weights = tf.reduce_sum(tf.reshape(weights, [*shape[:-1], gates, shape[-1] // gates]), -2)
    if not _is_map(cell):
        return tf.matmul(x, weights)
    return keras.ops.conv(x, weights, data_format="channels_last", **settings)


def _channels_last(x):
    return tf.transpose(x, [0, *range(2, len(x.shape)), 1])


def _channels_first(x):
    return tf.transpose(x, [0, len(x.shape) - 1, *range(1, len(x.shape) - 1)])
