"""What compiling and training add to a model: optimizers with their slots, steps, strategies."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_nisp.keras_graph.keras_models import all_layers, output_names, output_structure


def compile_arguments(model: keras.Model) -> dict | None:
    """The arguments `model.compile` was called with, or `None`."""
    config = getattr(model, "_compile_config", None)
    if not model.compiled or config is None:
        return None
    # Who saves a model as .h5 takes the optimizer out of its configuration.
    return {"optimizer": model.optimizer, **config.config}


def loss_of(model: keras.Model, index: int) -> Any:
    """The loss that a model was compiled with for an output, or `None`.

    As Keras finds it: a dict goes by the keys of the model's outputs, or, if these are a list, by
    the names of the layers that give them; a list goes by their order.
    """
    loss: Any = (compile_arguments(model) or {}).get("loss")
    given = output_structure(model)
    if isinstance(loss, dict) and not isinstance(given, dict):
        return loss.get(output_names(model)[index])
    path, tensor = keras.tree.flatten_with_path(given)[index]
    for key in (*path, None):  # `None` at the output itself
        if isinstance(loss, (list, tuple)) and not any(map(keras.tree.is_nested, loss)):
            flat = [id(output) for output in keras.tree.flatten(given)]
            return loss[flat.index(id(tensor))] if len(loss) == len(flat) else None
        if not keras.tree.is_nested(loss):
            break
        known = key in loss if isinstance(loss, dict) else key < len(loss)
        loss, given = loss[key] if known else None, given[key]
    return loss


def optimizer_of(model: keras.Model) -> keras.optimizers.Optimizer:
    """The optimizer that the user made: the inner one under loss scaling."""
    return unscaled(model.optimizer)


def unscaled(optimizer) -> keras.optimizers.Optimizer:
    """An optimizer, or what is inside of loss scaling."""
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    return optimizer.inner_optimizer if scaled else optimizer


def learning_rate_of(optimizer: keras.optimizers.Optimizer):
    """An optimizer's schedule, or its learning rate as a float."""
    rate = unscaled(optimizer)._learning_rate
    return float(tf.convert_to_tensor(rate)) if isinstance(rate, keras.Variable) else rate


def batches_seen(optimizer: keras.optimizers.Optimizer) -> int:
    """Number of batches, also of those whose gradients were only accumulated."""
    return int(tf.convert_to_tensor(unscaled(optimizer)._iterations))


def innermost_optimizer(model: keras.Model) -> keras.optimizers.Optimizer | None:
    """The optimizer that updates weights, under loss scaling and other wrappers; `None` if the
    model has none, or something that is no optimizer of Keras."""
    optimizer = getattr(model, "optimizer", None)
    while isinstance(
        inner := getattr(optimizer, "inner_optimizer", None), keras.optimizers.Optimizer
    ):
        optimizer = inner
    return optimizer if isinstance(optimizer, keras.optimizers.Optimizer) else None


def weight_averages(model: keras.Model) -> dict[int, keras.Variable]:
    """The moving average that the optimizer keeps of each weight, by `id` of the weight."""
    optimizer = innermost_optimizer(model)
    averages: dict[int, keras.Variable] = {}
    for each in getattr(optimizer, "optimizers", [optimizer]):
        if each is not None and each.use_ema and each.built:
            pairs = zip(
                each._trainable_variables, each._model_variables_moving_average, strict=True
            )
            averages |= {id(variable): average for variable, average in pairs}
    return averages


def random_states(model: keras.Model) -> list[keras.Variable]:
    """The states of the random numbers that layers draw (dropout), which Keras does not save."""
    generators = [g for layer in all_layers(model) for g in layer._seed_generators]
    return [g.state for g in generators]


def forget_functions(model: keras.Model) -> None:
    """Lets the model compile its steps again: what they do has changed since."""
    if model.compiled:
        model.make_train_function(force=True)  # `fit` may be about to call it
        model.test_function = model.predict_function = None


def strategy_of(model: keras.Model) -> tf.distribute.Strategy:
    """The strategy under which the model was made; TensorFlow's default one if there is none."""
    return model.distribute_strategy


def compiled_by_xla() -> bool:
    """Whether what is being traced is compiled by XLA (`jit_compile=True`), which has fewer
    operations."""
    return tf.__internal__.get_enclosing_xla_context() is not None


def update_replicas(optimizer, update: Callable, rows: list[tuple]) -> None:
    """Runs `update(variable, *arguments)` for each row on every replica's own variable.

    As Keras' optimizers do it, in and outside of a `tf.distribute` strategy.
    """

    def run(distribution, rows):
        for variable, *arguments in rows:
            distribution.extended.update(variable.value, update, tuple(arguments), group=False)

    tf.__internal__.distribute.interim.maybe_merge_call(run, optimizer._distribution_strategy, rows)


def build_recording_references(optimizer, variables: list) -> dict[int, keras.Variable]:
    """Builds an optimizer and notes which weight each slot belongs to.

    Returns:
        The weight, by `id` of the slot.
    """
    references = {}
    inner = unscaled(optimizer)
    add = inner.add_variable_from_reference

    def recording_add(reference_variable, *args, **kwargs):
        slot = add(reference_variable, *args, **kwargs)
        references[id(slot)] = reference_variable
        return slot

    inner.add_variable_from_reference = recording_add
    try:
        optimizer.build(variables)
    finally:
        del inner.add_variable_from_reference
    return references


def trained_variables(optimizer) -> list[keras.Variable]:
    """The weights for which an optimizer was built."""
    return list(unscaled(optimizer)._trainable_variables)


def exclude_alike(old, new, twins: list[tuple]) -> None:
    """Excludes from weight decay in one optimizer what another excludes.

    Args:
        old, new: the optimizers; the new one is not built.
        twins: variables of the model of the old one, and of that of the new one.
    """
    keys: set = getattr(old, "_exclude_from_weight_decay", set())
    pattern = getattr(old, "_exclude_from_weight_decay_pattern", None)
    if keys or pattern:
        new.exclude_from_weight_decay([twin for v, twin in twins if old._var_key(v) in keys])
        new._exclude_from_weight_decay_pattern = pattern


def moving_averages(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The moving averages of the variables that an optimizer with `use_ema` trains, in order."""
    return optimizer._model_variables_moving_average
