"""TFLite files: float32, float16, dynamic range and full int8, checked in the interpreter."""

import contextlib
import dataclasses
import gzip
import io
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp._renaming import renamed
from keras_nisp.data.collecting import collect
from keras_nisp.data.samples import Samples
from keras_nisp.errors import ExportError, warn
from keras_nisp.export.agreement import (
    Agreement,
    check_agreement,
    check_samples,
    compare,
    whole_batches,
)
from keras_nisp.export.interpreter import dequantized, load_interpreter, quantized
from keras_nisp.export.operations import float_operations, listed, operations
from keras_nisp.export.signature import (
    Signature,
    check_batch_size,
    check_exportable,
    write_saved_model,
)
from keras_nisp.io.files import check_writable, replacing
from keras_nisp.io.shown import Shown
from keras_nisp.keras_graph import calling, copying, keras_models
from keras_nisp.keras_graph.rounding import LARGEST_TOLERANCE, default_tolerance

QUANTIZATIONS = ("float32", "float16", "dynamic", "int8")
# Of the outputs' scale. Integers lose what the data decide: there, only the report tells.
TOLERANCES: dict[str | None, float] = {
    "float16": LARGEST_TOLERANCE,
    "dynamic": np.inf,
    "int8": np.inf,
}
INSTEAD_OF_INT8 = "quantization='dynamic' has small weights, too, and computes in floats."
LEAST_TOP1 = 0.9  # of quantized files; less is said aloud
MOST_CHANGED = 0.5  # of the scale of outputs without top-1; more is said aloud
REPRESENTATIVE = 200  # samples from which the converter takes the ranges of activations


@dataclasses.dataclass(frozen=True, repr=False)
class TFLiteExport(Shown):
    """What `export_tflite` wrote; `print` it for one line.

    Attributes:
        path: path of the file.
        quantization: `None`, `"float16"`, `"dynamic"` or `"int8"`.
        bytes: size of the file.
        gzip_bytes: size of the file under gzip, as an app store or a browser transfers it.
        parameters: number of parameters of the Keras model.
        batch_size: number of samples in each run; `None` if it is open.
        inputs, outputs: names of inputs and outputs in the file's signature `serving_default`.
        agreement: the comparison with the Keras model, an `Agreement`: top-1 and the largest
            difference of each output.
        operations: TFLite's operations in the file, with how often each occurs.
        float_operations: the operations that compute with floats; an `"int8"` file usually has
            none.
    """

    path: Path
    quantization: str | None
    bytes: int
    gzip_bytes: int
    parameters: int
    batch_size: int | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    agreement: Agreement
    operations: dict[str, int]
    float_operations: dict[str, int]

    def __str__(self) -> str:
        kind = self.quantization or "float32"
        if kind == "int8" and self.float_operations:
            kind += f" (in float: {listed(self.float_operations)})"
        return (
            f"{self.path}: {kind}, {self.bytes:,} bytes ({self.gzip_bytes:,} under gzip); "
            f"{self.agreement}"
        )


