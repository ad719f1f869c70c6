"""Compares two models call by call: errors do not add up, and none hides behind another."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.call import Call
from keras_nisp.channels.named_tensor import Traced
from keras_nisp.errors import PlanMismatchError, RuleError, first_line
from keras_nisp.io.progress import Progress
from keras_nisp.keras_graph.masks import carry_mask, mask_of, take_off_alike, with_own_mask
from keras_nisp.keras_graph.recording import Step, Token, recorded
from keras_nisp.keras_graph.rounding import (
    LARGEST_TOLERANCE,
    Difference,
    difference,
    largest_difference,
)
from keras_nisp.surgery.oracle import Oracle

LAYER_TOLERANCE = 1e-5
# Of the random values that layers are tried with: small ones do not saturate an activation.
SCALES = (1.0, 1e-2)


@dataclasses.dataclass(frozen=True)
class LayerDifference:
    """How far one layer of the smaller model is from that of the original.

    Attributes:
        layer: its path.
        kind: its class.
        relative: the largest difference over the scale of the outputs.
        tolerance: for that.
        ours: whether layer and rule are of Keras and this package.
        problem: what is wrong, if no number says it.
    """

    layer: str
    kind: str
    relative: float = 0.0
    tolerance: float = LAYER_TOLERANCE
    ours: bool = True
    problem: str = ""

    @property
    def ok(self) -> bool:
        return bool(self.relative <= self.tolerance)

    def __str__(self) -> str:
        text = self.problem or f"is {self.relative:.1e} of its scale off"
        return f"'{self.layer}' ({self.kind}) {text}"


class Layerwise:
    """The calls of two models, each on what the original's calls before it gave.

    Args:
        oracle: runs the original's calls, and says what is kept of its tensors.
        small: the model that was made of the original.
        tolerance: for each layer, if not by its precision.
        verbose: 1 shows a progress bar of the calls.

    Attributes:
        layers: how far each layer is off, by path.
        undefined: path of the first call that gives NaN in the original, or `None`.

    Raises:
        PlanMismatchError: the models do not consist of the same calls.
    """

    def __init__(
        self,
        oracle: Oracle,
        small: keras.Model,
        tolerance: float | None = None,
        verbose: int = 0,
    ):
        self.oracle = oracle
        self.tolerance = tolerance
        self.calls = oracle.map.calls
        counts = [len(call.outputs) for call in self.calls]
        self.originals, self.steps = (
            recorded(model, counts) for model in (oracle.map.model, small)
        )
        kinds = [[type(step.operation) for step in row] for row in (self.originals, self.steps)]
        if kinds[0] != kinds[1]:
            raise PlanMismatchError(
                f"Expected a model with the layers of '{oracle.map.model.name}' in the same order. "
                f"Received '{small.name}', which consists of others."
            )
        self.named_alike = sorted(s.path for s in self.originals) == sorted(
            s.path for s in self.steps
        )
        self.last = {token: i for i, step in enumerate(self.steps) for token in step.tokens}
        self.values: dict[Token, Any] = {}
        self.layers: dict[str, LayerDifference] = {}
        self.undefined: str | None = None
        self.told: dict[str, bool] = {}
        self.done = 0
        self.progress = Progress(len(self.steps), verbose, "Verifying layers", "layer")

    @property
    def worst(self) -> LayerDifference:
        """The layer that differs most, over its tolerance."""
        return max(self.layers.values(), key=lambda layer: layer.relative / layer.tolerance)

    @property
    def silent(self) -> tuple[str, ...]:
        """Layers with weights whose outputs, whatever came in, did not depend on them."""
        return tuple(path for path, told in self.told.items() if not told)

    def run(self, inputs: list) -> Any:
        """Compares all calls, and gives the outputs of the original."""
        self.values = {Token(-1, i): with_own_mask(value) for i, value in enumerate(inputs)}
        return self.oracle.map.walk(inputs, self._visit)

    def _visit(self, call: Call, args: tuple, kwargs: dict) -> list:
        step, original = self.steps[self.done], self.originals[self.done]
        wanted = keras.tree.flatten(self.oracle.run(call, args, kwargs))
        kept = self._kept(call, wanted)
        if step.tokens != original.tokens or (self.named_alike and step.path != original.path):
            self._note(call, np.inf, "is connected in another way than in the original")
        else:
            self._judge(call, original, step, (args, kwargs), wanted)
        take_off_alike(original.fill(self.values), (args, kwargs))
        if self.undefined is None and any(map(_has_nan, kept)):
            self.undefined = call.path
        self.values |= {Token(self.done, i): value for i, value in enumerate(kept)}
        for token in (*step.tokens, *(Token(self.done, i) for i in range(len(kept)))):
            if self.last.get(token, self.done) == self.done:
                self.values.pop(token, None)
        self.done += 1
        self.progress.update(self.done)
        return wanted

    def _judge(self, call: Call, original: Step, step: Step, given: tuple, wanted: list) -> None:
        """Compares a call on what the samples make of it, and on random values where it has
        weights or the samples could not tell."""
        weights = getattr(step.operation, "weights", ())
        told = _tells(step, self.values, self._compare(call, step, self.values, wanted))
        for scale in SCALES if weights or not told else ():
            values = self._probe(call, original, step, given, scale)
            if values is not None and not told:
                told = _tells(step, *values)
            if told:
                break
        if weights:
            self.told[call.path] = self.told.get(call.path, False) or told

    def _kept(self, call: Call, outputs: list) -> list:
        pairs = zip(outputs, call.outputs, strict=True)
        return [with_own_mask(self.oracle.kept(value, traced)) for value, traced in pairs]

    def _compare(self, call: Call, step: Step, values: dict, original: list) -> list | None:
        """Notes how far a call is from what the original gives; returns its outputs, if any."""
        wanted = self._kept(call, original)
        try:
            outputs = _run(step, values)
        except (ValueError, TypeError, tf.errors.OpError) as error:
            reason = first_line(error)
            self._note(call, np.inf, f"does not take what it takes in the original: {reason}")
            return None
        found = _largest(wanted, outputs)
        limit = self._limit(step, wanted)
        if self.tolerance is None and limit < found.relative < np.inf:
            rounding = 10 * _amplification(step, values, outputs), limit * _excess(original, wanted)
            limit = max(limit, min(max(rounding), LARGEST_TOLERANCE))
        problem = _other_shapes(wanted, outputs)
        if not problem and not all(_same_mask(*pair) for pair in zip(wanted, outputs, strict=True)):
            found, problem = Difference(np.inf, 1.0), "gives another mask than in the original"
        elif any(map(_has_nan, outputs)) and not any(map(_has_nan, wanted)):
            problem = "gives NaN, which it does not in the original"
        self._note(call, found.relative, problem, limit)
        return outputs

    def _limit(self, step: Step, wanted: list) -> float:
        if self.tolerance is not None:
            return self.tolerance
        # Operations have no precision of their own.
        dtypes = [x.dtype.name for x in wanted if _is_float(x)]
        half = any("16" in name for name in (getattr(step.operation, "compute_dtype", ""), *dtypes))
        return LARGEST_TOLERANCE if half else LAYER_TOLERANCE

    def _note(self, call: Call, relative: float, problem: str = "", limit=LAYER_TOLERANCE) -> None:
        kind = type(call.layer)
        modules = type(call.rule).__module__, kind.__module__
        ours = all(module.startswith(("keras.", "keras_nisp.")) for module in modules)
        new = LayerDifference(call.path, kind.__name__, relative, limit, ours, problem)
        old = self.layers.setdefault(call.path, new)
        self.layers[call.path] = max(old, new, key=lambda x: x.relative / x.tolerance)

    def _probe(
        self, call: Call, original: Step, step: Step, given: tuple, scale: float
    ) -> tuple[dict, list | None] | None:
        """Compares a call on random inputs.

        Returns:
            The inputs and the outputs, or `None` if there is nothing to draw.
        """
        rng = np.random.default_rng(self.done)
        slots = keras.tree.flatten((original.args, original.kwargs))
        drawn = {}
        for slot, value in zip(slots, keras.tree.flatten(given), strict=True):
            if isinstance(slot, Token):
                drawn[slot] = self._random(slot, value, scale, rng)
        if (rows := call.ask("indices")) is not None:
            drawn = {slot: _all_indices(value, rows) for slot, value in drawn.items()}
        elif not any(map(_is_float, drawn.values())):
            return None
        args, kwargs = original.fill(drawn)
        try:
            wanted = keras.tree.flatten(self.oracle.run(call, args, kwargs))
        except (ValueError, RuleError, tf.errors.OpError):
            return None  # a layer for which not any numbers will do
        small = {t: self.oracle.kept(x, self._traced(t)) for t, x in drawn.items()}
        return small, self._compare(call, step, small, wanted)

    def _traced(self, token: Token) -> Traced:
        if token.call < 0:
            return self.oracle.map.inputs[token.output]
        return self.calls[token.call].outputs[token.output]

    def _random(self, token: Token, value: Any, scale: float, rng) -> Any:
        """Normally distributed values in the place of floating point numbers, if these are no
        indices."""
        if not _is_float(value) or self._traced(token).points_at is not None:
            return value
        numbers = scale * rng.standard_normal(value.shape, np.float32)
        numbers = tf.constant(numbers.astype(value.dtype.as_numpy_dtype))
        return carry_mask(value, self.oracle.possible(numbers, self._traced(token)))


def _all_indices(like: tf.Tensor, rows: int) -> tf.Tensor:
    """All indices of a table, in the shape of a larger batch."""
    shape = like.shape[1:]
    count = -(-rows // int(np.prod(shape, initial=1)))
    return tf.cast(np.resize(np.arange(rows), (count, *shape)), like.dtype)


def _is_float(value: Any) -> bool:
    return isinstance(value, tf.Tensor) and value.dtype.is_floating


def _has_nan(value: Any) -> bool:
    return _is_float(value) and bool(tf.reduce_any(tf.math.is_nan(value)))


def _largest(wanted: list, outputs: list) -> Difference:
    """The difference of the tensor that differs most over its scale."""
    pairs = zip(wanted, outputs, strict=True)
    tensors = [pair for pair in pairs if isinstance(pair[0], tf.Tensor)]
    return largest_difference(*zip(*tensors, strict=True)) if tensors else Difference(0.0, 1.0)


def _other_shapes(wanted: list, outputs: list) -> str:
    for want, output in zip(wanted, outputs, strict=True):
        if np.shape(want) != np.shape(output):
            return (
                f"gives shape {np.shape(output)}, where {np.shape(want)} remains of the original: "
                "the model is of another plan, or a rule resizes it wrongly"
            )
    return ""


def _same_mask(wanted: Any, output: Any) -> bool:
    one, other = mask_of(wanted), mask_of(output)
    if one is None or other is None:
        return one is other
    return np.array_equal(np.asarray(one), np.asarray(other))


def _run(step: Step, values: dict, weights: Sequence[tuple] = ()) -> list:
    """The outputs of a call, which leaves the masks of these values alone."""
    return step.run({token: with_own_mask(values[token]) for token in step.tokens}, weights)


def _amplification(step: Step, values: dict, outputs: list) -> float:
    """What a change of a call's inputs by 1e-6 does to its outputs, over their scale."""
    rng = np.random.default_rng(0)
    moved = {
        token: carry_mask(x, x * tf.constant(1 + 1e-6 * rng.choice([-1.0, 1.0], x.shape), x.dtype))
        if _is_float(x := values[token])
        else x
        for token in step.tokens
    }
    return _largest(outputs, _run(step, moved)).relative


