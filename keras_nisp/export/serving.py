"""Models for TF Serving: SavedModels in numbered folders, put into place as a whole."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_nisp.data.collecting import collect
from keras_nisp.errors import from_extra
from keras_nisp.export.agreement import (
    Agreement,
    check_agreement,
    check_samples,
    compare,
    whole_batches,
)
from keras_nisp.export.signature import Signature, check_exportable, write_saved_model
from keras_nisp.io.files import making_folder
from keras_nisp.io.shown import Shown
from keras_nisp.keras_graph import calling, keras_models
from keras_nisp.keras_graph.output_kinds import ending_of
from keras_nisp.keras_graph.rounding import default_tolerance

WARMUP = 100  # requests at most; TF Serving takes up to 1,000


@dataclasses.dataclass(frozen=True, repr=False)
class ServingExport(Shown):
    """What `export_serving` wrote; `print` it for one line.

    Attributes:
        path: path of the version's folder.
        version: number of the version.
        bytes: size of all files in the folder.
        signatures: for each signature its input and output names.
        agreement: the comparison with the Keras model, an `Agreement`.
    """

    path: Path
    version: int
    bytes: int
    signatures: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
    agreement: Agreement

    def __str__(self) -> str:
        kinds = "; ".join(
            f"{name}({', '.join(inputs)}) -> {', '.join(outputs)}"
            for name, (inputs, outputs) in self.signatures.items()
        )
        return f"{self.path}: {self.bytes:,} bytes; {kinds}; {self.agreement}"


def export_serving(
    model: keras.Model,
    path: str | os.PathLike,
    version: int | None = None,
    *,
    preprocessing: keras.Model | None = None,
    top_k: int | None = None,
    labels: list[str] | None = None,
    warmup: Any = None,
    check_data: Any = None,
    verbose: int = 1,
) -> ServingExport:
    """Writes the next version of a model for TF Serving, and checks it.

    The version is written beside its place and renamed into it, so that a server which polls the
    folder never sees half a model. Each weight is stored once. Signatures:

    * `serving_default`: the model, after `preprocessing` if that is given;
    * `model`, only if `preprocessing` is given: the model alone;
    * `top_k`, only if `top_k` is given: takes the inputs of `serving_default`, and returns `scores`
      (probabilities, descending) and `classes` (indices, or labels), both `(batch, top_k)`.

    Args:
        model: a functional or Sequential model. It is not changed.
        path: path of the model's folder, `"models/name"`; it is made if it does not exist.
        version: number of the version; by default the one after the largest existing number.
        preprocessing: a model from what clients send (images in uint8, say) to the model's one
            input.
        top_k: number of classes in the signature `top_k`, which is added. Logits go through a
            softmax first; outputs of a softmax or a sigmoid are used as they are.
        labels: a name for each class, for `top_k`.
        warmup: some inputs as clients send them (inputs of `preprocessing`, if that is given), in
            the form of calibration data. The server runs them before it takes requests. Needs
            `tensorflow-serving-api`.
        check_data: inputs of the same kind, on which the SavedModel is compared with the Keras
            model (up to 256); random ones by default.
        verbose: 1 prints the outcome in one line.

    Returns:
        A `ServingExport`.

    Raises:
        TypeError: the model is not functional or Sequential, or was quantized by Keras.
        ValueError: an argument is wrong.
        FileExistsError: this version exists; a version is never replaced.
        ExportError: the SavedModel computes something else. It is removed then.
        ImportError: `warmup` without `tensorflow-serving-api`.

    Example:

    >>> import tempfile
    >>> inputs = keras.Input((4,), name="features")
    >>> model = keras.Model(inputs, {"price": keras.layers.Dense(1)(inputs)})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export = export_serving(model, f"{folder}/prices", verbose=0)
    >>> export.version, export.signatures["serving_default"]
    (1, (('features',), ('price',)))
    """
    check_exportable(model)
    served = signature = Signature(model)
    others: dict[str, tuple[Callable, list]] = {}
    if preprocessing is not None:
        served = _Preprocessed(preprocessing, signature)
        others = {"model": (signature, signature.specs)}
    if top_k is not None:
        others["top_k"] = (_TopK(served, top_k, labels), served.specs)
    elif labels is not None:
        raise ValueError("Expected `top_k` with `labels`: they name its classes. Received none.")
    place = Path(path) / str(_checked_version(Path(path), version))
    first, size = preprocessing or model, served.batch_size
    requests = None if warmup is None else _warmup_requests(Path(path).name, first, warmup, size)
    samples, random = check_samples(first, check_data, batch_size=size)
    with making_folder(place) as folder, calling.fresh_states(model):
        write_saved_model(
            folder, {"serving_default": (served, served.specs), **others}, served.layers
        )
        if requests:
            _write_warmup(folder, requests)
        # Loading it from the folder proves the files, not the model in memory.
        loaded = tf.saved_model.load(str(folder)).signatures
        run = _runner(loaded["serving_default"])
        agreement = compare(served, run, samples, random, "SavedModel")
        check_agreement(agreement, served, samples, default_tolerance(model), "SavedModel")
        signatures = {key: _names(function) for key, function in sorted(loaded.items())}
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    export = ServingExport(place, int(place.name), size, signatures, agreement)
    if verbose:
        print(export)
    return export


def _checked_version(folder: Path, version: int | None) -> int:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"Expected a folder for the model's versions. '{folder}' is none.")
    if version is None:
        found = folder.iterdir() if folder.is_dir() else ()
        return max((int(item.name) for item in found if item.name.isdecimal()), default=0) + 1
    if isinstance(version, bool) or not isinstance(version, int) or version < 0:
        raise ValueError(f"Expected `version` to be a number, 0 or more. Received: {version!r}")
    if (folder / str(version)).exists():
        raise FileExistsError(
            f"Version {version} exists in '{folder}', and may be served. Leave `version` out for "
            "the next number, or remove that folder first."
        )
    return version


# Signatures ------------------------------------------------------------------------


class _Preprocessed(Signature):
    """A model behind another one, from what clients send to what it takes."""

    def __init__(self, preprocessing: keras.Model, signature: Signature):
        super().__init__(preprocessing, signature.batch_size)
        if len(signature.specs) != 1 or len(self.outputs) != 1:
            raise ValueError(
                "Expected `preprocessing` to have one output, for the one input of a model. "
                f"Received: {len(self.outputs)} outputs for {len(signature.specs)} inputs."
            )
        (want,), (got,) = signature.specs, keras_models.body(preprocessing).outputs
        if not want.shape.is_compatible_with(got.shape) or want.dtype != tf.as_dtype(got.dtype):
            raise ValueError(
                f"Expected `preprocessing` to give what model '{signature.model.name}' takes: "
                f"{want.shape}, {want.dtype.name}. It gives {tuple(got.shape)}, {got.dtype}."
            )
        self.signature, self.outputs = signature, signature.outputs
        self.name = signature.name

    @property
    def layers(self):
        return super().layers + self.signature.layers

    def allowed(self, inputs, least):
        return self.signature.allowed(self.values(*inputs), least)

    def original(self, *inputs):
        return self.signature.original(*self.original_values(*inputs))

    def __call__(self, *inputs):
        return self.signature(*self.values(*inputs))


class _TopK:
    """A function to the largest probabilities and their classes.

    Args:
        served: the signature that gives scores of classes.
        top_k: how many.
        labels: a name for each class, or `None`.
    """

    def __init__(self, served: Signature, top_k: int, labels: list[str] | None):
        model = getattr(served, "signature", served).model
        shapes = [tuple(tensor.shape) for tensor in keras_models.body(model).outputs]
        if len(shapes) != 1 or len(shapes[0]) != 2 or (shapes[0][1] or 0) < 2:
            raise ValueError(
                "Expected a model with one output (batch, classes) for `top_k`. Received outputs "
                f"{shapes}."
            )
        classes = shapes[0][1]
        if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= classes:
            raise ValueError(f"Expected `top_k` from 1 to {classes}. Received: {top_k!r}")
        if labels is not None and len(labels) != classes:
            raise ValueError(f"Expected {classes} `labels`. Received: {len(labels)}")
        self.served, self.top_k = served, top_k
        self.labels = None if labels is None else tf.constant(list(map(str, labels)))
        self.scored = ending_of(model) is not None

    def __call__(self, *inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        (values,) = self.served(*inputs).values()
        values = tf.cast(values, tf.float32)
        scores, classes = tf.math.top_k(
            values if self.scored else tf.nn.softmax(values), self.top_k
        )
        if self.labels is not None:
            classes = tf.gather(self.labels, classes)
        return {"scores": scores, "classes": classes}


def _runner(function) -> Callable:
    return lambda arrays: {
        name: value.numpy()
        for name, value in function(**{n: tf.constant(a) for n, a in arrays.items()}).items()
    }


def _names(function) -> tuple[tuple[str, ...], tuple[str, ...]]:
    inputs = function.structured_input_signature[1]
    return tuple(inputs), tuple(sorted(function.structured_outputs))


# Warm-up ---------------------------------------------------------------------------


def _warmup_requests(
    name: str, model: keras.Model, data: Any, batch_size: int | None
) -> list[bytes]:
    """One serialized request for each sample, or for each batch of a fixed size."""
    with from_extra("serving", "Warm-up requests need"):
        from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
    samples, signature = whole_batches(collect(data, model, WARMUP), batch_size), Signature(model)
    requests = []
    for inputs, _ in samples.batches(batch_size or 1):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = name
        request.model_spec.signature_name = "serving_default"
        for key, value in zip(signature.inputs, inputs, strict=True):
            request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
        log = prediction_log_pb2.PredictLog(request=request)
        requests.append(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())
    return requests


def _write_warmup(folder: Path, requests: list[bytes]) -> None:
    extra = folder / "assets.extra"
    extra.mkdir()
    with tf.io.TFRecordWriter(str(extra / "tf_serving_warmup_requests")) as writer:
        for request in requests:
            writer.write(request)
