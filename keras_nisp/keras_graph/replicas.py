"""Which strategies of `tf.distribute` a callback can train under in `fit`."""

import keras
import tensorflow as tf

from keras_nisp.keras_graph import keras_training


def check_fit(model: keras.Model, callback: keras.callbacks.Callback) -> None:
    """Raises if `fit` cannot train a model under its strategy, where Keras' own words say little.

    Args:
        model: that is about to be trained.
        callback: that asks. In a training loop of the user's own it has no `params`: there any
            strategy that runs the same step on all replicas will do.

    Raises:
        ValueError: names the strategy, and what to do.
    """
    if not callback.params:
        return
    strategy = keras_training.strategy_of(model)
    name = type(callback).__name__
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        raise ValueError(
            f"{name} cannot work in `fit` under MultiWorkerMirroredStrategy, because `fit` of "
            "Keras 3 does not work there itself (keras#20585). Train in a loop of your own with "
            "`strategy.run`, and call the callback's methods: examples/two_workers.py does so."
        )
    if isinstance(strategy, tf.distribute.ParameterServerStrategy):
        raise ValueError(
            f"{name} cannot work under ParameterServerStrategy: workers take steps on their own, "
            "so there is no step at which all of them have the same masks. Use MirroredStrategy, "
            "or MultiWorkerMirroredStrategy in a loop of your own (examples/two_workers.py)."
        )
    optimizer = keras_training.innermost_optimizer(model)
    accumulates = getattr(optimizer, "gradient_accumulation_steps", None)
    if accumulates and strategy.num_replicas_in_sync > 1:
        raise ValueError(
            f"{name} cannot work with gradient_accumulation_steps={accumulates} on "
            f"{strategy.num_replicas_in_sync} replicas, because optimizers of Keras 3 do not: they "
            "add up gradients of replicas inside of a conditional. Leave it out and use larger "
            "batches, or one replica."
        )
