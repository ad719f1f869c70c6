"""Proves a rebuilt model: it must give what the original gives without the channels."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp._renaming import renamed
from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.unit_map import UnitMap
from keras_nisp.data.collecting import collect
from keras_nisp.data.random_samples import random_samples
from keras_nisp.data.samples import Samples
from keras_nisp.errors import VerificationError, check_number, several
from keras_nisp.io.shown import Shown
from keras_nisp.keras_graph import calling
from keras_nisp.keras_graph.rounding import (
    Difference,
    allowed,
    default_tolerance,
    largest_difference,
)
from keras_nisp.plans.describing import inexact_layers
from keras_nisp.plans.plan import Plan, check_is_plan
from keras_nisp.surgery.layerwise import LayerDifference, Layerwise
from keras_nisp.surgery.masked_calls import plain_calls
from keras_nisp.surgery.oracle import Oracle

# A merge is lossless up to this relative deviation and this relative change of the outputs.
LOSSLESS = 1e-3
SAMPLES = 2  # that are compared
ZEROED = "the original with the removed channels zeroed"
LEVELLED = "the original with clusters at their means"


@dataclasses.dataclass(frozen=True, repr=False)
class Verification(Shown):
    """The outcome of a comparison; `print` it for one line.

    Attributes:
        difference: largest absolute difference of any output.
        scale: largest absolute value of that output.
        tolerance: largest allowed `difference / scale`.
        inexact: layers that mix channels of which some are removed; they were compared with the
            statistics of the kept channels.
        reference: description of what the model was compared with.
        layer: the layer whose difference is largest relative to its own tolerance. Each layer was
            run on the outputs of the original's earlier layers. `None` if only the model's outputs
            were compared.
        silent: layers that could not be compared, because their outputs did not depend on their
            weights for any inputs that were tried.
        undefined: outputs that are not finite in the original, as text; empty if there are none.
    """

    difference: float
    scale: float
    tolerance: float
    inexact: tuple[str, ...]
    reference: str = ZEROED
    layer: LayerDifference | None = None
    silent: tuple[str, ...] = ()
    undefined: str = ""

    @property
    def relative(self) -> float:
        """Largest difference over the scale of the outputs."""
        return Difference(self.difference, self.scale).relative

    @property
    def ok(self) -> bool:
        """Whether the models agree, in their outputs and layer by layer."""
        layers = self.layer is None or self.layer.ok
        return bool(self.relative <= self.tolerance and layers and not self.undefined)

    def __str__(self) -> str:
        if self.undefined:
            return f"NOT verified: {self.undefined}"
        word = "verified" if self.ok else "NOT verified"
        text = f"{word}: outputs differ by {self.relative:.1e} of their scale from {self.reference}"
        if self.inexact:
            text += f" (and left out of the statistics of {len(self.inexact)} layers)"
        if self.layer is not None and self.layer.ok:
            text += f"; layers by {self.layer.relative:.1e} at most ('{self.layer.layer}')"
        elif self.layer is not None:
            text += f"; layer {self.layer}"
        if self.silent:
            count = len(self.silent)
            word = "layer" if count == 1 else "layers"
            text += f"; {count} {word} gave nothing to compare: {several(self.silent)}"
        return text

    def check(self) -> None:
        """Raises `VerificationError` unless the models agree."""
        if self.undefined:
            raise VerificationError(f"The rebuilt model cannot be verified: {self.undefined}")
        if self.ok:
            return
        layer = self.layer
        if layer is None or layer.ok:
            what, limit, ours = str(self), self.tolerance, True
        else:
            what, limit, ours = f"layer {layer}", layer.tolerance, layer.ours
        advice = (
            "Unless its weights were changed since `rebuild`, this is an error in keras_nisp; "
            "please report it."
            if ours
            else "Its rule was registered outside of keras_nisp: correct it (docs/custom_layers.md "
            "shows how), or leave it out, and the channels stay as they are."
        )
        raise VerificationError(
            f"The rebuilt model is wrong: {what}, more than {limit:g}, compared with "
            f"{self.reference}. {advice}"
        )


@renamed(model="original", data="calibration")
def verify(
    small: keras.Model,
    original: keras.Model,
    plan: Plan,
    calibration: Any = None,
    tolerance: float | None = None,
    verbose: int = 0,
) -> Verification:
    """Compares a rebuilt model with its oracle, layer by layer and as a whole.

    The oracle is the original model with every kernel slice that reads a removed channel
    set to zero, and the values of merged channels set to the mean of their cluster; layers that mix
    channels take their statistics over the kept ones. Each layer of the rebuilt model is run on the
    outputs of the oracle's earlier layers, and must give what the oracle's layer gives. Layers with
    weights are also run on random values. So an error is found wherever it is, even if the outputs
    hardly depend on it (behind a saturated softmax, or in a network that was never trained).

    Args:
        small: the model from `rebuild(original, plan)`, not trained since.
        original: the model before surgery.
        plan: the plan.
        calibration: samples to compare on, of which two are used; random ones by default.
        tolerance: largest allowed difference, relative to the scale of the outputs of the model or
            of the layer. Defaults to 1e-4 for the model and 1e-5 for layers, 0.05 for half
            precision. If rounding errors are amplified, it defaults to ten times what a change of
            the inputs by 1e-6 does to the outputs, up to 0.05.
        verbose: 1 shows a progress bar of the layers.

    Returns:
        A `Verification`; `verification.check()` raises if it failed.

    Raises:
        TypeError, ValueError: an argument is wrong.
        PlanMismatchError: the plan is for a model of another structure, or `small` has other
            layers.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> plan = plan_pruning(model, Magnitude(), ratio=0.5)
    >>> verify(rebuild(model, plan), model, plan).ok
    True
    """
    check_is_plan(plan)
    if tolerance is not None:
        check_number("tolerance", tolerance, "of at least 0", lambda share: share >= 0)
    channel_map = plan.trace(original)
    samples = None if calibration is None else collect(calibration, original, limit=SAMPLES)
    unit_map = plan.unit_map(channel_map)
    return verify_traced(channel_map, unit_map, small, samples, tolerance, verbose)


def output_change(channel_map: ChannelMap, small: keras.Model, samples: Samples) -> Verification:
    """Compares the outputs of a merged model with those of the traced one as it is."""
    inputs = _first(samples)
    expected = channel_map.walk(inputs, Oracle(channel_map, _unchanged(channel_map)).run)
    limit = max(LOSSLESS, default_tolerance(channel_map.model))
    worst = largest_difference(expected, calling.answer(small, inputs))
    if worst.relative > limit:
        limit = allowed(small, inputs, limit)
    return Verification(worst.absolute, worst.scale, limit, ())


def check_layers(oracle: Oracle, other: keras.Model, samples: Samples) -> None:
    """Raises `VerificationError` unless another model gives, call by call and as a whole, what an
    oracle says."""
    inputs = _first(samples)
    layers = Layerwise(oracle, other)
    worst = largest_difference(layers.run(inputs), calling.answer(other, inputs))
    limit = max(LOSSLESS, default_tolerance(oracle.map.model))
    if limit < worst.relative < np.inf:
        limit = allowed(other, inputs, limit)
    undefined = _undefined(oracle.map, layers.undefined, random=True)
    Verification(
        worst.absolute, worst.scale, limit, (), "the original", layers.worst, (), undefined
    ).check()


def _unchanged(channel_map: ChannelMap) -> UnitMap:
    return UnitMap(np.arange(channel_map.count))


@plain_calls()
def verify_traced(
    channel_map: ChannelMap,
    unit_map: UnitMap,
    small: keras.Model,
    samples: Samples | None = None,
    tolerance: float | None = None,
    verbose: int = 0,
) -> Verification:
    """`verify` for a traced model and what becomes of its units."""
    inputs = _first(samples or random_samples(channel_map.model, channel_map.input_shapes))
    layers = Layerwise(Oracle(channel_map, unit_map), small, tolerance, verbose)
    expected = layers.run(inputs)
    try:
        worst = largest_difference(expected, calling.answer(small, inputs))
    except (ValueError, tf.errors.OpError):
        if layers.worst.ok:
            raise
        worst = Difference(np.inf, 1.0)  # what is wrong with a layer is not taken by the next
    limit = default_tolerance(channel_map.model) if tolerance is None else tolerance
    if tolerance is None and limit < worst.relative < np.inf:
        limit = allowed(small, inputs, limit)
    return Verification(
        worst.absolute,
        worst.scale,
        limit,
        tuple(inexact_layers(channel_map, ~unit_map.keep)),
        LEVELLED if unit_map.merged.any() else ZEROED,
        layers.worst,
        layers.silent,
        _undefined(channel_map, layers.undefined, random=samples is None),
    )


def _first(samples: Samples) -> list[tf.Tensor]:
    """The first samples as inputs of a model."""
    inputs, _ = next(samples.first(SAMPLES).batches())
    return inputs


def _undefined(channel_map: ChannelMap, path: str | None, random: bool) -> str:
    """What made a call of the original give NaN."""
    if path is None:
        return ""
    (layer, *_) = (call.layer for call in channel_map.calls if call.path == path)
    broken = [
        weight.path
        for weight in getattr(layer, "weights", ())
        if "float" in weight.dtype and not np.isfinite(np.asarray(weight, np.float64)).all()
    ]
    text = f"layer '{path}' gives NaN in the original '{channel_map.model.name}'"
    if broken:
        return f"{text}: its weight '{broken[0]}' is not finite. Mend the original first."
    if random:
        return f"{text} on random samples. Pass calibration data like those of training."
    return f"{text} on these samples. Pass data that it takes."
