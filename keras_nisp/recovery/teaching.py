"""The smaller model learns from the original, on samples without labels."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.damage.distance import Distance
from keras_nisp.data.samples import Samples, outputs_of
from keras_nisp.errors import check_function, warn
from keras_nisp.io.progress import Progress
from keras_nisp.keras_graph import calling, keras_models
from keras_nisp.keras_graph.keras_training import strategy_of
from keras_nisp.keras_graph.masks import counts_of, step_weights
from keras_nisp.keras_graph.walking import constant_arguments, walk
from keras_nisp.recovery.assigning import check_finite
from keras_nisp.recovery.pair import Pair, Reader

TEMPERATURE = 2.0
FEATURES = 50.0  # weight of the difference in what kernels read, relative to 1 for the outputs
LEARNING_RATE = 1e-3
WARMUP = 0.1  # of the steps: full ones would throw fitted weights off; then a cosine to zero
BATCH_SIZE = 64
SCALE_SAMPLES = 256  # by which the scale of outputs is taken, and whether teaching was a gain
ROUNDING = 1e-6  # of what is minimized


def check_teaching(steps: Any, possible: bool, needed: str, augment: Any) -> None:
    """Raises unless so many steps of teaching can be made.

    Args:
        steps: the user's argument.
        possible: whether there is all that it takes.
        needed: what it takes, for the error.
        augment: the user's argument, for the batches of these steps.
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
    if augment is not None:
        check_function("augment", augment)
        if not steps:
            raise ValueError(
                "Expected `augment` with `teach_steps`: it changes the batches of these steps. "
                f"Received: teach_steps={steps}, so that it would have no effect."
            )


def try_augment(model: keras.Model, samples: Samples, augment: Callable | None) -> None:
    """Raises unless a function makes a batch of inputs of another. So this is said at once, and not
    when a model has been pruned and refitted.

    Args:
        model: which takes the inputs.
        samples: of which the first batch is tried.
        augment: the user's argument.
    """
    first = samples.first(_batch_size(samples)).inputs
    _augmented(model, list(map(tf.convert_to_tensor, first)), augment)


