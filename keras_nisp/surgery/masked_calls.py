"""Layers that mix or add up channels, while they leave out what is removed."""

import contextlib
import contextvars
import copy
import inspect
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.rule import meaningful
from keras_nisp.keras_graph import walking
from keras_nisp.keras_graph.arguments import arranged

_PLAIN = contextvars.ContextVar("plain_calls", default=False)


@contextlib.contextmanager
def plain_calls() -> Iterator[None]:
    """While this lasts, layers compute what they would without masks."""
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


class MaskedCalls:
    """Lets calls that mix or add up channels compute what their rules call `masked`.

    A layer that takes a mean over its channels gives something else when some are zero than when
    they are gone. Until `remove`, the `call` of such a layer or operation (an attribute of the one
    instance) leaves out what variables say is removed: in train steps, `evaluate`, `predict` and
    exports that are compiled meanwhile. Configs, and so files and copies, know nothing of it.

    Attributes:
        unheld: calls that cannot be masked so: a layer that is called on channels of several
            kinds, of the same rank, has one `call` for all of them.
    """

    def __init__(self, channel_map: ChannelMap):
        self.calls: list[tuple[Call, list[keras.Variable]]] = []
        self.unheld: list[Call] = []
        by_layer: dict[int, list[Call]] = {}
        for call in channel_map.calls:
            by_layer.setdefault(id(call.layer), []).append(call)
        for calls in by_layer.values():
            mixing = [call for call in calls if _mixes(call, channel_map.free)]
            if not mixing:
                continue
            first, others = mixing[0], [call for call in calls if call not in mixing]
            same = all(_same_channels(call, first) for call in mixing)
            plain = [_ranks(call) for call in others]
            if same and _ranks(first) not in plain:
                self._hold(first, plain)
            else:
                self.unheld += mixing

    def _hold(self, call: Call, plain: list[list[int]]) -> None:
        release(call.layer)  # what an interrupted `fit` left behind
        keep = [
            keras.Variable(np.ones((1, *t.names.shape)), trainable=False, dtype="float32")
            for t in call.mixed
        ]
        self.calls.append((call, keep))
        call.layer.call = _Masked(call, keep, plain)

    def update(self, removed: np.ndarray) -> None:
        """Leaves out what is removed, from now on."""
        for call, keep in self.calls:
            for tensor, variable in zip(call.mixed, keep, strict=True):
                variable.assign(~removed[tensor.names][None])

    def held(self, removed: np.ndarray) -> list[str]:
        """Paths of the layers that leave out some of these units."""
        return _touched([call for call, _ in self.calls], removed)

    def not_held(self, removed: np.ndarray) -> list[str]:
        """Paths of the layers in which some of these units count all the same."""
        return _touched(self.unheld, removed)

    def remove(self) -> None:
        """Gives the layers their own `call` back."""
        for call, _ in self.calls:
            release(call.layer)


def release(layer: keras.Operation) -> None:
    """Gives a layer its own `call` back, if another one is in its place."""
    if isinstance(vars(layer).get("call"), _Masked):
        proceed = layer.call.proceed
        del layer.call
        if layer.call != proceed:
            layer.call = proceed  # the user had put one there, too


class _Masked:
    """The `call` of a layer from whose statistics removed channels are left out.

    Args:
        call: as it was traced.
        keep: for each tensor that it mixes.
        plain: ranks of the inputs of other calls of the layer, which add up nothing (the lookup of
            an embedding that is read backwards, too).
    """

    def __init__(self, call: Call, keep: list[keras.Variable], plain: list[list[int]]):
        self.traced, self.keep, self.plain = call, keep, plain
        self.proceed = call.layer.call
        self.__signature__ = inspect.signature(self.proceed)
        self.constants = walking.constant_arguments(call.layer)

    def __call__(self, *args, **kwargs):
        if _PLAIN.get():
            return self.proceed(*args, **kwargs)
        given = {"training": kwargs["training"]} if "training" in kwargs else {}
        call = copy.copy(self.traced)
        # The rule's `masked` calls the layer: that is what it did before, while training too.
        call.on_infer = lambda *args, **kwargs: self.proceed(*args, **{**given, **kwargs})
        args, kwargs = keras.tree.map_structure(
            lambda x: x.numpy() if id(x) in self.constants else x, (args, kwargs)
        )
        args, kwargs = arranged(call.layer, args, meaningful(kwargs))
        tensors = [x for x in keras.tree.flatten((args, kwargs)) if tf.is_tensor(x)]
        if [len(x.shape) - 1 for x in tensors] in self.plain:
            return call.on_infer(*args, **kwargs)
        keep = [tf.convert_to_tensor(variable) for variable in self.keep]
        return call.ask("masked", keep, *args, **kwargs)


def _mixes(call: Call, free: np.ndarray) -> bool:
    """Whether a call mixes or adds up channels that may be removed."""
    mixes = call.mixes_channels or call.sums_channels
    return mixes and any(free[tensor.names].any() for tensor in call.mixed)


def _ranks(call: Call) -> list[int]:
    """Of what enters a call, batch axis not counted."""
    return [tensor.rank for tensor in call.inputs]


def _touched(calls: list[Call], removed: np.ndarray) -> list[str]:
    return [call.path for call in calls if any(removed[t.names].any() for t in call.mixed)]


def _same_channels(first: Call, second: Call) -> bool:
    """Whether the same channels enter two calls, along the same axes."""
    pairs = zip(first.mixed, second.mixed, strict=False)
    return len(first.inputs) == len(second.inputs) and all(
        np.array_equal(a.names, b.names) for a, b in pairs
    )
