"""Importances that use responses on data: layer by layer, and Taylor."""

import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.data.calibration import Calibration
from keras_nisp.data.sample_checks import check_varied
from keras_nisp.data.samples import MAX_SAMPLES
from keras_nisp.errors import first_line
from keras_nisp.importance.base import Importance, per_unit, run, scored_where
from keras_nisp.importance.inf_fs import inf_fs
from keras_nisp.keras_graph import keras_training
from keras_nisp.keras_graph.masks import level


class LayerByLayer(Importance):
    """Inf-FS on each layer's own responses, without propagation: a baseline of the paper.

    Responses are taken where kernels read them, and feature maps are averaged over positions. If
    several layers read a unit, its scores are added.

    Args:
        calibration: samples without labels, as for `NISP`, with the same default.
        alpha: weight of the deviations against the correlations in Inf-FS; see `inf_fs`.
        max_samples: largest number of samples.
        seed: seed for sampling calibration data.
        verbose: 1 shows progress bars for reading and using the data.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu", name="hidden"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> x = np.random.default_rng(0).normal(size=(64, 4))
    >>> plan_pruning(model, LayerByLayer(x), ratio=0.5).creators[0].kept
    4

    Source: Yu et al., "NISP", CVPR 2018, section 4.
    """

    def __init__(
        self,
        calibration: Any = None,
        alpha: float = 0.5,
        max_samples: int = MAX_SAMPLES,
        seed: int = 0,
        verbose: int = 0,
    ) -> None:
        self.calibration = Calibration(calibration, max_samples, seed, verbose=verbose)
        self.alpha = alpha
        self.max_samples = max_samples
        self.seed = seed

    def __call__(self, channel_map: ChannelMap) -> np.ndarray:
        samples = self.calibration.samples(channel_map.model)
        check_varied(samples, self.name)
        responses, units_of = defaultdict(list), {}

        def on_read(call, index, tensor):
            names = call.inputs[index].names
            units_of[call, index], values = per_unit(level(tensor), names)
            responses[call, index].append(values)
            return tensor

        for inputs, _ in samples.batches(verbose=self.calibration.verbose):
            run(channel_map, inputs, on_read)
        total = np.zeros(channel_map.count)
        for edge, batches in responses.items():
            units, values = units_of[edge], np.concatenate(batches)
            free = channel_map.free[units]
            if free.any():
                total[units[free]] += inf_fs(values[:, free], self.alpha)
        return scored_where(channel_map, total, list(units_of.values()))


class Taylor(Importance):
    """First-order Taylor expansion of the loss: the mean of |gradient x activation|, summed
    over positions, where kernels read a channel.

    Args:
        data: samples with labels: an `(x, y)` tuple or a dataset of them. Sample weights are left
            out: all samples count alike. By default the `calibration` of the function that uses
            it, which then needs labels.
        loss: a Keras loss (name, function or object). Defaults to the loss with which the model
            is compiled.
        max_samples: largest number of samples.
        seed: seed for sampling.
        verbose: 1 shows progress bars for reading and using the data.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu", name="hidden"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> rng = np.random.default_rng(0)
    >>> data = rng.normal(size=(64, 4)), rng.integers(0, 3, 64)
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> plan_pruning(model, Taylor(data, loss), ratio=0.5).creators[0].kept
    4

    Source: Molchanov et al., "Pruning Convolutional Neural Networks for Resource
    Efficient Inference", ICLR 2017, equation 8.
    """

    def __init__(
        self,
        data: Any = None,
        loss: str | Callable | keras.losses.Loss | None = None,
        max_samples: int = MAX_SAMPLES,
        seed: int = 0,
        verbose: int = 0,
    ) -> None:
        self.calibration = Calibration(data, max_samples, seed, labels=True, verbose=verbose)
        self.loss = loss
        self.max_samples = max_samples
        self.seed = seed

    @property
    def data(self) -> Calibration:
        """The labeled samples, under the name of the constructor's argument."""
        return self.calibration

    def __call__(self, channel_map: ChannelMap) -> np.ndarray:
        model = channel_map.model
        loss = self._loss(model)
        samples = self.calibration.samples(model)
        total, seen = np.zeros(channel_map.count), []
        for inputs, labels in samples.batches(verbose=self.calibration.verbose):
            edges: list[tuple[np.ndarray, tf.Tensor]] = []

            def on_read(call, index, tensor):
                tensor = tf.identity(tensor)
                tape.watch(tensor)
                edges.append((call.inputs[index].names, tensor))  # noqa: B023
                return tensor

            with tf.GradientTape(watch_accessed_variables=False) as tape:
                outputs = run(channel_map, inputs, on_read)
                value = tf.reduce_mean(_loss_of(loss, labels, outputs))
            if not np.isfinite(value):
                raise ValueError(
                    f"Expected a finite loss. Received: {float(value)} on a batch of the data for "
                    f"Taylor, from model '{model.name}'. Its outputs or the loss overflow, or "
                    "labels do not fit: check both on this model before pruning."
                )
            gradients = tape.gradient(value, [tensor for _, tensor in edges])
            for (names, tensor), gradient in zip(edges, gradients, strict=True):
                if gradient is not None:
                    units, effect = per_unit(_product(gradient, tensor), names)
                    total[units] += np.abs(effect).sum(0) * len(inputs[0])
                    seen.append(units)
        return scored_where(channel_map, total / len(samples), seen)

    def _loss(self, model):
        if self.loss is not None:
            loss = keras.losses.get(self.loss)
            return loss if isinstance(loss, keras.losses.Loss) else _FunctionLoss(loss)
        if keras_training.compile_arguments(model) is None:
            raise ValueError(
                f"Taylor needs a loss: model '{model.name}' is not compiled. Pass `loss=`, as "
                "in `Taylor((x, y), loss='sparse_categorical_crossentropy')`."
            )
        return functools.partial(_compiled_loss, model)


def _compiled_loss(model: keras.Model, labels: Any, outputs: Any) -> tf.Tensor:
    """The loss of a model, whose own means of its parts, which `fit` shows, stay as they are."""
    with keras.StatelessScope():
        return model.compute_loss(y=labels, y_pred=outputs)


def _loss_of(loss, labels: Any, outputs: Any) -> tf.Tensor:
    try:
        return loss(labels, outputs)
    except (tf.errors.InvalidArgumentError, ValueError) as error:
        shapes = [tuple(x.shape) for x in keras.tree.flatten(outputs)]
        given = [_described(np.asarray(x)) for x in keras.tree.flatten(labels)]
        raise ValueError(
            f"Expected labels that the loss can compare with outputs of shape {shapes}. Received "
            f"{'; '.join(given)}: {first_line(error)}"
        ) from error


def _described(labels: np.ndarray) -> str:
    if not np.issubdtype(labels.dtype, np.number) or not labels.size:
        return f"labels of shape {labels.shape}, {labels.dtype}"
    return f"labels of shape {labels.shape}, from {labels.min():g} to {labels.max():g}"


def _product(gradient: tf.Tensor, tensor: tf.Tensor) -> tf.Tensor:
    if tensor.dtype.size < 4:  # in half precision most products would vanish
        gradient, tensor = tf.cast(gradient, tf.float32), tf.cast(tensor, tf.float32)
    return gradient * tensor


class _FunctionLoss(keras.losses.Loss):
    """A function as the loss that `fit` makes of it: masked steps do not count."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, y_true, y_pred):
        return self.function(y_true, y_pred)
