"""What all exports share: names of inputs and outputs, the function behind them, the check."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp import graph
from keras_nisp.data import Samples, collect
from keras_nisp.errors import ExportError
from keras_nisp.probing import random_samples
from keras_nisp.rounding import allowed

UNNAMED = re.compile(r"(keras_tensor|input_layer|input)(_\d+)?$")
ASSUMED_SIZE = 64  # of the random samples where a model leaves its input size open
CHECKED = 256  # samples


class Signature:
    """A model as a function from named tensors to named tensors.

    Inputs have the keys of a dict of inputs, else the names that the user gave to
    `keras.Input`; what was not named is `input`, or `input_0`, `input_1`... Outputs have the keys
    of a dict of outputs, else `output_0`, `output_1`..., as Keras' own exports have them.

    Args:
        model: a functional or Sequential model.
        batch_size: samples in a call; open by default.

    Attributes:
        model, name: the model and its name.
        inputs: names, in the order of the model's flat inputs.
        outputs: names, likewise.
        specs: a `tf.TensorSpec` for each input.
    """

    def __init__(self, model: keras.Model, batch_size: int | None = None):
        graph.check_model(model)
        self.model, self.name = model, model.name
        self.inputs = _input_names(model)
        self.outputs = _keys(graph.output_structure(model)) or [
            f"output_{i}" for i in range(len(graph.body(model).outputs))
        ]
        self.specs = [
            tf.TensorSpec((batch_size, *tensor.shape[1:]), tensor.dtype, name)
            for tensor, name in zip(graph.body(model).inputs, self.inputs, strict=True)
        ]

    @property
    def layers(self) -> list[keras.Layer]:
        """All layers that take part."""
        return graph.all_layers(self.model)

    def values(self, *inputs: tf.Tensor) -> list[tf.Tensor]:
        """The flat outputs of the model, in inference mode."""
        structure = graph.structured_inputs(self.model, list(inputs))
        return keras.tree.flatten(self.model(structure, training=False))

    def allowed(self, inputs: list[tf.Tensor], least: float) -> float:
        """The tolerance for an export; more where the model amplifies rounding errors."""
        return allowed(self.model, inputs, least)

    def __call__(self, *inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Outputs by name."""
        return dict(zip(self.outputs, self.values(*inputs), strict=True))


def write_saved_model(
    folder: Path, signatures: dict[str, tuple[Callable, list]], layers: Iterable[keras.Layer]
) -> None:
    """Writes a SavedModel.

    Args:
        folder: where to; it may exist, empty.
        signatures: by name a function from tensors to a dict of tensors, and the `tf.TensorSpec`
            of each argument.
        layers: all that take part.
    """
    # What the archive tracks is stored twice (keras#23553), what functions use once. So only
    # lookup tables are tracked, which are no variables and would not be found otherwise.
    archive = keras.export.ExportArchive()
    for layer in layers:
        if hasattr(layer, "lookup_table"):
            archive.track(layer)
    for name, (function, specs) in signatures.items():
        archive.add_endpoint(name, _plain(function, specs), specs)
    archive.write_out(folder, verbose=False)


def _plain(function: Callable, specs: list) -> Callable:
    """A function with one named argument for each spec, as a signature wants it."""
    names = [spec.name for spec in specs]
    return lambda *args, **kwargs: function(*args, *(kwargs[n] for n in names[len(args) :]))


def _keys(structure: Any) -> list[str] | None:
    """Keys of a dict of tensors, in Keras' flat order; `None` for any other structure."""
    if not isinstance(structure, Mapping):
        return None
    paths = [path for path, _ in keras.tree.flatten_with_path(structure)]
    return ["_".join(map(str, path)) for path in paths]


