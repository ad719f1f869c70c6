"""An export compared with its Keras model: what both give on some samples."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.data.collecting import collect
from keras_nisp.data.random_samples import random_samples
from keras_nisp.data.samples import Samples, class_labels
from keras_nisp.errors import ExportError, first_line
from keras_nisp.export.signature import Signature
from keras_nisp.io.shown import Shown
from keras_nisp.keras_graph import keras_models

ASSUMED_SIZE = 64  # of the random samples where a model leaves its input size open
CHECKED = 256  # samples


@dataclasses.dataclass(frozen=True)
class OutputAgreement:
    """One output of an exported model compared with that of the Keras model.

    Attributes:
        name: name of the output.
        difference: largest absolute difference; for words the share of words that differ.
        scale: largest absolute value; 1 for words.
        relative: the difference over the scale; for outputs that are not floats (classes, flags,
            words) the share of the values that differ.
        top1: share of the samples with the same answer: the largest value at the same index or,
            for outputs that are not floats, the same values. `None` for floats that are no vector.
    """

    name: str
    difference: float
    scale: float
    relative: float
    top1: float | None


@dataclasses.dataclass(frozen=True, repr=False)
class Agreement(Shown):
    """An exported model compared with the Keras model it was made of.

    Attributes:
        outputs: an `OutputAgreement` for each output, by the relative difference, worst first.
        samples: number of samples that were compared.
        random: whether they were random numbers, which tell little about accuracy.
        accuracy: accuracies of the Keras model and of the export, if the samples have labels of a
            classifier.
    """

    outputs: tuple[OutputAgreement, ...]
    samples: int
    random: bool
    accuracy: tuple[float, float] | None = None

    @property
    def difference(self) -> float:
        """Largest absolute difference of the worst output."""
        return self.outputs[0].difference

    @property
    def scale(self) -> float:
        """Largest absolute value of that output."""
        return self.outputs[0].scale

    @property
    def relative(self) -> float:
        """The relative difference of that output."""
        return self.outputs[0].relative

    @property
    def top1(self) -> float | None:
        """The smallest `top1` of any output; `None` if none has it."""
        return min((o.top1 for o in self.outputs if o.top1 is not None), default=None)

    def __str__(self) -> str:
        kind = "random samples" if self.random else "samples"
        of = f" in '{self.outputs[0].name}'" if len(self.outputs) > 1 else ""
        text = f"outputs differ by {self.difference:.1e} ({self.relative:.1e} of their scale){of}"
        if self.top1 is not None:
            text += f", top-1 agrees for {100 * self.top1:.1f} %"
        if self.accuracy is not None:
            text += ", accuracy {:.4f} -> {:.4f}".format(*self.accuracy)
        return f"{text}, {self.samples} {kind}"


def compare(
    signature: Signature,
    run: Callable,
    samples: Samples,
    random: bool,
    kind: str,
    advice: str = "",
) -> Agreement:
    """Runs the samples through a model and its export.

    Args:
        signature: of the Keras model.
        run: takes a dict of input arrays by name, gives a dict of output arrays by name.
        samples: what to compare on.
        random: whether these are random numbers.
        kind: what was made, `"TFLite file"`.
        advice: what to do where it does not run, if anything is known.

    Raises:
        ExportError: it does not run, or the Keras model gives what is not finite.
    """
    # As `predict` runs it: eagerly, some preprocessing layers of Keras round to integers.
    reference = tf.function(signature.original)
    outputs: dict[str, tuple[list, list]] = {name: ([], []) for name in signature.outputs}
    # Two batches at least show whether a state is kept.
    size = signature.batch_size or min(16, -(-len(samples) // 2))
    for inputs, _ in samples.batches(size):
        expected = _run_as_graph(reference, inputs, signature.name)
        arrays = zip(signature.inputs, inputs, strict=True)
        try:
            received = run({name: value.numpy() for name, value in arrays})
        except (RuntimeError, ValueError, tf.errors.OpError) as error:
            cause = first_line(error)
            raise ExportError(
                f"The {kind} of model '{signature.name}' does not run: {cause}. Nothing was "
                f"written. {advice}".rstrip()
            ) from error
        for name, value in expected.items():
            outputs[name][0].append(np.atleast_1d(value.numpy()))
            outputs[name][1].append(np.atleast_1d(received[name]))
    rows = [_compared(signature, kind, name, *parts) for name, parts in outputs.items()]
    rows.sort(key=lambda row: -np.nan_to_num(row.relative, nan=np.inf))
    answers = [np.concatenate(part) for part in next(iter(outputs.values()))]
    right = _right(answers, samples) if len(outputs) == 1 else None
    return Agreement(tuple(rows), len(samples), random, right)


def _right(answers: list[np.ndarray], samples: Samples) -> tuple[float, float] | None:
    """Accuracies of a classifier and its export on samples with labels."""
    labels = class_labels(samples)
    classifies = all(a.ndim == 2 and a.shape[-1] > 1 and a.dtype.kind == "f" for a in answers)
    if labels is None or not classifies:
        return None
    first, second = (float((a.argmax(-1) == labels).mean()) for a in answers)
    return first, second


def _run_as_graph(function: Callable, inputs: list, name: str) -> dict:
    """What a model gives as a graph."""
    try:
        return function(*inputs)
    except tf.errors.OpError as error:
        cause = first_line(error)
        raise ExportError(
            f"Model '{name}' does not run on the samples as a graph, as in `predict`: {cause}. "
            "Nothing was written. Pass other `check_data`. If the model runs when it is called on "
            "these, TensorFlow's optimizer of graphs breaks it; switch that off: "
            'tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False}).'
        ) from error


def _compared(
    signature: Signature, kind: str, name: str, wanted: list, received: list
) -> OutputAgreement:
    for want, got in zip(wanted, received, strict=True):
        if want.shape != got.shape:
            raise ExportError(
                f"The {kind} of model '{signature.name}' gives shape {got.shape} in '{name}', "
                f"where the Keras model gives {want.shape}. Nothing was written."
            )
    want, got = np.concatenate(wanted), np.concatenate(received)
    if want.dtype.kind in "OSU":  # words
        same = want.astype(bytes) == got.astype(bytes)
        share = float(1 - same.mean())
        return OutputAgreement(name, share, 1.0, share, _share_of_samples(same))
    exact = not keras.backend.is_float_dtype(want.dtype.name)
    want, got = want.astype(np.float64), got.astype(np.float64)
    if not np.isfinite(want).all():
        raise ExportError(
            f"The output '{name}' of model '{signature.name}' is not finite on the samples: no "
            "export of it can be checked. Nothing was written. Pass other `check_data`."
        )
    scale, difference = (float(np.abs(x).max(initial=0)) for x in (want, want - got))
    if exact:
        same = want == got
        share = float(1 - same.mean()) if same.size else 0.0
        return OutputAgreement(name, difference, scale, share, _share_of_samples(same))
    top1 = None
    if want.ndim == 2 and want.shape[-1] > 1:
        top1 = float((want.argmax(-1) == got.argmax(-1)).mean())
    return OutputAgreement(name, difference, scale, difference / (scale or 1.0), top1)


def _share_of_samples(same: np.ndarray) -> float:
    return float(same.reshape(len(same), -1).all(-1).mean())


def check_agreement(
    agreement: Agreement, signature: Signature, samples: Samples, tolerance: float, kind: str
) -> None:
    """Raises unless an export computes what its Keras model computes.

    Args:
        agreement: from `compare`, with these samples and this signature.
        tolerance: for the relative difference; a network that amplifies rounding gets more.
        kind: what was made, `"TFLite file"`.
    """
    what, worst = f"The {kind} of model '{signature.name}'", agreement.outputs[0]
    if not np.isfinite(worst.relative):
        raise ExportError(
            f"{what} gives NaN or infinity in '{worst.name}', and the Keras model does not. "
            "Nothing was written. (float16 holds numbers up to 65,504.)"
        )
    if agreement.relative <= tolerance:
        return
    inputs, _ = next(samples.batches(signature.batch_size or 16))
    tolerance = signature.allowed(inputs, tolerance)
    if not agreement.relative <= tolerance:
        raise ExportError(
            f"{what} does not compute what the Keras model computes: {agreement}, more than "
            f"{tolerance:g} of the scale. Nothing was written."
        )


def check_samples(
    model: keras.Model,
    data: Any,
    seed: int = 0,
    limit: int = CHECKED,
    batch_size: int | None = None,
) -> tuple[Samples, bool]:
    """Samples to compare on, and whether they are random: some of `data`, if there are any.

    With a batch size, of the model or as given, they fill whole batches.
    """
    size = batch_size or keras_models.batch_size(model)
    if data is not None:
        return whole_batches(collect(data, model, limit, seed), size), False
    shapes = [
        tuple(ASSUMED_SIZE if size is None else size for size in tensor.shape[1:])
        for tensor in keras_models.body(model).inputs
    ]
    return whole_batches(random_samples(model, shapes, 8, seed), size), True


def whole_batches(samples: Samples, batch_size: int | None) -> Samples:
    """Samples that fill batches of a size, if there is one."""
    if batch_size is None:
        return samples
    return Samples(samples.inputs, samples.labels, batch_size)
