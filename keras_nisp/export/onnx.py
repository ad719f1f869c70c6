"""ONNX files, checked in ONNX Runtime."""

import dataclasses
import logging
import os
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.errors import ExportError, from_extra
from keras_nisp.export.agreement import Agreement, check_agreement, check_samples, compare
from keras_nisp.export.signature import Signature, check_exportable
from keras_nisp.export.tflite import in_float32
from keras_nisp.io.files import check_writable, replacing
from keras_nisp.io.shown import Shown
from keras_nisp.keras_graph import calling, copying, keras_models
from keras_nisp.keras_graph.rounding import default_tolerance

OPSET = 17


@dataclasses.dataclass(frozen=True, repr=False)
class OnnxExport(Shown):
    """What `export_onnx` wrote; `print` it for one line.

    Attributes:
        path: path of the file.
        bytes: size of the file.
        opset: version of ONNX's operations in it.
        inputs, outputs: names of inputs and outputs.
        agreement: the comparison with the Keras model, an `Agreement`.
    """

    path: Path
    bytes: int
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    agreement: Agreement

    def __str__(self) -> str:
        return f"{self.path}: opset {self.opset}, {self.bytes:,} bytes; {self.agreement}"


def export_onnx(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    opset: int = OPSET,
    batch_size: int | None = None,
    check_data: Any = None,
    verbose: int = 1,
) -> OnnxExport:
    """Writes an ONNX file, and compares it in ONNX Runtime with the Keras model.

    Inputs and outputs have the names that `export_serving` gives them.
    Needs `pip install "keras-nisp[onnx]"`.

    Args:
        model: a functional or Sequential model. It is not changed.
        path: path of the file, ending in `.onnx`. An existing file is replaced as a whole.
        opset: version of ONNX's operations.
        batch_size: fixed number of samples in a run. By default that of `keras.Input`, which is
            open unless it was given.
        check_data: samples on which the file is compared with the model (up to 256); random
            ones by default.
        verbose: 1 prints the outcome in one line.

    Returns:
        An `OnnxExport`.

    Raises:
        TypeError: the model is not functional or Sequential, or was quantized by Keras.
        ValueError: an argument is wrong.
        ExportError: tf2onnx cannot translate the model, or the file does not run or computes
            something else. No file is written then.
        ImportError: tf2onnx or onnxruntime is missing.

    Example:

    >>> import tempfile
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export = export_onnx(model, f"{folder}/model.onnx", verbose=0)
    >>> export.inputs, export.outputs
    (('input',), ('output_0',))
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"Expected a path that ends in '.onnx'. Received: '{path}'")
    check_writable(path)
    convert, runtime = _packages()
    check_exportable(model)
    original = Signature(model, batch_size)
    _check_translatable(model)
    signature = Signature(_without_normalization(in_float32(model)), batch_size)
    content = _convert(convert, signature, opset)
    samples, random = check_samples(model, check_data, batch_size=batch_size)
    try:
        run = _runner(runtime, content, signature)
        with calling.fresh_states(model):
            agreement = compare(original, run, samples, random, "ONNX file")
    except ExportError:
        raise
    except Exception as error:  # those of ONNX Runtime have no base
        missing = re.search(r"No Op registered for (\w+)", str(error))
        cause = f"tf2onnx has no translation of {missing[1]}" if missing else error
        raise ExportError(
            f"The ONNX file of model '{model.name}' does not run in ONNX Runtime: {cause}. Nothing "
            "was written; TFLite may take the model."
        ) from error
    check_agreement(agreement, original, samples, default_tolerance(model), "ONNX file")
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    names = tuple(signature.inputs), tuple(signature.outputs)
    export = OnnxExport(path, len(content), opset, *names, agreement)
    if verbose:
        print(export)
    return export


def _check_translatable(model: keras.Model) -> None:
    """Raises where tf2onnx would write a file that does something else, or nothing."""
    for tensor in (*keras_models.body(model).inputs, *keras_models.body(model).outputs):
        if tensor.dtype == "string":
            raise ExportError(
                f"Model '{model.name}' takes or gives words, for which tf2onnx has no operations. "
                "Export the part of it behind the lookup (`keras.Model(lookup.output, "
                "model.outputs)`), or a SavedModel with `export_serving`."
            )
    for layer in keras_models.all_layers(model):
        if getattr(layer, "stateful", False):
            raise ExportError(
                f"Layer '{layer.name}' keeps its state from one call to the next "
                "(`stateful=True`), which ONNX files cannot. Export to TFLite or a SavedModel, or "
                "let states come in and go out with `initial_state` and `return_state=True`."
            )


def _packages():
    with from_extra("onnx", "An ONNX export needs"):
        import onnxruntime
        import tf2onnx
    return tf2onnx.convert.from_function, onnxruntime


def _convert(convert, signature: Signature, opset: int) -> bytes:
    function = tf.function(signature, input_signature=signature.specs)
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    try:
        logger.setLevel(logging.CRITICAL)
        model, _ = convert(function, input_signature=signature.specs, opset=opset)
    except Exception as error:  # tf2onnx raises whatever comes
        raise ExportError(
            f"tf2onnx cannot translate model '{signature.model.name}': {error}"
        ) from error
    finally:
        logger.setLevel(level)
    return model.SerializeToString()


def _runner(runtime, content: bytes, signature: Signature):
    session = runtime.InferenceSession(content)
    lost = {i.name for i in session.get_inputs()} - set(signature.inputs)
    if lost:
        raise ExportError(
            f"The ONNX file of model '{signature.model.name}' is broken: tf2onnx made inputs of "
            f"the constants {sorted(lost)}. Nothing was written. Keep the layer that holds them "
            "(preprocessing, mostly) out of the model, or export to TFLite."
        )
    names = [output.name for output in session.get_outputs()]
    return lambda arrays: dict(zip(names, session.run(names, arrays), strict=True))


def _without_normalization(model: keras.Model) -> keras.Model:
    """A model whose `Normalization` layers are `Rescaling`: tf2onnx loses their constants."""
    if not any(_as_rescaling(layer) for layer in keras_models.all_layers(model)):
        return model
    return copying.copy_model(model, _as_rescaling)


def _as_rescaling(layer: keras.Layer) -> keras.layers.Rescaling | None:
    """A `Rescaling` that does what a `Normalization` does; `None` if there is none."""
    if not isinstance(layer, keras.layers.Normalization) or layer.invert:
        return None
    mean, variance = (np.asarray(value, np.float64) for value in (layer.mean, layer.variance))
    if mean.ndim and mean.shape[-1] != mean.size:
        return None  # along another axis than the last
    scale = 1 / np.maximum(np.sqrt(variance.ravel()), keras.backend.epsilon())
    offset = -mean.ravel() * scale
    return keras.layers.Rescaling(
        scale.tolist(), offset.tolist(), name=layer.name, dtype=layer.dtype_policy.name
    )
