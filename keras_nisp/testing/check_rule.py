"""`check_rule`: proves the rule of a layer."""

import itertools
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.centripetal.merging import plan_merging
from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.registry import rule_of
from keras_nisp.channels.rule import Barrier
from keras_nisp.channels.tracing import trace_quietly
from keras_nisp.data.random_samples import random_samples
from keras_nisp.data.samples import outputs_of
from keras_nisp.errors import RuleError, reason_of
from keras_nisp.importance.nisp import NISP
from keras_nisp.importance.weights import Random
from keras_nisp.keras_graph import calling, copying
from keras_nisp.keras_graph.rounding import LARGEST_TOLERANCE
from keras_nisp.keras_graph.wrappers import is_wrapper
from keras_nisp.plans.plan import Plan
from keras_nisp.plans.planning import plan_pruning
from keras_nisp.surgery.rebuilding import rebuild
from keras_nisp.surgery.verification import verify
from keras_nisp.testing.trials import Trials

RATIOS = (0.5, 0.25, 0.7)
READ = 3  # outputs of the layers that read what the layer gives


def check_rule(
    layer: keras.Operation,
    input_shape: Sequence | Mapping,
    *,
    call_kwargs: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    plans: int = 3,
    seed: int = 0,
) -> None:
    """Proves the rule that is registered for a layer.

    Small models are built around the layer: layers before it create the channels that enter it,
    along each axis in turn, and layers after it read its outputs. Runs on numbers, independent
    of the rule, then show which outputs depend on which inputs:

    * each variable is bound, along the axes that really hold its channels;
    * each channel of the output depends on no other channel than its name says;
    * FLOPs are those that TensorFlow computes, where products can be counted;
    * `absolute` is linear, and positive for positive inputs;
    * for random plans, `verify` accepts the rebuilt model, and it can be saved and loaded.

    Args:
        layer: the layer, or `keras.ops` operation. It is not changed: a copy with random weights is
            used.
        input_shape: shape of one sample, `(16, 16, 8)`; several inputs as a list of shapes for a
            layer that takes a list of tensors, or as a dict by argument of its `call`,
            `{"query": (5, 8), "value": (7, 8)}`. Use at least 4 channels or so, since few can be
            removed from fewer.
        call_kwargs: other keyword arguments of the call.
        dtype: dtype of the inputs. Integers (indices) are passed as they are; nothing is removed
            from them.
        plans: number of plans to try if the rule follows channels; the second is made by `NISP`
            (if outputs depend on inputs at all), the others at random.
        seed: seed of random weights, inputs and plans.

    Raises:
        RuleError: the rule is wrong. The message names layer and rule, and says what to correct.
        TypeError: `layer` is not a layer or operation.
        ValueError: an argument is wrong, or Keras refuses the call of the layer.

    Example:

    >>> from keras_nisp.testing import check_rule
    >>> check_rule(keras.layers.Dense(6, activation="relu"), (4,))
    """
    if not isinstance(layer, keras.Operation):
        raise TypeError(
            "Expected `layer` to be a layer, as in `check_rule(MyLayer(8), (4,))`. "
            f"Received: {layer!r}"
        )
    _check_registered(layer)
    with warnings.catch_warnings():
        # The layers behind it take no masks.
        warnings.filterwarnings("ignore", ".*destroy the mask", UserWarning)
        _check_all_axes(layer, input_shape, call_kwargs or {}, dtype, plans, seed)


def _check_all_axes(
    layer: keras.Operation,
    input_shape: Sequence | Mapping,
    call_kwargs: Mapping[str, Any],
    dtype: str,
    plans: int,
    seed: int,
) -> None:
    """`check_rule` with channels along each axis in turn."""
    followed, reasons = False, []
    for index, axes in enumerate(_axes(input_shape) if "float" in dtype else [()]):
        try:
            proof = _Proof(layer, input_shape, call_kwargs, dtype, axes, seed + index)
            # One plan shows that channels along further axes are left alone, or followed too.
            followed |= proof.run(1 if followed else plans, seed)
        except RuleError as error:
            where = ", ".join(map(str, axes)) or "-1"
            raise RuleError(
                f"{error} (Tried with channels along axis {where} of inputs.)"
            ) from None
        reasons += proof.reasons()
    if not followed:
        why = f" It {reasons[0]}." if reasons else ""
        raise proof.error("trace", f"lets no channel be removed, along any axis.{why}")


def _check_registered(layer: keras.Operation) -> None:
    rule, kind = rule_of(layer), type(layer).__name__
    if isinstance(rule, Barrier) and not is_wrapper(layer):
        reason = "has no rule" if rule.warns else f"is left alone on purpose: {rule.reason}"
        raise RuleError(
            f"Layer '{layer.name}' ({kind}) {reason}. Register one for this very class, as in "
            f"`@keras_nisp.register_rule({kind})` (docs/custom_layers.md)."
        )