def _excess(original: list, kept: list) -> float:
    """How many times larger the outputs of all channels are than those of the channels kept.

    The oracle rounds to the larger ones. A LayerNormalization of one remaining channel gives
    its offset alone, as a difference of numbers of that size.
    """
    pairs = zip(original, kept, strict=True)
    scales = [[difference(x, x).scale for x in pair] for pair in pairs if _is_float(pair[0])]
    return max((whole / part for whole, part in scales if part), default=1.0)


def _tells(step: Step, values: dict, outputs: list | None) -> bool:
    """Whether a call's outputs would show an error: they change with its weights, or, where it has
    none, differ among each other."""
    if outputs is None:
        return True
    weights = [w for w in getattr(step.operation, "weights", ()) if "float" in w.dtype]
    if not weights:
        arrays = [np.asarray(x) for x in outputs if isinstance(x, tf.Tensor)]
        return any(array.size and (array != array.flat[0]).any() for array in arrays)
    moved = [(weight, _moved(weight)) for weight in weights]
    return _largest(outputs, _run(step, values, moved)).relative > LAYER_TOLERANCE


def _moved(weight: keras.Variable) -> tf.Tensor:
    """Other values of a weight, by some percent; of one that is 0, by as much as a tenth."""
    value = tf.convert_to_tensor(weight)
    shifts = 0.1 * np.random.default_rng(0).uniform(0.5, 1, value.shape[-1:])
    shifts = tf.constant(shifts, value.dtype)
    return value * (1 + shifts) if tf.reduce_any(value != 0) else value + shifts
