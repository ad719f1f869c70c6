"""The smaller model learns from the original, on samples without labels."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.damage.distance import Distance
from keras_nisp.data.samples import Samples, outputs_of
from keras_nisp.errors import warn
from keras_nisp.io.progress import Progress
from keras_nisp.keras_graph import calling, keras_models
from keras_nisp.keras_graph.keras_training import strategy_of
from keras_nisp.recovery.assigning import check_finite
from keras_nisp.recovery.pair import Pair

TEMPERATURE = 2.0
LEARNING_RATE = 1e-3
WARMUP = 0.1  # of the steps: full ones would throw fitted weights off; then a cosine to zero
BATCH_SIZE = 64


def check_teaching(steps: Any, possible: bool, needed: str) -> None:
    """Raises unless so many steps of teaching can be made.

    Args:
        steps: the user's argument.
        possible: whether there is all that it takes.
        needed: what it takes, for the error.
    """
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 0:
        raise ValueError(
            "Expected `teach_steps` to be a whole number, 0 for no teaching. "
            f"Received: teach_steps={steps!r}"
        )
    if steps and not possible:
        raise ValueError(
            f"Expected {needed} for teach_steps={steps}. Received none: pass them, or leave "
            "`teach_steps` out."
        )


def teach(pair: Pair, samples: Samples, steps: int, seed: int = 0, verbose: int = 0) -> None:
    """Trains the smaller model to give what the original gives.

    Both are in inference: statistics of BatchNormalization stay, nothing is dropped out. Only
    trainable weights change.

    Args:
        pair: the original and the smaller model.
        samples: what both take in.
        steps: how many batches of 64 samples.
        seed: for the order of the samples.
        verbose: 1 shows a progress bar.
    """
    small = pair.small
    if not small.trainable_variables:
        raise ValueError(
            f"Expected a model with trainable weights for `teach_steps`. All of '{small.name}' "
            "are frozen: set `trainable` of the layers that may learn."
        )
    if len(samples) < BATCH_SIZE:
        warn(
            f"Teaching on {len(samples)} samples: a model learns so few by heart. Expected at "
            f"least {BATCH_SIZE}, better some hundreds, or `teach_steps=0`."
        )
    answers = outputs_of(pair.large.model, samples)
    for answer in answers:
        check_finite(answer, f"What '{pair.large.model.name}' gives is")
    distance = Distance(pair.large, TEMPERATURE)
    distance.fit(answers)
    progress = Progress(steps, verbose)
    order = _batches(len(samples), min(samples.batch or BATCH_SIZE, len(samples)), seed)
    with strategy_of(small).scope():
        learn = _learner(small, distance, steps)
        for step, chosen in zip(range(steps), order, strict=False):
            inputs, wanted = (
                [tf.convert_to_tensor(array[chosen]) for array in arrays]
                for arrays in (samples.inputs, answers)
            )
            check_finite(learn(inputs, wanted), f"What step {step} of teaching minimises is")
            progress.update(step + 1)
    for weight in small.trainable_variables:
        check_finite(weight.value, f"Taught, '{weight.path}' would be")


def _learner(model: keras.Model, distance: Distance, steps: int) -> Callable:
    """A step of training, compiled: it takes inputs and what is to be given, and gives the mean
    distance from that."""
    warmup = round(WARMUP * steps)
    schedule = keras.optimizers.schedules.CosineDecay(
        LEARNING_RATE / (warmup + 1),
        steps - warmup,
        warmup_target=LEARNING_RATE,
        warmup_steps=warmup,
    )
    optimizer: Any = keras.optimizers.Adam(schedule)
    if keras_models.is_half(model):
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    variables = model.trainable_variables
    optimizer.build(variables)
    fresh = calling.recurrent_states(model)

    @tf.function(jit_compile=False)
    def learn(inputs, wanted):
        with tf.GradientTape() as tape:
            # What a call changes (states, seeds, losses) is forgotten.
            states = [(state, tf.zeros(state.shape, state.dtype)) for state in fresh]
            with keras.StatelessScope(state_mapping=states, collect_losses=True):
                given = calling.infer(model, keras_models.structured_inputs(model, inputs))
            loss = tf.reduce_mean(distance(wanted, keras.tree.flatten(given)))
            scaled = optimizer.scale_loss(loss)
        gradients = tape.gradient(
            scaled,
            [variable.value for variable in variables],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss

    return learn


def _batches(count: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Indices of samples, without end: each comes as often as the others."""
    rng, rest = np.random.default_rng(seed), np.zeros(0, int)
    while True:
        while len(rest) < size:
            rest = np.concatenate([rest, rng.permutation(count)])
        yield rest[:size]
        rest = rest[size:]