def _as_leaves(input_shape: Any) -> Any:
    """The structure of inputs, with lists of sizes as leaves that `keras.tree` does not enter."""
    if not isinstance(input_shape, (Mapping, Sequence)) or None in keras.tree.flatten(input_shape):
        raise ValueError(
            "Expected `input_shape` to be the whole shape of one sample, such as (16, 16, 8), or a "
            f"list or dict of shapes. Received: {input_shape!r}"
        )
    if isinstance(input_shape, Mapping):
        return {name: _Shape(shape) for name, shape in input_shape.items()}
    if all(isinstance(size, (int, np.integer)) for size in input_shape):
        return _Shape(input_shape)
    return [_Shape(shape) for shape in input_shape]


def _axes(input_shape: Any) -> list[tuple[int, ...]]:
    """For each model the axis of each input along which channels lie: all pairs of two, of more
    inputs the same."""
    ranks = [max(len(shape.sizes), 1) for shape in keras.tree.flatten(_as_leaves(input_shape))]
    if len(ranks) < 3:
        return list(itertools.product(*(range(-1, -1 - rank, -1) for rank in ranks)))
    return [tuple(max(axis, -rank) for rank in ranks) for axis in range(-1, -1 - max(ranks), -1)]


class _Shape:
    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(map(int, sizes))

    def __iter__(self):
        return iter(self.sizes)


class _Proof:
    """The trials of a layer in a model in which channels lie along one axis of its inputs."""

    def __init__(
        self,
        layer: keras.Operation,
        input_shape: Sequence | Mapping,
        call_kwargs: Mapping[str, Any],
        dtype: str,
        axes: tuple[int, ...],
        seed: int,
    ) -> None:
        self.layer = copying.copy_layer(layer)
        self.model = _model_around(self.layer, input_shape, call_kwargs, axes, dtype)
        self.rng = np.random.default_rng(seed)
        _randomise(self.model, self.rng)
        self.map: ChannelMap = trace_quietly(self.model)
        self.calls: list[Call] = [c for c in self.map.calls if c.layer is self.layer]

    def error(self, method: str, what: str) -> RuleError:
        if self.calls:
            return self.calls[0].error(method, what)
        title = f"'{self.layer.name}' ({type(self.layer).__name__})"
        return RuleError(f"`{method}` of the rule for layer {title} {what}")

    def reasons(self) -> list[str]:
        """Why channels of the layer may not be removed."""
        units = [t.names.ravel() for call in self.calls for t in (*call.outputs, *call.inputs)]
        found = np.concatenate([np.zeros(0, int), *units]).tolist()
        return [reason for unit in found for reason in self.map.reasons.get(unit, ())]

    def run(self, plans: int, seed: int) -> bool:
        """Tries everything; whether there was something to remove at the layer."""
        arguments = self._arguments()
        for call in self.calls:
            if not isinstance(call.rule, Barrier):
                Trials(self.map, call, arguments[call], self.rng).run()
        touched = [t.names.ravel() for c in self.calls for t in (*c.inputs, *c.outputs)]
        touched += [units for call in self.calls for units in call.hidden.values()]
        if self.calls and not self.map.free[np.concatenate(touched)].any():
            return False
        samples = random_samples(self.model, self.map.input_shapes, count=16)
        for index in range(plans):
            ranked = index == 1 and any(np.ptp(x, 0).any() for x in outputs_of(self.model, samples))
            importance = NISP(samples.inputs) if ranked else Random(seed + index)
            plan = plan_pruning(self.model, importance, ratio=RATIOS[index % len(RATIOS)])
            self._check_plan(plan, save=index == 0)
        merging = self._merging()
        if merging is not None:
            self._check_plan(merging)
        return True

    def _creates(self) -> bool:
        """Whether channels that may be removed are created by the layer."""
        paths = [call.path for call in self.calls]
        made = (c.units for c in self.map.creators if c.layer.partition(":")[0] in paths)
        return any(self.map.free[units].any() for units in made)

    def _merging(self) -> Plan | None:
        """A plan that merges neighbors, if there is something that may be merged."""
        try:
            return plan_merging(self.model, ratio=0.5, clustering="even")
        except ValueError:  # of channels that are added up, say
            return None

    def _arguments(self) -> dict[Call, tuple]:
        """What each call of the layer is given, for random samples."""
        given = {}

        def visit(call, args, kwargs):
            given[call] = args, kwargs
            return call.infer(*args, **kwargs)

        samples = random_samples(self.model, self.map.input_shapes)
        self.map.walk(next(samples.batches())[0], visit)
        return given

    def _check_plan(self, plan: Plan, save: bool = False) -> None:
        """The model that a plan makes must be right, and load."""
        try:
            small = rebuild(self.model, plan, force=True, verbose=0)
        except RuleError:
            raise
        except (ValueError, TypeError, tf.errors.OpError) as error:
            if f"'{self.layer.name}'" not in str(error) and not self._creates():
                raise self.error(
                    "trace",
                    "names what the layer gives in a way that does not fit what takes it: "
                    f"{reason_of(error)}. Each axis that gets shorter must have names.",
                ) from error
            raise self.error(
                "resize",
                f"gives a layer of another size than its variables get: {reason_of(error)}. Let it "
                "give the config for the new widths, as in `{**config, 'units': "
                "width(call.outputs[0].line(-1))}`.",
            ) from error
        result = verify(small, self.model, plan)
        if not result.ok and plan.merges:
            raise self.error(
                "trace",
                f"binds variables so that merged channels come out wrong: layer {result.layer}. "
                "Bind by `own=` what a channel has (a scale, a bias), by `read=` what a kernel "
                "multiplies it by before a sum.",
            )
        if not result.ok:
            mixes = any(call.mixes_channels or call.sums_channels for call in self.calls)
            where = f"layer {result.layer}" if result.layer and not result.layer.ok else str(result)
            method, advice = "resize", "If it computes with the number of channels, `convert` must "
            advice += "make up for a change of that, or the settings that `resize` gives"
            if mixes:
                method = "masked"
                advice = "`masked` must give what the layer gives without the removed channels"
            raise self.error(method, f"does not fit what the layer computes: {where}. {advice}.")
        if save:
            self._check_loads(small)

    def _check_loads(self, small: keras.Model) -> None:
        samples = random_samples(small, self.map.input_shapes)
        inputs, _ = next(samples.batches())
        kinds = {type(part).__name__: type(part) for part in _parts(self.layer)}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "small.keras"
            try:
                small.save(path)
                loaded = keras.saving.load_model(path, custom_objects=kinds, compile=False)
            except (ValueError, TypeError) as error:
                raise self.error(
                    "resize",
                    "gives a config with which the layer can be made, but not loaded from a file: "
                    f"{reason_of(error)} `get_config` of the layer must give all that its "
                    "`__init__` takes.",
                ) from error
        pairs = zip(
            keras.tree.flatten(calling.answer(small, inputs)),
            keras.tree.flatten(calling.answer(loaded, inputs)),
            strict=True,
        )
        if not all(np.allclose(x, y, atol=LARGEST_TOLERANCE * 1e-3) for x, y in pairs):
            raise self.error("resize", "gives a layer that computes something else once loaded.")


