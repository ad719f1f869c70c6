"""The remaining channels make up for the removed ones: by their mean, or linearly."""

import functools
import math
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_nisp.channels.registry import rule_of
from keras_nisp.data.samples import Samples
from keras_nisp.importance.base import run
from keras_nisp.io.progress import Progress
from keras_nisp.keras_graph.keras_models import input_names
from keras_nisp.keras_graph.recording import recorded
from keras_nisp.kernels.reading import absorbed
from keras_nisp.recovery.batch_statistics import BatchStatistics, keep_ratio
from keras_nisp.recovery.call_runner import CallRunner, memory
from keras_nisp.recovery.pair import Pair
from keras_nisp.recovery.refit import Refit

COMPENSATIONS = ("auto", "linear", "mean", None)
MOST_SAMPLES = 1024
MOST_MEMORY = 1 << 30  # bytes of activations that the walk carries along
MOST_POSITIONS = 1 << 14  # of all samples, for statistics: more of the same say little new
BATCH_MEMORY = 1 << 27  # bytes of a batch of them


def check_compensation(compensate: Any, possible: bool, needed: str) -> None:
    """Raises unless `compensate` names a way to make up for what was removed that is possible.

    Args:
        compensate: the user's argument.
        possible: whether there is all that it takes.
        needed: what it takes, for the error.
    """
    if compensate not in COMPENSATIONS:
        raise ValueError(
            "Expected `compensate` to be 'auto', 'linear', 'mean' or None. "
            f"Received: compensate={compensate!r}"
        )
    if compensate in ("linear", "mean") and not possible:
        raise ValueError(
            f"Expected {needed} for compensate={compensate!r}. Received none: pass them, or leave "
            "`compensate` out."
        )


def compensate_for_removed(
    pair: Pair,
    samples: Samples,
    linearly: bool,
    ridge: float | None = None,
    verbose: int = 0,
) -> None:
    """Gives kernels and biases the values with which the kept channels make up for all.

    Both networks run side by side, layer by layer. What a layer of the original gives is
    regressed on what its twin reads, which the layers before, repaired by then, made of the
    same samples. So errors do not add up. BatchNormalization gets the statistics of the original,
    changed as those of the same samples are.

    A layer that is called several times has no one place in that order: it is fitted on the kept
    channels as the original makes them.

    Args:
        pair: the original and the pruned model.
        samples: on which both run.
        linearly: whether kernels make up for removed channels, or biases alone, for their mean.
        ridge: strength of the regularization over the variance of each feature; by default
            chosen for each layer.
        verbose: 1 shows a progress bar of the layers.
    """
    if pair.unit_map.keep.all():
        return
    samples, batch_size = _some(pair, samples)
    settings = {"linearly": linearly, "ridge": ridge}
    single = _fit_shared(pair, samples, batch_size, settings)
    _fit_in_turn(pair, single, samples, batch_size, verbose)


def _fit_shared(pair: Pair, samples: Samples, batch_size: int, settings: dict) -> dict:
    """Fits the kernels that are called several times. Gives what fits the others, by call."""
    calls = Counter(call.layer for call in pair.large.calls)
    shared: dict[int, Refit] = {}
    by_call: dict[Any, list[Refit]] = {}
    single: dict[Any, list[Callable[[], Refit]]] = {}
    into = absorbed(pair.large)
    for reader in pair.readers:
        free = reader.plain.gives and reader.call.outputs[0] in into
        constant = reader.bias_binding is not None or free
        positions = len(samples) * reader.binding.positions  # over all calls
        make = functools.partial(Refit, reader, positions, constant, **settings)
        if calls[reader.call.layer] == 1:
            single.setdefault(reader.call, []).append(make)
        elif not reader.plain.inside:  # what is read inside is not noted in all calls
            key = id(reader.plain.kernel)
            fit = shared[key] = shared.get(key) or make()
            fit.constant = fit.constant and constant
            by_call.setdefault(reader.call, []).append(fit)
    if shared:

        def on_read(call, index, tensor):
            for fit in by_call.get(call, ()):
                if fit.reader.plain.argument == index:
                    fit.add(call, tensor, fit.reader.kept(tensor))
            return tensor

        for inputs, _ in samples.batches(batch_size):
            run(pair.large, inputs, on_read)
        for fit in shared.values():
            fit.assign()
    return single


def _fit_in_turn(pair: Pair, fits: dict, samples: Samples, batch_size: int, verbose: int) -> None:
    counts = [len(call.outputs) for call in pair.large.calls]
    steps, names = recorded(pair.large.model, counts), input_names(pair.large.model)
    original = CallRunner(steps, names, samples, batch_size)
    twin = CallRunner(pair.twins, names, samples, batch_size)
    most = math.ceil(MOST_POSITIONS / len(samples))
    statistics: dict[keras.Layer, tuple[BatchStatistics, BatchStatistics]] = {}
    progress = Progress(len(pair.twins), verbose, "Refitting kernels", "layer")
    for call, other in zip(pair.large.calls, pair.twins, strict=True):
        run = original.run()
        for make in fits.get(call, ()):
            fit = make()
            plain, made = fit.reader.plain, fit.reader.made
            given = [original.read(plain, plain.argument), twin.read(made, plain.argument)]
            if fit.by_output:
                given.append(outputs[0] for outputs in run)
            for tensors in zip(*given, strict=True):
                fit.add(call, *tensors)
            fit.assign()
        both = call.layer, other.operation
        known, made = (rule_of(layer).normalisation(layer) for layer in both)
        if known is not None and made is not None:
            if call.layer not in statistics:
                large = BatchStatistics(call.layer, known, most)
                statistics[call.layer] = large, BatchStatistics(other.operation, made, most)
            for one, runner in zip(statistics[call.layer], (original, twin), strict=True):
                for args, kwargs in runner.arguments():
                    one.add(*args, **kwargs)
            keep_ratio(*statistics[call.layer], pair)
        deque(run, 0)  # if nothing has run it
        twin.step()
        progress.update(twin.done)


def _some(pair: Pair, samples: Samples) -> tuple[Samples, int]:
    """As many samples as a walk may carry, and how many of them make a batch."""
    widths = np.ones_like(pair.unit_map.keep), pair.unit_map.keep
    needed = sum(memory(pair.large, keep, samples) for keep in widths)
    count = max(1, min(MOST_SAMPLES, MOST_MEMORY // needed))
    some = samples.at_most(count)
    batches = math.ceil(len(some) / max(1, BATCH_MEMORY // needed))
    return some, math.ceil(len(some) / batches)