def teach(
    pair: Pair,
    samples: Samples,
    steps: int,
    seed: int = 0,
    verbose: int = 0,
    augment: Callable | None = None,
) -> None:
    """Trains the smaller model to give what the original gives, and to read what that reads.

    What kernels read of the channels that both have says far more of each sample than the outputs
    do. Both models are in inference: statistics of BatchNormalization stay, nothing is dropped
    out. Only trainable weights change.

    Args:
        pair: the original and the smaller model.
        samples: what both take in.
        steps: how many batches of 64 samples.
        seed: for the order of the samples.
        verbose: 1 shows a progress bar.
        augment: a function from a batch of inputs to another, such as a `keras.layers.RandomFlip`.
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
            f"least {BATCH_SIZE}, better a few hundred, or `teach_steps=0`."
        )
    distance, progress = Distance(pair.large, TEMPERATURE), Progress(steps, verbose, "Teaching")
    some = samples.at_most(SCALE_SAMPLES)
    distance.fit(outputs_of(pair.large.model, some))
    order = _batches(len(samples), _batch_size(samples), seed)
    with strategy_of(small).scope():
        apart = _objective(pair, distance)
        learn = _learner(pair, apart, steps)
        with _kept_if_closer(small, lambda: _mean(apart, some)):
            for step, chosen in zip(range(steps), order, strict=False):
                inputs = [tf.convert_to_tensor(array[chosen]) for array in samples.inputs]
                check_finite(
                    learn(_augmented(small, inputs, augment)),
                    f"What step {step} of teaching minimizes is",
                )
                progress.update(step + 1)
            for variable in small.trainable_variables:
                check_finite(variable.value, f"Taught, '{variable.path}' would be")


@contextlib.contextmanager
def _kept_if_closer(model: keras.Model, measure: Callable[[], float]):
    """Gives a model the weights back that it had, unless training made what is measured less."""
    first, before = measure(), [variable.numpy() for variable in model.trainable_variables]
    yield
    last = measure()
    if not last <= first:
        for variable, value in zip(model.trainable_variables, before, strict=True):
            variable.assign(value)
    if last > first > ROUNDING:
        warn(
            f"Teaching did not bring '{model.name}' closer to the original: what it minimizes went "
            f"from {first:.3g} to {last:.3g}, so the weights from before were kept. Steps are made "
            "for weights and data on a scale of 1: scale inputs and outputs if theirs is another, "
            "or teach for more steps."
        )


def _mean(apart: Callable, samples: Samples) -> float:
    """What teaching minimizes, over some samples as they are."""
    batches = [inputs for inputs, _ in samples.batches(samples.batch or BATCH_SIZE)]
    counts = [len(inputs[0]) for inputs in batches]
    return float(np.average([float(apart(inputs)) for inputs in batches], weights=counts))


def _augmented(model: keras.Model, inputs: list[tf.Tensor], augment: Callable | None) -> list:
    if augment is None:
        return inputs
    given = keras_models.structured_inputs(model, inputs)
    extra = {"training": True} if isinstance(augment, keras.Layer) else {}
    changed = keras.tree.flatten(augment(given, **extra))
    before, after = (
        [tuple(x.shape) if hasattr(x, "shape") else type(x).__name__ for x in tensors]
        for tensors in (inputs, changed)
    )
    if before != after:
        raise ValueError(
            f"Expected `augment` to keep the shapes of a batch of inputs. It made {after} of "
            f"{before}."
        )
    changed = [tf.cast(new, old.dtype) for new, old in zip(changed, inputs, strict=True)]
    for new in changed:
        if new.dtype.is_floating and not bool(tf.reduce_all(tf.math.is_finite(new))):
            raise ValueError(
                "Expected `augment` to make finite inputs. It made NaN or infinity of finite ones."
            )
    return changed


def _objective(pair: Pair, distance: Distance) -> Callable:
    """How far the smaller model is from the original on a batch of inputs: a scalar."""
    readers = _compared(pair)

    def apart(inputs):
        wanted, read = _run(pair.large.model, inputs, readers)
        given, reads = _run(pair.small, inputs, readers)
        loss = tf.reduce_mean(distance(wanted, given, list(map(counts_of, given))))
        for reader, old, new in zip(readers.values(), read, reads, strict=True):
            loss += FEATURES / len(readers) * _apart(reader.kept(old), new)
        return loss

    return apart


def _learner(pair: Pair, apart: Callable, steps: int) -> Callable:
    """A step of training, compiled: it takes inputs, and gives what it minimizes."""
    warmup = round(WARMUP * steps)
    schedule = keras.optimizers.schedules.CosineDecay(
        LEARNING_RATE / (warmup + 1),
        steps - warmup,
        warmup_target=LEARNING_RATE,
        warmup_steps=warmup,
    )
    optimizer: Any = keras.optimizers.Adam(schedule)
    if keras_models.is_half(pair.small):
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    variables = pair.small.trainable_variables
    weights = [variable.value for variable in variables]
    optimizer.build(variables)
    strategy = strategy_of(pair.small)

    def step(inputs):
        with tf.GradientTape(watch_accessed_variables=False) as tape:  # not those of the original
            tape.watch(weights)
            loss = apart(inputs)
            # Replicas see the same samples, and their gradients are added up.
            scaled = optimizer.scale_loss(loss / strategy.num_replicas_in_sync)
        gradients = tape.gradient(
            scaled, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss

    @tf.function(jit_compile=False, autograph=False)
    def learn(inputs):
        return strategy.reduce("mean", strategy.run(step, (inputs,)), axis=None)

    return learn


def _compared(pair: Pair) -> dict[tuple[int, int], Reader]:
    """Kernels by the number of their call and of the tensor that they read there: each tensor
    once, and none that enters the model."""
    number = {id(call): index for index, call in enumerate(pair.large.calls)}
    known, readers = set(pair.large.inputs), {}
    for reader in pair.readers:
        if reader.plain.inside is None and reader.input not in known:
            known.add(reader.input)
            readers[number[id(reader.call)], reader.plain.argument] = reader
    return readers


def _run(model: keras.Model, inputs: list, wanted: Iterable) -> tuple[list, list]:
    """What a model gives in inference, and what some of its calls take in.

    What calls change (states, seeds, losses) is forgotten.

    Args:
        model: it starts from a fresh state.
        inputs: flat.
        wanted: pairs: of a call and of the tensor among its arguments the numbers.
    """
    numbers, found = itertools.count(), {}

    def visit(site, args, kwargs):
        number, constants = next(numbers), constant_arguments(site.operation)
        tensors = [x for x in keras.tree.flatten((args, kwargs)) if tf.is_tensor(x)]
        tensors = [x for x in tensors if id(x) not in constants]
        found.update({(number, index): x for index, x in enumerate(tensors)})
        return calling.infer(site.operation, *args, **kwargs)

    fresh = [(state, tf.zeros_like(state)) for state in calling.recurrent_states(model)]
    with keras.StatelessScope(state_mapping=fresh, collect_losses=True):
        given = walk(model, inputs, visit)
    return keras.tree.flatten(given), [found[which] for which in wanted]


def _apart(old: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
    """The mean square of a difference over the variance from sample to sample, at steps that
    count."""
    weights, mask = 1.0, counts_of(new)
    old, new = tf.cast(old, tf.float32), tf.cast(new, tf.float32)
    if mask is not None:
        weights = step_weights(mask, new)
    centred = old - tf.math.divide_no_nan(
        tf.reduce_sum(weights * old, 0), tf.reduce_sum(weights * tf.ones_like(old), 0)
    )
    variance, error = (tf.reduce_mean(weights * x**2) for x in (centred, new - old))
    return tf.math.divide_no_nan(error, variance)


def _batch_size(samples: Samples) -> int:
    return min(samples.batch or BATCH_SIZE, len(samples))


def _batches(count: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Indices of samples, without end: each comes as often as the others."""
    rng, rest = np.random.default_rng(seed), np.zeros(0, int)
    while True:
        while len(rest) < size:
            rest = np.concatenate([rest, rng.permutation(count)])
        yield rest[:size]
        rest = rest[size:]