def _input_names(model: keras.Model) -> list[str]:
    if keys := _keys(graph.input_structure(model)):
        return keys
    names = graph.input_names(model)
    plain = ["input"] if len(names) == 1 else [f"input_{i}" for i in range(len(names))]
    return [
        new if UNNAMED.match(name) else re.sub(r"\W", "_", name)
        for name, new in zip(names, plain, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """An exported model beside the Keras model it was made of.

    Attributes:
        difference: largest absolute difference of any output.
        scale: largest absolute value of that output.
        top1: share of the samples for which the largest value of the output lies at the same
            index; `None` if no output is a vector of several values.
        samples: how many were compared.
        random: whether they were random numbers, which say little of accuracy.
    """

    difference: float
    scale: float
    top1: float | None
    samples: int
    random: bool

    @property
    def relative(self) -> float:
        """The difference over the scale."""
        return self.difference / self.scale if self.scale else self.difference

    def __str__(self) -> str:
        kind = "random samples" if self.random else "samples"
        text = f"outputs differ by {self.difference:.1e} ({self.relative:.1e} of their scale)"
        if self.top1 is not None:
            text += f", top-1 agrees for {100 * self.top1:.1f} %"
        return f"{text}, {self.samples} {kind}"


def compare(signature: Signature, run: Callable, samples: Samples, random: bool) -> Agreement:
    """Runs the samples through a model and its export.

    Args:
        signature: of the Keras model.
        run: takes a dict of input arrays by name, gives a dict of output arrays by name.
        samples: what to compare on.
        random: whether these are random numbers.
    """
    # As `predict` runs it: eagerly, some preprocessing layers of Keras round to integers.
    reference = tf.function(signature)
    rows, matches = dict.fromkeys(signature.outputs, (0.0, 0.0)), []
    for inputs, _ in samples.batches(16):
        expected = reference(*inputs)
        arrays = zip(signature.inputs, inputs, strict=True)
        received = run({name: value.numpy() for name, value in arrays})
        for name, value in expected.items():
            want, got = np.asarray(value, np.float64), np.asarray(received[name], np.float64)
            difference = float(np.abs(want - got).max()) if want.shape == got.shape else np.inf
            if not np.isfinite(want).all():
                raise ExportError(
                    f"The output '{name}' of model '{signature.name}' is not finite on the "
                    "samples: no export of it can be checked. Pass other `check_data`."
                )
            largest, scale = rows[name]
            # max() would lose a NaN.
            rows[name] = (
                float(np.maximum(largest, difference)),
                max(scale, float(np.abs(want).max())),
            )
            if want.ndim == 2 and want.shape[-1] > 1 and want.shape == got.shape:
                matches.append(want.argmax(-1) == got.argmax(-1))
    worst = max(rows.values(), key=lambda row: np.nan_to_num(row[0] / (row[1] or 1), nan=np.inf))
    top1 = float(np.concatenate(matches).mean()) if matches else None
    return Agreement(*worst, top1, len(samples), random)


def check_agreement(
    agreement: Agreement, signature: Signature, samples: Samples, tolerance: float, kind: str
) -> None:
    """Raises unless an export computes what its Keras model computes.

    Args:
        agreement: from `compare`, with these samples and this signature.
        tolerance: for the relative difference; a network that amplifies rounding gets more.
        kind: what was made, `"TFLite file"`.
    """
    if agreement.relative <= tolerance:
        return
    inputs, _ = next(samples.batches(16))
    tolerance = signature.allowed(inputs, tolerance)
    if not agreement.relative <= tolerance:
        raise ExportError(
            f"The {kind} of model '{signature.name}' does not compute what the Keras model "
            f"computes: {agreement}, more than {tolerance:g} of the scale. Nothing was written."
        )


def check_samples(
    model: keras.Model, data: Any, seed: int = 0, limit: int = CHECKED
) -> tuple[Samples, bool]:
    """Samples to compare on, and whether they are random: some of `data`, if there are any."""
    if data is not None:
        return collect(data, model, limit, seed), False
    shapes = [
        tuple(ASSUMED_SIZE if size is None else size for size in tensor.shape[1:])
        for tensor in graph.body(model).inputs
    ]
    return random_samples(model, shapes, 8, seed), True
