"""The compile configuration of a rebuilt model, and what its optimizer remembers."""

import re
from collections import Counter
from collections.abc import Callable

import keras
import tensorflow as tf

from keras_nisp.centripetal.optimizers import Centripetal, CentripetalSGD
from keras_nisp.errors import reason_of, several, warn
from keras_nisp.keras_graph import copying, keras_layers, keras_training, layer_state


def compile_alike(model, small, twins: list[tuple], resize: Callable | None = None) -> None:
    """Compiles the new model as the original is.

    Args:
        model: the original.
        small: the new model.
        twins: old and new variable of each weight.
        resize: `resize(variable, value)` gives a value of the old variable's shape at the new
            one's. With it the optimizer's slots and counters are carried over.
    """
    arguments = keras_training.compile_arguments(model)
    if arguments is None:
        return
    try:
        arguments["optimizer"] = _fresh_optimizer(model, arguments["optimizer"], twins)
        for name in ("metrics", "weighted_metrics"):
            arguments[name] = keras.tree.map_structure(_fresh_metric, arguments.get(name))
        small.compile(**arguments)
    except Exception as error:  # whatever a class of somebody's own raises
        warn(
            f"The compile configuration of '{model.name}' could not be copied "
            f"({reason_of(error)}). Call `compile` on the rebuilt model yourself."
        )
        return
    if resize is not None:
        _carry_slots(model.optimizer, small, twins, resize)
    elif model.optimizer is not None and model.optimizer.built:
        # Keras says of a file whose optimizer was never built that it skips what it does not hold.
        small.optimizer.build(small.trainable_variables)


def _fresh_optimizer(model, given, twins: list[tuple]):
    optimizer = given if isinstance(given, keras.optimizers.Optimizer) else None
    optimizer = optimizer or keras_training.optimizer_of(model)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        inner = _fresh_optimizer(model, optimizer.inner_optimizer, twins)
        return type(optimizer)(**{**optimizer.get_config(), "inner_optimizer": inner})
    fresh = _like(optimizer)
    source = optimizer.inner_optimizer if isinstance(optimizer, Centripetal) else optimizer
    pair = keras_training.unscaled(source), keras_training.unscaled(fresh)
    keras_training.exclude_alike(*pair, twins)
    return fresh


def _like(optimizer):
    """A new optimizer of the same settings; for the clustering ones a plain one."""
    if isinstance(optimizer, (CentripetalSGD, Centripetal)):
        return optimizer.plain()  # its plan is for the wide model
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        inner = _like(optimizer.inner_optimizer)
        return type(optimizer)(**{**optimizer.get_config(), "inner_optimizer": inner})
    config = optimizer.get_config()
    rate = keras_training.learning_rate_of(optimizer)
    # A schedule holds nothing, so that both may use it, of whatever class it is.
    fresh = type(optimizer).from_config(
        config if isinstance(rate, float) else {**config, "learning_rate": 0.0}
    )
    if not isinstance(rate, float):
        fresh.learning_rate = rate
    if not keras_layers.is_of_keras(type(optimizer)):
        layer_state.copy_plain_attributes(optimizer, fresh)
    return fresh


def _fresh_metric(metric):
    return copying.copy_layer(metric) if isinstance(metric, keras.metrics.Metric) else metric


def _carry_slots(old, small, twins: list[tuple], resize: Callable) -> None:
    """Gives the new optimizer the old one's variables: each slot to the weight it belongs to."""
    new = small.optimizer
    inner = keras_training.unscaled(old)
    if isinstance(inner, Centripetal):
        new = new if inner is old else keras_training.unscaled(new)
        old = inner.inner_optimizer
    if not old.built:
        return
    trained = keras_training.trained_variables(old)
    probe = _like(old)
    references = keras_training.build_recording_references(probe, trained)
    slots = _keyed(probe.variables, old.variables, references)
    originals = {id(twin): variable for variable, twin in twins}
    references = keras_training.build_recording_references(new, small.trainable_variables)
    references = {slot: originals[id(weight)] for slot, weight in references.items()}
    alike = [id(originals[id(v)]) for v in small.trainable_variables] == [id(v) for v in trained]
    afresh = []
    for key, after in _keyed(new.variables, new.variables, references).items():
        before, weight = slots.get(key), references.get(id(after))
        if before is None or not (weight is not None or alike or len(after.shape) == 0):
            afresh.append(after.path)
            continue
        value = tf.convert_to_tensor(before)
        value = value if weight is None else resize(weight, value)
        if value.shape == after.shape:
            after.assign(value)
        else:
            afresh.append(after.path)
    if afresh:
        named = several(f"'{path}'" for path in afresh)
        warn(
            f"Optimizer variables {named} start from their initial values: the old optimizer has "
            "no matching slots."
        )


def _keyed(variables: list, values: list, references: dict) -> dict[tuple, keras.Variable]:
    """An optimizer's variables by the weight they belong to, or by name, and by number.

    Args:
        variables: of an optimizer whose references are known.
        values: of this one or of one built alike.
        references: the weight, by `id` of the slot.
    """
    seen: Counter = Counter()
    keyed = {}
    for variable, value in zip(variables, values, strict=True):
        weight = references.get(id(variable))
        # Keras numbers names that nobody gave: `variable_3` here is `variable_7` there.
        owner = re.sub(r"_\d+$", "", variable.name) if weight is None else id(weight)
        keyed[owner, seen[owner]] = value
        seen[owner] += 1
    return keyed