def _parts(layer: keras.Operation) -> list:
    return layer._flatten_layers() if isinstance(layer, keras.Layer) else [layer]


def _model_around(
    layer: keras.Operation,
    input_shape: Sequence | Mapping,
    call_kwargs: Mapping[str, Any],
    axes: tuple[int, ...],
    dtype: str,
) -> keras.Model:
    """A model in which layers create what enters the layer, and read what leaves it."""
    inputs: list[keras.KerasTensor] = []

    def enter(shape: _Shape):
        inputs.append(keras.Input(shape.sizes, dtype=dtype, name=f"input{len(inputs)}"))
        if not axes:
            return inputs[-1]
        return _created(inputs[-1], axes[len(inputs) - 1], f"before{len(inputs)}")

    structure = keras.tree.map_structure(enter, _as_leaves(input_shape))
    named = structure if isinstance(structure, dict) else {}
    given = layer(**named, **call_kwargs) if named else layer(structure, **call_kwargs)
    shapes = [tuple(output.shape[1:]) for output in keras.tree.flatten(given)]
    if any(None in shape for shape in shapes):
        raise ValueError(
            f"Expected all sizes of what layer '{layer.name}' gives to be known, but for the batch "
            f"axis. Received: {shapes}. Give it settings by which they are, or let it have a "
            "`compute_output_shape`."
        )
    read = [
        keras.layers.Dense(READ, name=f"behind{index}")(keras.layers.Flatten()(output))
        for index, output in enumerate(keras.tree.flatten(given))
        if "float" in keras.backend.standardize_dtype(output.dtype)
    ]
    return keras.Model(inputs, read or given, name="around")


def _created(x, axis: int, name: str):
    """A layer that creates channels along an axis of its input, the batch axis not counted."""
    rank = len(x.shape) - 1
    if not rank:
        return x
    axis = axis % rank + 1
    order = [i for i in range(1, rank + 1) if i != axis] + [axis]
    dense = keras.layers.Dense(x.shape[axis], name=name)
    if axis == rank:
        return dense(x)
    back = tuple(int(i) + 1 for i in np.argsort(order))
    return keras.layers.Permute(back)(dense(keras.layers.Permute(tuple(order))(x)))


def _randomise(model: keras.Model, rng: np.random.Generator) -> None:
    """Random weights: those that a layer begins with hide errors. What is not trained, such as a
    variance, stays above zero."""
    for weight in model.weights:
        if "float" in weight.dtype:
            scale = 1.5 if len(weight.shape) < 2 else 1 / np.sqrt(np.prod(weight.shape[:-1]))
            value = rng.normal(0, scale, weight.shape)
            weight.assign(value if weight.trainable else np.abs(value) + 0.5)
