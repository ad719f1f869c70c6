"""Proves a rebuilt model: it must give what the original gives without the channels."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp import graph
from keras_nisp.channels import Binding, ChannelMap
from keras_nisp.data import Samples, collect
from keras_nisp.errors import VerificationError
from keras_nisp.plan import Plan
from keras_nisp.planning import inexact_layers
from keras_nisp.probing import random_samples
from keras_nisp.rounding import allowed, default_tolerance
from keras_nisp.rules.base import meaningful
from keras_nisp.unit_map import DROPPED, UnitMap

# A merge is lossless up to this relative deviation and this relative change of the outputs.
LOSSLESS = 1e-3


@dataclasses.dataclass(frozen=True)
class Verification:
    """The outcome of a comparison; `print` it for one line.

    Attributes:
        difference: largest absolute difference of any output.
        scale: largest absolute value of that output.
        tolerance: for `difference / scale`.
        inexact: layers that mix channels of which some are removed; they were given the
            statistics of the kept channels.
        reference: what the model was compared with.
    """

    difference: float
    scale: float
    tolerance: float
    inexact: tuple[str, ...]
    reference: str = "the original with the removed channels zeroed"

    @property
    def relative(self) -> float:
        """Largest difference over the scale of the outputs."""
        return self.difference / self.scale if self.scale else self.difference

    @property
    def ok(self) -> bool:
        """Whether the models agree."""
        return bool(self.relative <= self.tolerance)

    def __str__(self) -> str:
        word = "verified" if self.ok else "NOT verified"
        text = f"{word}: outputs differ by {self.relative:.1e} of their scale from {self.reference}"
        if self.inexact:
            text += f" (and left out of the statistics of {len(self.inexact)} layers)"
        return text

    def check(self) -> None:
        """Raises `VerificationError` unless the models agree."""
        if not self.ok:
            raise VerificationError(
                f"The rebuilt model is wrong: {self}, more than {self.tolerance:g}. This is an "
                "error in keras_nisp or in a registered rule; please report it."
            )


def verify(
    model: keras.Model,
    small: keras.Model,
    plan: Plan,
    data: Any = None,
    tolerance: float | None = None,
) -> Verification:
    """Compares a rebuilt model with its oracle.

    The oracle is the original model with every kernel slice that reads a removed channel
    set to zero, and what belongs to merged channels at the mean of its cluster; layers that mix
    channels take their statistics over the kept ones.

    Args:
        model: the original.
        small: from `rebuild(model, plan)`, not trained since.
        plan: the plan.
        data: samples to compare on, as calibration data; two random ones by default.
        tolerance: allowed difference over the scale of the outputs. Defaults to 1e-4
            for float32 models and 0.05 for half precision; a network that amplifies
            rounding errors gets ten times what a change of its inputs by 1e-6 does to
            its outputs, 0.05 at the most.

    Returns:
        A `Verification`; `verification.check()` raises if it failed.

    Raises:
        PlanMismatchError: the plan is for a model of another structure.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> plan = plan_pruning(model, Magnitude(), ratio=0.5)
    >>> verify(model, rebuild(model, plan), plan).ok
    True
    """
    channel_map = plan.trace(model)
    samples = None if data is None else collect(data, model, limit=8)
    return verify_traced(channel_map, plan.unit_map(channel_map), small, samples, tolerance)


def output_change(channel_map: ChannelMap, small: keras.Model, samples: Samples) -> Verification:
    """Compares a merged model with the traced one as it is."""
    nothing = UnitMap(np.arange(channel_map.count))  # the original as it is
    limit = max(LOSSLESS, default_tolerance(channel_map.model))
    return verify_traced(channel_map, nothing, small, samples, limit)


def verify_traced(
    channel_map: ChannelMap,
    unit_map: UnitMap,
    small: keras.Model,
    samples: Samples | None = None,
    tolerance: float | None = None,
) -> Verification:
    """`verify` for a traced model and what becomes of its units."""
    samples = samples or random_samples(channel_map.model, channel_map.input_shapes)
    inputs, _ = next(samples.batches())
    expected = keras.tree.flatten(oracle(channel_map, unit_map, inputs))
    received = keras.tree.flatten(graph.answer(small, inputs))
    limit = default_tolerance(channel_map.model) if tolerance is None else tolerance
    inexact = tuple(inexact_layers(channel_map, ~unit_map.keep))
    results = []
    reference = {"reference": "the original with clusters at their means"}
    for want, got in zip(expected, received, strict=True):
        want, got = np.asarray(want, np.float64), np.asarray(got, np.float64)
        difference = float(np.abs(want - got).max()) if want.shape == got.shape else np.inf
        results.append(
            Verification(
                difference,
                float(np.abs(want).max()),
                limit,
                inexact,
                **(reference if unit_map.merged.any() else {}),
            )
        )
    worst = max(results, key=lambda result: np.nan_to_num(result.relative, nan=np.inf))
    if tolerance is None and not worst.ok:
        worst = dataclasses.replace(worst, tolerance=allowed(small, inputs, limit))
    return worst


def oracle(channel_map: ChannelMap, unit_map: UnitMap, inputs: list) -> Any:
    """Outputs of the original model as if dropped units were not there, and merged ones equal.

    Kernel slices that read dropped units are zero; what belongs to merged units has the mean
    of its cluster.

    Args:
        channel_map: the traced model.
        unit_map: what becomes of its units.
        inputs: tensors for the model's inputs, flat.
    """
    keep = unit_map.into != DROPPED

    def visit(call, args, kwargs):
        statistics = call.mixes_channels or call.sums_channels
        if statistics and any(not keep[t.names].all() for t in call.inputs):
            kept = [tf.constant(keep[t.names][None], tf.float32) for t in call.inputs]
            return call.ask("masked", kept, *args, **meaningful(kwargs))
        changed = []
        for weight in call.weights:
            binding = channel_map.bindings.get(id(weight))
            if binding is not None:
                changed.append((weight, _as_if(binding, unit_map, keep)))
        with keras.StatelessScope(state_mapping=changed):
            return call.infer(*args, **kwargs)

    return channel_map.walk(inputs, visit)


def _as_if(binding: Binding, unit_map: UnitMap, keep: np.ndarray) -> tf.Tensor:
    """A variable's value in the oracle."""
    value = tf.convert_to_tensor(binding.variable)
    for axis, units in binding.axes.items():
        if axis not in binding.read and unit_map.merged[units].any():
            value = unit_map.level(value, axis, units)
    if any(not keep[binding.axes[axis]].all() for axis in binding.read):
        value *= read_mask(binding, keep)
    return value


def read_mask(binding, keep: np.ndarray) -> tf.Tensor:
    """0 where a kernel reads a removed unit, 1 elsewhere; broadcasts to the kernel."""
    rank = len(binding.variable.shape)
    mask = np.ones((1,) * rank, np.float32)
    for axis in binding.read:
        shape = [-1 if i == axis else 1 for i in range(rank)]
        mask = mask * keep[binding.axes[axis]].reshape(shape)
    return tf.constant(mask, binding.variable.dtype)
