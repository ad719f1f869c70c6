"""Repairs a pruned model on calibration data, without labels."""

import math
from collections.abc import Callable
from typing import Any

import keras

from keras_nisp._renaming import renamed
from keras_nisp.channels.registry import rule_of
from keras_nisp.data.calibration import calibration_samples
from keras_nisp.data.samples import MAX_SAMPLES, Samples
from keras_nisp.errors import check_count, check_number
from keras_nisp.keras_graph import calling, keras_models, walking
from keras_nisp.plans.plan import Plan, check_is_plan
from keras_nisp.recovery.assigning import all_or_nothing
from keras_nisp.recovery.batch_statistics import BatchStatistics
from keras_nisp.recovery.compensation import check_compensation, compensate_for_removed
from keras_nisp.recovery.pair import Pair
from keras_nisp.recovery.teaching import check_teaching, teach, try_augment
from keras_nisp.recovery.untrained import untrained

BATCH_SIZE = 256


@renamed(model="small")
def recalibrate(
    small: keras.Model,
    calibration: Any,
    original: keras.Model | None = None,
    plan: Plan | None = None,
    max_samples: int = MAX_SAMPLES,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    verbose: int = 0,
    *,
    compensate: str | None = "auto",
    ridge: float | None = None,
    teach_steps: int = 0,
    augment: Callable | None = None,
) -> keras.Model:
    """Repairs a pruned model in place: BatchNormalization statistics, biases, kernels.

    A removed channel is missing from sums for which later layers were normalized. New means and
    variances over a few thousand samples recover much of the accuracy. `original` and `plan`
    recover far more: each kernel is refitted by ridge regression over samples and positions, with
    separate weights for each tap, so that the channels it still reads reproduce its old output.
    BatchNormalization gets the statistics of the original, changed by as much as those of the
    samples changed. With `compensate="mean"` only the mean of what is missing is added, to biases
    and to BatchNormalization. In a network without BatchNormalization the remaining signal shrinks
    from layer to layer, and such means can outweigh it.

    Call it without `original` once more after a short fine-tuning: moving means and variances
    follow training slowly (Keras' momentum is 0.99, that of some networks 0.999). After a few
    hundred steps they may still be far from the statistics that the trained weights produce.

    Args:
        small: the pruned model. Its moving means and variances are replaced. With `original` (and
            if it was not trained since), so are biases, and with `compensate="linear"` kernels;
            with `teach_steps` all trainable weights. Nothing else changes, and nothing at all if
            an error is raised.
        calibration: samples, as for `NISP`.
        original: the model it was pruned from. It is not changed.
        plan: the plan that it was pruned by.
        max_samples: largest number of samples. With `original`, the outputs of both networks for
            all samples are kept in memory, layer by layer: at most 1,024 samples are taken, and
            fewer if they would need more than 1 GiB.
        batch_size: number of samples that are run at once without `original`; each such batch is
            normalized by its own statistics.
        seed: seed for sampling calibration data, and for their order in teaching.
        verbose: 1 shows progress bars of what takes more than a second.
        compensate: how to make up for the removed channels: `"linear"` or `"mean"`, which need
            `original` and `plan`, or `None` for not at all. `"auto"` is `"linear"` if these two
            are given, otherwise `None`. Depthwise kernels, recurrent kernels and ConvLSTM are
            skipped. Taps share one map if there are fewer than five positions for each weight;
            kernels that read more than 4,096 kept features get the mean only.
        ridge: for `"linear"`: strength of the regularization, relative to the variance of each
            feature. The larger it is, the closer kernels stay to their old weights. By default the
            strength with which one half of the samples predicts the other half best, for each
            kernel.
        teach_steps: number of batches of 64 samples on which `small` is trained after that, to
            match `original`'s outputs and intermediate activations; needs `original` and `plan`.
            No labels are needed. All trainable weights change, statistics do not. If that brings
            the models no closer, the weights from before are kept, with a warning. 200 is a good
            number for some hundred samples. A step costs a step of `fit` and a forward pass of
            `original`.
        augment: for `teach_steps`: a function from a batch of inputs to a batch on which the model
            should give the same answers, such as `keras.layers.RandomFlip("horizontal")` for
            photographs.

    Returns:
        The model itself.

    Raises:
        ValueError: an argument is wrong, calibration data are empty, do not fit or are not
            finite, `original` or `plan` is missing, a model to be taught has no trainable weights,
            the model was trained since and `compensate` is not `None`, or new weights would not
            be finite.
        PlanMismatchError: `plan` is not for `original`, or `small` is not its result.

    Example: a network whose channels depend on each other loses nothing.

    >>> model = keras.Sequential([
    ...     keras.Input((2,)),
    ...     keras.layers.Dense(8),
    ...     keras.layers.Dense(3),
    ... ])
    >>> x = np.random.default_rng(0).normal(size=(512, 2)).astype("float32")
    >>> plan = plan_pruning(model, Magnitude(), ratio=0.5)
    >>> small = rebuild(model, plan)
    >>> _ = recalibrate(small, x, model, plan, ridge=1e-9)
    >>> np.allclose(small(x), model(x), atol=1e-4)
    True

    Source: He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017,
    reconstructs a layer's output by least squares. This function also fits a layer's output by
    least squares, with separate weights for each tap; where samples are few, all taps share one
    map of the input channels.
    """
    _check(original, plan, compensate, ridge)
    check_count("max_samples", max_samples)
    check_count("batch_size", batch_size)
    check_count("seed", seed, 0)
    check_teaching(teach_steps, original is not None, "`original` and `plan`", augment)
    keras_models.check_model(small)
    settings = {"limit": max_samples, "seed": seed, "verbose": verbose}
    samples = calibration_samples(calibration, small, trained=original, **settings)
    try_augment(small, samples, augment)
    pair = None
    if original is not None and plan is not None and (compensate is not None or teach_steps):
        channel_map = plan.trace(original)
        pair = Pair(channel_map, plan.unit_map(channel_map), small)
    repair(small, samples, pair, compensate, batch_size, ridge, teach_steps, seed, verbose, augment)
    return small