@renamed(representative_data="calibration")
def export_tflite(
    model: keras.Model,
    path: str | os.PathLike,
    quantization: str | None = None,
    calibration: Any = None,
    *,
    batch_size: int | None = None,
    check_data: Any = None,
    seed: int = 0,
    verbose: int = 1,
) -> TFLiteExport:
    """Writes a TFLite file, and compares it in the interpreter with the Keras model.

    Stateful layers start with zeros, and keep their state from one run of the file to the next.

    Args:
        model: a functional or Sequential model. It is not changed.
        path: path of the file, ending in `.tflite`. An existing file is replaced as a whole.
        quantization: `None` or `"float32"`, `"float16"` (half the size; computes in float32 on a
            CPU), `"dynamic"` (int8 weights, float inputs and outputs), or `"int8"` (int8 weights,
            activations, inputs and outputs; usually the fastest, and needed by integer-only
            devices).
        calibration: some real inputs, from which `"int8"` takes the ranges of activations (up to
            200 samples). If they have labels of a classifier, accuracies are reported.
        batch_size: fixed number of samples in a run, 1 on most devices. By default that of
            `keras.Input`, which is open unless it was given. With an open batch size `Flatten`,
            say, needs operations on shapes, which some devices do not have.
        check_data: samples on which the file is compared with the model (up to 256); by default
            `calibration`, otherwise random numbers.
        seed: seed for choosing samples.
        verbose: 1 prints the outcome in one line.

    Returns:
        A `TFLiteExport` with sizes and the agreement.

    Raises:
        TypeError: the model is not functional or Sequential, or was quantized by Keras.
        ValueError: an argument is wrong.
        ExportError: the converter cannot translate the model (the message says what), or the file
            computes something else. No file is written then.

    Warns:
        UserWarning: on given samples, top-1 of an output of a quantized file agrees for less than
            90 % of them, or an output without top-1 changes by more than half of its scale; or
            operations of an `"int8"` file compute with floats.

    Example:

    >>> import tempfile
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export = export_tflite(model, f"{folder}/model.tflite", verbose=0)
    >>> export.agreement.relative < 1e-4
    True
    """
    path = Path(path)
    if path.suffix != ".tflite":
        raise ValueError(f"Expected a path that ends in '.tflite'. Received: '{path}'")
    check_writable(path)
    quantization = check_quantization(quantization)
    check_exportable(model)
    signature = Signature(model, batch_size)
    check_data = calibration if check_data is None else check_data
    samples, random = check_samples(model, check_data, seed, batch_size=batch_size)
    with calling.fresh_states(model):
        content = convert(model, quantization, calibration, batch_size=batch_size, seed=seed)
        advice = INSTEAD_OF_INT8 if quantization == "int8" else ""
        agreement = compare(signature, runner(content), samples, random, "TFLite file", advice)
    tolerance = TOLERANCES.get(quantization, default_tolerance(model))
    check_agreement(agreement, signature, samples, tolerance, "TFLite file")
    export = TFLiteExport(
        path,
        quantization,
        len(content),
        len(gzip.compress(content)),
        model.count_params(),
        signature.batch_size,
        tuple(signature.inputs),
        tuple(signature.outputs),
        agreement,
        operations(content),
        float_operations(content),
    )
    if quantization:
        _warn_of_quantization(model.name, export)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    if verbose:
        print(export)
    return export


def check_quantization(quantization: str | None) -> str | None:
    """The kind of a file; float32 is called `None` here."""
    if quantization is not None and quantization not in QUANTIZATIONS:
        raise ValueError(
            f"Expected `quantization` to be None or one of {QUANTIZATIONS}. Received: "
            f"{quantization!r}"
        )
    return None if quantization == "float32" else quantization


def _warn_of_quantization(name: str, export: TFLiteExport) -> None:
    """Says what a quantized file loses."""
    changed = [
        row.name
        for row in export.agreement.outputs
        if (row.top1 is not None and row.top1 < LEAST_TOP1)
        or (row.top1 is None and row.relative > MOST_CHANGED)
    ]
    if changed and not export.agreement.random:
        warn(
            f"Quantization changes the answers of model '{name}' in "
            f"{', '.join(map(repr, changed))}: {export.agreement}. More representative data may "
            "help; else 'float16', or training with emulated int8 "
            "(`keras_nisp.quantization_aware`)."
        )
    if export.quantization == "int8" and export.float_operations:
        warn(
            f"The int8 file of model '{name}' computes in float what TFLite's converter does not "
            f"quantize: {listed(export.float_operations)}. Devices that know integers alone do "
            "not run it."
        )


