"""Layer-wise relevance propagation: which channels contribute to the model's predictions."""

from collections import defaultdict
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.rule import meaningful, spread
from keras_nisp.data.calibration import Calibration
from keras_nisp.data.samples import MAX_SAMPLES
from keras_nisp.importance.base import Importance, map_tensors, per_unit, scored_where
from keras_nisp.keras_graph.masks import counts_of, spread_mask


class LRP(Importance):
    """Layer-wise relevance propagation.

    Each sample has a relevance of 1. It starts at the sample's prediction, the largest value along
    the last axis of the output, and is shared equally by all positions. From there it is handed
    back, layer by layer. A layer divides it among its inputs in proportion to the size of their
    contributions,

        R_i = sum_j |x_i w_ij| / (sum_k |x_k w_kj|) R_j

    (the rule `z+`, or alpha 1, beta 0, but with the absolute values of positive and negative
    contributions, since a removal loses both). Activations, normalizations and biases keep no
    relevance, so every layer has the same sum. Contributions are those in the absolute network of
    `NISP`, for the layers' real inputs; so relevance passes every layer that `NISP` can pass. A
    channel's score is its relevance where kernels read it, averaged over samples.

    Args:
        calibration: samples without labels, as for `NISP`, with the same default.
        max_samples: largest number of samples.
        seed: seed for sampling calibration data.
        verbose: 1 shows progress bars for reading and using the data.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> calibration = np.random.default_rng(0).normal(size=(64, 4))
    >>> plan_pruning(model, LRP(calibration), ratio=0.5).creators[0].kept
    4

    Source: Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by
    Layer-Wise Relevance Propagation", PLOS ONE 2015; as an importance: Yeom et al., "Pruning by
    Explaining", Pattern Recognition 2021.
    """

    def __init__(
        self,
        calibration: Any = None,
        max_samples: int = MAX_SAMPLES,
        seed: int = 0,
        verbose: int = 0,
    ) -> None:
        self.calibration = Calibration(calibration, max_samples, seed, verbose=verbose)
        self.max_samples = max_samples
        self.seed = seed

    def __call__(self, channel_map: ChannelMap) -> np.ndarray:
        samples = self.calibration.samples(channel_map.model)
        total, seen = np.zeros(channel_map.count), []
        for inputs, _ in samples.batches(verbose=self.calibration.verbose):
            for units, relevance in _Relevance(channel_map, inputs).shares():
                total[units] += relevance
                seen.append(units)
        return scored_where(channel_map, total / len(samples), seen)


class _Relevance:
    """Relevance of one batch.

    Args:
        channel_map: the traced model.
        inputs: the batch, flat.
    """

    def __init__(self, channel_map: ChannelMap, inputs: list):
        self.channel_map, self.inputs = channel_map, inputs
        self.steps: list[tuple[Call, tuple, dict, list, list]] = []
        self.read: list[tuple[np.ndarray, np.ndarray]] = []

    def shares(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Units, and the relevance of each where a kernel reads it, summed over the batch."""
        outputs = keras.tree.flatten(self.channel_map.walk(self.inputs, self._visit))
        # By the id of a tensor, until it is handed on.
        relevance: dict[int, Any] = defaultdict(float)
        for output in outputs:
            relevance[id(output)] += self._start(output)
        while self.steps:
            call, args, kwargs, masks, made = self.steps.pop()
            given = [relevance.pop(id(tensor), None) for tensor in made]
            if any(x is not None for x in given):
                parts = self._handed_back(call, args, kwargs, masks, given)
                for tensor, part in zip(_tensors(args, kwargs), parts, strict=True):
                    relevance[id(tensor)] += part
        return self.read

    def _visit(self, call: Call, args: tuple, kwargs: dict) -> Any:
        # Attention takes masks off what it is called with.
        masks = [counts_of(x) for x in _tensors(args, kwargs)]
        made = call.infer(*args, **kwargs)
        if not any(x.dtype == tf.string for x in _tensors(args, kwargs)):  # no kernel reads text
            self.steps.append((call, args, kwargs, masks, keras.tree.flatten(made)))
        return made

    def _start(self, output: tf.Tensor) -> tf.Tensor:
        """1 for each sample, at what is largest along the last axis."""
        if output.dtype.is_floating and not bool(tf.reduce_all(tf.math.is_finite(output))):
            raise ValueError(
                f"Expected finite outputs. Received NaN or infinity from model "
                f"'{self.channel_map.model.name}' on the calibration data: activations overflow "
                "(in half precision?), or the data are in another range than in training."
            )
        output = tf.cast(output, tf.float32)
        if len(output.shape) < 2:
            return tf.ones_like(output)
        chosen = tf.one_hot(tf.argmax(output, -1), output.shape[-1])
        return chosen / float(np.prod(output.shape[1:-1]))

    def _handed_back(
        self, call: Call, args: tuple, kwargs: dict, masks: list, given: list
    ) -> list[tf.Tensor]:
        """What each tensor that enters a call is handed of the relevance of its outputs."""
        sizes: list[tf.Tensor] = []
        hidden: list[tuple[np.ndarray, tf.Tensor]] = []

        def enter(index, x):
            size = tf.abs(tf.cast(x, tf.float32))
            if masks[index] is not None:  # steps that do not count have no relevance
                size = size * spread_mask(masks[index], size)
            tape.watch(size)
            sizes.append(size)
            return size

        def tap(label, tensor, axis):
            names = spread(call.hidden[label], axis, len(tensor.shape) - 1)
            hidden.append((names, tf.identity(tensor)))
            return hidden[-1][1]

        call.on_tap, call.samples = tap, len(self.inputs[0])
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            args, kwargs = map_tensors(enter, args, meaningful(kwargs))
            sums = keras.tree.flatten(call.ask("absolute", *args, **kwargs))
        call.on_tap, call.samples = None, 1
        rates = [
            tf.zeros_like(total) if share is None else tf.math.divide_no_nan(share, total)
            for total, share in zip(sums, given, strict=True)
        ]
        sources = [*sizes, *(tensor for _, tensor in hidden)]
        gradients = tape.gradient(sums, sources, rates, unconnected_gradients="zero")
        parts = [size * gradient for size, gradient in zip(sources, gradients, strict=True)]
        entering, inside = parts[: len(sizes)], parts[len(sizes) :]
        if call.reads:
            self._note([tensor.names for tensor in call.inputs], entering)
        self._note([names for names, _ in hidden], inside)
        return entering

    def _note(self, names: list[np.ndarray], parts: list[tf.Tensor]) -> None:
        for where, part in zip(names, parts, strict=True):
            units, shares = per_unit(part, where)
            self.read.append((units, shares.sum(0, dtype=np.float64)))


def _tensors(args: tuple, kwargs: dict) -> list[tf.Tensor]:
    return [x for x in keras.tree.flatten((args, kwargs)) if tf.is_tensor(x)]