def repair(
    model: keras.Model,
    samples: Samples,
    pair: Pair | None,
    compensate: str | None = "auto",
    batch_size: int = BATCH_SIZE,
    ridge: float | None = None,
    teach_steps: int = 0,
    seed: int = 0,
    verbose: int = 0,
    augment: Callable | None = None,
) -> None:
    """`recalibrate` for a traced original and collected samples.

    Args:
        model: the smaller model.
        samples: the samples.
        pair: the original and the smaller model; `None` compensates for nothing.
        compensate, batch_size, ridge, teach_steps, seed, verbose, augment: as for `recalibrate`.
    """
    compensated = None if compensate is None else pair
    with all_or_nothing(model), untrained(compensated):
        if compensated is None:
            _renew_statistics(model, samples, batch_size, verbose)
        else:
            linearly = compensate != "mean"
            compensate_for_removed(compensated, samples, linearly, ridge, verbose)
        if teach_steps and pair is not None:
            teach(pair, samples, teach_steps, seed, verbose, augment)


def _check(original, plan, compensate, ridge) -> None:
    """Raises unless the arguments of `recalibrate` fit together."""
    if (original is None) != (plan is None):
        raise ValueError(
            "Expected `original` and `plan` together: the model before pruning, and what was "
            "removed from it. Received only one of them."
        )
    if plan is not None:
        check_is_plan(plan)
    check_compensation(compensate, original is not None, "`original` and `plan`")
    if ridge is not None:
        check_number("ridge", ridge, "above 0", lambda x: 0 < x < math.inf)
        if original is None or compensate not in ("auto", "linear"):
            raise ValueError(
                "Expected `ridge` where kernels are refitted: with `original`, `plan` and "
                f"compensate='linear'. Received: ridge={ridge!r}, compensate={compensate!r}, "
                f"original={original!r}."
            )


def _renew_statistics(model: keras.Model, samples: Samples, batch_size: int, verbose: int) -> None:
    known: dict[keras.layers.Layer, BatchStatistics] = {}

    def visit(site, args, kwargs):
        layer = site.operation
        normalisation = rule_of(layer).normalisation(layer)
        if normalisation is None:
            return calling.infer(layer, *args, **kwargs)
        statistics = known.setdefault(layer, BatchStatistics(layer, normalisation))
        return statistics.normalised(*args, **kwargs)

    for inputs, _ in samples.batches(batch_size, verbose, "Recalibrating BatchNormalization"):
        with calling.fresh_states(model):
            walking.walk(model, inputs, visit)
    for statistics in known.values():
        statistics.assign()
