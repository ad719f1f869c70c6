"""What all exports share: names of inputs and outputs, and the function behind them."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.errors import ExportError, first_line, reason_of
from keras_nisp.export.translation import run_translated
from keras_nisp.keras_graph import keras_models
from keras_nisp.keras_graph.rounding import allowed

UNNAMED = re.compile(r"(keras_tensor|input_layer|input)(_\d+)?$")


def check_exportable(model: Any) -> None:
    """Raises unless `model` is a built functional or sequential model with sound weights.

    Raises:
        TypeError, ValueError: it is none.
        ExportError: a weight holds NaN, or one that was trained infinity.
    """
    keras_models.check_model(model)
    trained = {id(weight) for weight in model.trainable_variables}
    for weight in model.weights:
        if not keras.backend.is_float_dtype(weight.dtype):
            continue
        value = np.asarray(weight, np.float64)
        # Masks may hold infinity on purpose.
        bad = ~np.isfinite(value) if id(weight) in trained else np.isnan(value)
        if bad.any():
            raise ExportError(
                f"Weight '{weight.path}' of model '{model.name}' holds NaN or infinity "
                f"({int(bad.sum())} of {value.size} values): its training has diverged. Nothing "
                "was written. Export weights from before."
            )


def check_batch_size(model: keras.Model, batch_size: int | None) -> int | None:
    """The batch size of an export: as asked for, else that of the model, else open (`None`)."""
    own = keras_models.batch_size(model)
    if batch_size is None:
        return own
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(
            f"Expected `batch_size` to be an integer of at least 1, or None. Received: "
            f"{batch_size!r}"
        )
    if own not in (None, batch_size):
        raise ValueError(
            f"Expected `batch_size` {own}, to which `keras.Input(batch_size={own})` binds model "
            f"'{model.name}'. Received: {batch_size}"
        )
    return batch_size


class Signature:
    """A model as a function from named tensors to named tensors.

    Inputs have the keys of a dict of inputs, else the names that the user gave to
    `keras.Input`; what was not named is `input`, or `input_0`, `input_1`... Outputs have the keys
    of a dict of outputs, else `output_0`, `output_1`..., as Keras' own exports have them.

    Args:
        model: a functional or Sequential model.
        batch_size: samples in a call; by default that of the model, mostly open.

    Attributes:
        model, name: the model and its name.
        batch_size: samples in a call, or `None`.
        inputs: names, in the order of the model's flat inputs.
        outputs: names, likewise.
        specs: a `tf.TensorSpec` for each input.
    """

    def __init__(self, model: keras.Model, batch_size: int | None = None):
        keras_models.check_model(model)
        self.model, self.name = model, model.name
        self.batch_size = check_batch_size(model, batch_size)
        self.inputs = _input_names(model)
        self.outputs = _keys(keras_models.output_structure(model)) or [
            f"output_{i}" for i in range(len(keras_models.body(model).outputs))
        ]
        self.specs = [
            tf.TensorSpec((self.batch_size, *tensor.shape[1:]), tensor.dtype, name)
            for tensor, name in zip(keras_models.body(model).inputs, self.inputs, strict=True)
        ]

    @property
    def layers(self) -> list[keras.Layer]:
        """All layers that take part."""
        return keras_models.all_layers(self.model)

    def original_values(self, *inputs: tf.Tensor) -> list[tf.Tensor]:
        """The flat outputs as Keras computes them, in inference mode."""
        structure = keras_models.structured_inputs(self.model, list(inputs))
        return keras.tree.flatten(self.model(structure, training=False))

    def original(self, *inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """`original_values` by name."""
        return dict(zip(self.outputs, self.original_values(*inputs), strict=True))

    def values(self, *inputs: tf.Tensor) -> list[tf.Tensor]:
        """The flat outputs of the model in inference mode, by what other runtimes know."""
        return run_translated(self.model, list(inputs))

    def allowed(self, inputs: list[tf.Tensor], least: float) -> float:
        """The tolerance for an export; more where the model amplifies rounding errors."""
        return allowed(self.model, inputs, least)

    def __call__(self, *inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Outputs by name."""
        return dict(zip(self.outputs, self.values(*inputs), strict=True))


def write_saved_model(
    folder: Path, signatures: Mapping[str, tuple[Callable, list]], layers: Iterable[keras.Layer]
) -> None:
    """Writes a SavedModel.

    Args:
        folder: where to; it may exist, empty.
        signatures: by name a function from tensors to a dict of tensors, and the `tf.TensorSpec`
            of each argument.
        layers: all that take part.

    Raises:
        ExportError: a function does not run as a graph.
    """
    # What the archive tracks is stored twice (keras#23553), what functions use once. So only
    # tables are tracked, which are no variables and would not be found otherwise.
    archive = keras.export.ExportArchive()
    for layer in layers:
        for value in vars(layer).values():
            if isinstance(value, tf.saved_model.experimental.TrackableResource):
                archive.track(value)
    try:
        for name, (function, specs) in signatures.items():
            archive.add_endpoint(name, _plain(function, specs), specs)
        archive.write_out(folder, verbose=False)
    except (TypeError, ValueError, tf.errors.OpError) as error:
        every = [spec for _, specs in signatures.values() for spec in specs]
        raise _unfit(error, every) from error


def _unfit(error: Exception, specs: list) -> ExportError:
    """Says that a model does not run as a graph, and what to do where its sizes are open."""
    unknown = [spec.name for spec in specs if None in spec.shape[1:]]
    advice = (
        f" Sizes of {', '.join(map(repr, unknown))} are open: build the model with those that it "
        "is to run at, such as `keras.Input((224, 224, 3))`, and give it the weights."
    )
    return ExportError(
        f"As a graph the model does not run: {first_line(error)} {reason_of(error)}. Nothing was "
        f"written.{advice if unknown else ''}"
    )


def _plain(function: Callable, specs: list) -> Callable:
    """A function with one named argument for each spec, as a signature needs it."""
    names = [spec.name for spec in specs]
    return lambda *args, **kwargs: function(*args, *(kwargs[n] for n in names[len(args) :]))


def _keys(structure: Any) -> list[str] | None:
    """Keys of a dict of tensors, in Keras' flat order; `None` for any other structure."""
    if not isinstance(structure, Mapping):
        return None
    paths = [path for path, _ in keras.tree.flatten_with_path(structure)]
    return ["_".join(map(str, path)) for path in paths]


def _input_names(model: keras.Model) -> list[str]:
    if keys := _keys(keras_models.input_structure(model)):
        return keys
    names = keras_models.input_names(model)
    plain = ["input"] if len(names) == 1 else [f"input_{i}" for i in range(len(names))]
    return [
        new if UNNAMED.match(name) else re.sub(r"\W", "_", name)
        for name, new in zip(names, plain, strict=True)
    ]
