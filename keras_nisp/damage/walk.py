"""Runs of a network whose kernels are changed and some of whose channels are zero."""

import functools
import weakref
from typing import Any

import keras
import tensorflow as tf

from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.damage.distance import Distance
from keras_nisp.damage.edges import InputEdge, KernelEdge
from keras_nisp.importance.base import map_tensors
from keras_nisp.keras_graph.masks import counts_of, take_off_alike

# What edges are in a network: the values of kernels, and which channels of inputs are there.
State = tuple[list[list[tf.Tensor]], list[tf.Tensor]]


class DamagedWalk:
    """Runs a network in the state that a set of kept channels gives its edges.

    `run` and `slopes` are compiled, once for each shape of a batch. The state is an argument, so
    that no other state needs another trace.

    Args:
        channel_map: the traced model.
        kernels, inputs: all edges.

    Attributes:
        read: the kernel edge of each reading, in the order in which the walk comes by.
        watched: the edge of each gradient, likewise.
    """

    def __init__(self, channel_map: ChannelMap, kernels: list[KernelEdge], inputs: list[InputEdge]):
        self.channel_map, self.kernels, self.inputs = channel_map, kernels, inputs
        self.by_layer: dict[int, list[tuple[int, KernelEdge]]] = {}
        for index, kernel in enumerate(kernels):
            self.by_layer.setdefault(id(kernel.call.layer), []).append((index, kernel))
        self.by_call: dict[int, dict[int, tuple[int, InputEdge]]] = {}
        for index, tensor in enumerate(inputs):
            self.by_call.setdefault(id(tensor.call), {})[tensor.index] = index, tensor
        self.read: list[KernelEdge] = []
        self.watched: list[KernelEdge | InputEdge] = []
        eager = getattr(channel_map.model, "run_eagerly", False)
        compiled = functools.partial(tf.function, autograph=False)
        weak = weakref.proxy(self)  # with a cycle, what edges hold would wait to be collected
        self.run = self._run if eager else compiled(lambda *given: weak._run(*given))
        self.slopes = self._slopes if eager else compiled(lambda *given: weak._slopes(*given))

    def _run(self, inputs: list, state: State) -> tuple[list, list, list, list]:
        """The outputs, what each kernel reads, and which steps of both count, where not all do.

        Args:
            inputs: of the model.
            state: of the edges.
        """
        seen: list = []
        outputs = self._walk(inputs, state, None, seen)
        read = [(edge, x) for edge, x, _ in seen if isinstance(edge, KernelEdge)]
        self.read = [edge for edge, _ in read]
        reads = [x for _, x in read]
        return outputs, reads, list(map(counts_of, outputs)), list(map(counts_of, reads))

    def _slopes(
        self, inputs: list, state: State, before: list, distance: Distance, seed: tf.Tensor
    ) -> tuple[list, list[list]]:
        """What edges are given, and the gradients of what they give: those of the distance to the
        outputs `before`, and those of a direction that is drawn."""
        seen: list = []
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            after = self._walk(inputs, state, tape, seen)
            counts = list(map(counts_of, after))
            sides = distance(before, after, counts), distance.direction(after, counts, seed)
        tensors = [tensor for _, _, tensor in seen]
        zero = tf.UnconnectedGradients.ZERO
        gradients = [tape.gradient(side, tensors, unconnected_gradients=zero) for side in sides]
        self.watched = [edge for edge, _, _ in seen]
        return [x for _, x, _ in seen], gradients

    def _walk(self, inputs: list, state: State, tape: tf.GradientTape | None, seen: list) -> list:
        """The outputs.

        Args:
            inputs: of the model.
            state: of the edges.
            tape: watches what edges give or get.
            seen: collects `(edge, what it is given, what is watched)`.
        """
        kernels, kept = state

        def watched(edge, x, tensor):
            if tape is not None:
                tensor = tf.identity(tensor)
                tape.watch(tensor)
            seen.append((edge, x, tensor))
            return tensor

        def visit(call, args, kwargs):
            given: Any = (args, kwargs)
            masked = self.by_call.get(id(call), {})

            def mask(number, x):
                if number not in masked or not x.dtype.is_floating:
                    return x
                index, edge = masked[number]
                return watched(edge, x, x * tf.cast(kept[index], x.dtype))

            if masked:
                given = map_tensors(mask, args, kwargs)
                take_off_alike((args, kwargs), given)
            outputs = call.infer(*given[0], **given[1])
            for index, edge in self.by_layer.get(id(call.layer), ()):
                outputs = edge.with_constant(outputs, kernels[index])
                outputs = watched(edge, edge.read(*given), outputs)
            return outputs

        both = zip(self.kernels, kernels, strict=True)
        changed = [  # not strict: a constant that no variable takes comes last
            pair for edge, values in both for pair in zip(edge.variables, values, strict=False)
        ]
        with keras.StatelessScope(state_mapping=changed):
            return keras.tree.flatten(self.channel_map.walk(inputs, visit))