def convert(
    model: keras.Model,
    quantization: str | None = None,
    representative: Any = None,
    *,
    batch_size: int | None = None,
    seed: int = 0,
) -> bytes:
    """The content of a TFLite file; arguments as for `export_tflite`."""
    quantization = check_quantization(quantization)
    check_exportable(model)
    batch_size, samples = check_batch_size(model, batch_size), None
    if quantization == "int8":
        if representative is None:
            raise ValueError(
                "Expected `calibration` for int8: some real inputs, from which the "
                "converter takes the range of every activation. Received none."
            )
        samples = collect(representative, model, REPRESENTATIVE, seed)
        samples = whole_batches(samples, batch_size)
    loops = [
        layer.name
        for layer in keras_models.all_layers(model)
        if isinstance(layer, keras.layers.RNN) and not layer.unroll
    ]
    if loops and quantization == "int8":
        raise ExportError(
            f"Layer '{loops[0]}' is a loop over time, on which TensorFlow's int8 calibration "
            "crashes. Build it with `unroll=True`, or choose quantization='dynamic'."
        )
    # Loops and tables of words have no counterpart at an open batch size, but one at 1.
    words = any(tensor.dtype == "string" for tensor in keras_models.body(model).inputs)
    signature = Signature(in_float32(model), batch_size or (1 if loops or words else None))
    return _convert(signature, quantization, samples)


def _convert(signature: Signature, quantization: str | None, samples: Samples | None) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        signatures = {"serving_default": (signature, signature.specs)}
        write_saved_model(Path(folder), signatures, signature.layers)
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=["serving_default"]
        )
        _configure(converter, quantization, signature, samples)
        return run_converter(converter, signature.model.name)


def _configure(converter, quantization, signature: Signature, samples: Samples | None) -> None:
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if quantization is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if samples is not None:  # for int8
        converter.representative_dataset = lambda: (
            dict(zip(signature.inputs, inputs, strict=True))
            for inputs, _ in samples.batches(signature.batch_size or 1)
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8


def run_converter(converter: Any, name: str) -> bytes:
    """Runs a `tf.lite.TFLiteConverter` in silence.

    Raises:
        ExportError: it fails; the message says at which operation.
    """
    silence = contextlib.redirect_stdout(io.StringIO())
    with warnings.catch_warnings(), silence:
        warnings.filterwarnings("ignore", message="Statistics for quantized inputs")
        warnings.filterwarnings("ignore", message=r"[\s\S]*LiteRT interpreter")
        try:
            return converter.convert()
        except Exception as error:  # ConverterError, RuntimeError and others, without a base
            raise ExportError(
                f"TFLite's converter cannot translate model '{name}': {_cause(str(error))}"
            ) from error


def _cause(text: str) -> str:
    """What matters in the converter's pages of MLIR."""
    missing = set(re.findall(r"failed to legalize operation '(tf[l.\w]*)'", text))
    missing |= set(re.findall(r"'(tf[l.\w]*)' op is neither a custom op nor a flex op", text))
    needed = sorted(set(re.findall(r"^\s*(?:Flex|Custom) ops: (.+)$", text, re.MULTILINE)))
    if missing or needed:
        return f"there is no TFLite operation for {', '.join(needed or sorted(missing))}."
    text = re.sub(r"loc\(.*\): ", "", text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.partition("error: ")[2] for line in lines if "error: " in line]
    return (errors or lines or ["it does not say why"])[0][:300]


def in_float32(model: keras.Model) -> keras.Model:
    """A model of mixed precision in float32, which the converter needs; others as they are."""
    if not keras_models.is_half(model):
        return model
    return copying.copy_model(model, dtype="float32")


def runner(model: bytes | str | os.PathLike, threads: int = 1):
    """A function that runs a TFLite model as a device does, sample by sample.

    A file with a fixed batch size gets batches of that size.

    Args:
        model: content or path of the file.
        threads: of the interpreter.

    Returns:
        A function from a dict of float arrays `(samples, ...)` by name to a dict of such arrays;
        integers are quantized and dequantized.
    """
    interpreter = load_interpreter(model, threads, allocate=False)
    call = interpreter.get_signature_runner("serving_default")
    inputs, outputs = call.get_input_details(), call.get_output_details()
    size = max(1, *(detail["shape_signature"][0] for detail in inputs.values()))

    def run(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = []
        for i in range(0, len(next(iter(arrays.values()))), size):
            values = {n: quantized(a[i : i + size], inputs[n]) for n, a in arrays.items()}
            results = {n: dequantized(a, outputs[n]) for n, a in call(**values).items()}
            rows.append({n: np.atleast_1d(a) for n, a in results.items()})
        return {name: np.concatenate([row[name] for row in rows]) for name in outputs}

    return run
