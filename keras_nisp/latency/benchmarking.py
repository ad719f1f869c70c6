"""`benchmark`: latency in the real TFLite interpreter, two models in turns."""

import dataclasses
import os
import re
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_nisp._renaming import renamed
from keras_nisp.channels.tracing import InputShape
from keras_nisp.data.random_samples import random_samples
from keras_nisp.errors import check_count
from keras_nisp.export.agreement import ASSUMED_SIZE
from keras_nisp.export.interpreter import is_tflite, load_interpreter, runtime_name
from keras_nisp.export.tflite import convert
from keras_nisp.io.progress import Progress
from keras_nisp.io.shown import Shown
from keras_nisp.io.tables import Column, render_table
from keras_nisp.keras_graph import keras_models

SAMPLES = 8  # random representative data where int8 is only timed


@dataclasses.dataclass(frozen=True)
class Latency:
    """Times of one model.

    Attributes:
        name: name of the model or file.
        bytes: size of the TFLite file.
        rounds: seconds of each run, for each round.
    """

    name: str
    bytes: int
    rounds: tuple[tuple[float, ...], ...]

    @property
    def median(self) -> float:
        """Seconds: the median of all runs."""
        return self.quantile(0.5)

    def quantile(self, share: float) -> float:
        """Seconds that this share of the runs does not exceed."""
        return float(np.quantile(np.concatenate(self.rounds), share))


@dataclasses.dataclass(frozen=True, repr=False)
class Benchmark(Shown):
    """Latencies of one or two models; `print` it for a table.

    Attributes:
        latencies: one or two `Latency`.
        batch_size: number of samples in each run.
        threads: number of threads of the interpreter.
        runtime: name and version of the interpreter.
    """

    latencies: tuple[Latency, ...]
    batch_size: int
    threads: int
    runtime: str

    @property
    def speedup(self) -> float:
        """How many times as fast the second model is: the median over rounds of the ratio."""
        return float(np.median(self.ratios))

    @property
    def ratios(self) -> np.ndarray:
        """For each round the first model's median over the second's."""
        if len(self.latencies) != 2:
            raise ValueError("Expected two models to compare. Only one was measured.")
        first, second = ([np.median(runs) for runs in x.rounds] for x in self.latencies)
        return np.divide(first, second)

    def to_dict(self) -> dict:
        """The figures as plain data, in seconds and bytes."""
        rows = [
            {
                "name": x.name,
                "bytes": x.bytes,
                "median": x.median,
                "p10": x.quantile(0.1),
                "p90": x.quantile(0.9),
            }
            for x in self.latencies
        ]
        data = {"runtime": self.runtime, "threads": self.threads, "batch_size": self.batch_size}
        data |= {"rounds": len(self.latencies[0].rounds), "models": rows}
        return data | ({"speedup": self.speedup} if len(rows) == 2 else {})

    def __str__(self) -> str:
        titles = ("median, ms", "10 %", "90 %", "TFLite, bytes")
        columns = [Column("model"), *(Column(title, True) for title in titles)]
        rows = [
            (x.name, *(f"{1e3 * x.quantile(q):.3f}" for q in (0.5, 0.1, 0.9)), x.bytes)
            for x in self.latencies
        ]
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        title = f"Latency, {self.runtime}, {threads}, batches of {self.batch_size}"
        text = render_table(title, columns, rows)
        if len(rows) == 2:
            low, high = np.quantile(self.ratios, [0.1, 0.9])
            text += (
                f"\n{rows[1][0]} is {self.speedup:.2f} times as fast as {rows[0][0]} "
                f"({low:.2f} to {high:.2f} in {len(self.ratios)} rounds)"
            )
        return text


@renamed(representative_data="calibration")
def benchmark(
    model: keras.Model | str | os.PathLike | bytes,
    against: keras.Model | str | os.PathLike | bytes | None = None,
    *,
    quantization: str | None = None,
    calibration: Any = None,
    batch_size: int | None = None,
    threads: int = 1,
    rounds: int = 10,
    repeats: int = 10,
    warmup: int = 5,
    input_shape: InputShape | None = None,
    seed: int = 0,
    verbose: int = 0,
) -> Benchmark:
    """Measures latency in the TFLite interpreter, two models in turns (A B A B...).

    FLOPs are not time; this measures time. Models are measured in turns, so that other load on the
    machine affects both.

    Args:
        model: a Keras model, which is converted first, or path or content of a TFLite file.
        against: a second model or file to compare with.
        quantization: quantization of Keras models, as for `export_tflite`.
        calibration: samples for int8; random numbers by default, since time does not depend on
            values.
        batch_size: number of samples in each run; by default the batch size to which the models
            are bound, otherwise 1.
        threads: number of threads of the interpreter.
        rounds: number of rounds; each model has one turn in a round.
        repeats: number of runs of a model in each round.
        warmup: number of runs before the first round, which are not counted.
        input_shape: shape of one sample (or a list of shapes), for models that leave it open.
        seed: seed of the random inputs.
        verbose: 1 shows a progress bar of the rounds.

    Returns:
        A `Benchmark`.

    Raises:
        ValueError: an argument is wrong, or a file is no TFLite model.
        ExportError: a Keras model cannot be converted.

    Example:

    >>> small, large = (
    ...     keras.Sequential([keras.Input((4,)), keras.layers.Dense(units)]) for units in (2, 999)
    ... )
    >>> result = benchmark(large, small, rounds=2, repeats=2)
    >>> len(result.latencies)
    2
    """
    counts = {"batch_size": batch_size, "threads": threads, "rounds": rounds, "repeats": repeats}
    for name, count in counts.items():
        if name != "batch_size" or count is not None:
            check_count(name, count)
    check_count("warmup", warmup, 0)
    check_count("seed", seed, 0)
    models = [model] if against is None else [model, against]
    names = _names(models)
    contents = [_content(m, quantization, calibration, input_shape) for m in models]
    batch_size = _batch_size(contents, batch_size)
    runs = [_Run(content, threads, batch_size, input_shape, seed) for content in contents]
    for run in runs:
        run(warmup)
    rows, progress = [], Progress(rounds, verbose, "Measuring latency", "round")
    for done in range(1, rounds + 1):
        rows.append([run(repeats) for run in runs])
        progress.update(done)
    latencies = tuple(
        Latency(name, len(content), times)
        for name, content, times in zip(names, contents, zip(*rows, strict=True), strict=True)
    )
    return Benchmark(latencies, batch_size, threads, runtime_name())


def _batch_size(contents: list[bytes], wanted: int | None) -> int:
    """The batch size that all files can take."""
    details = [d for c in contents for d in load_interpreter(c, allocate=False).get_input_details()]
    sizes = {int(detail["shape_signature"][0]) for detail in details} - {-1}
    if wanted is not None:
        sizes.add(wanted)
    if len(sizes) > 1:
        raise ValueError(
            "Expected models and `batch_size` of one batch size. Received: "
            f"{', '.join(map(str, sorted(sizes)))}. A file or a model that was made with another "
            "cannot change it."
        )
    return next(iter(sizes), 1)


class _Run:
    """A TFLite model with random inputs set, ready to be timed."""

    def __init__(self, content: bytes, threads: int, batch_size: int, input_shape, seed: int):
        def resize(details):
            return [(batch_size, *shape) for shape in _shapes(details, input_shape)]

        self.interpreter = load_interpreter(content, threads, resize)
        rng = np.random.default_rng(seed)
        for detail in self.interpreter.get_input_details():
            values = rng.normal(size=detail["shape"])
            if np.issubdtype(detail["dtype"], np.integer):
                values = values > 0  # in the range of any vocabulary
            self.interpreter.set_tensor(detail["index"], values.astype(detail["dtype"]))

    def __call__(self, count: int) -> tuple[float, ...]:
        """Seconds of each of `count` runs."""
        times = []
        for _ in range(count):
            started = time.perf_counter()
            self.interpreter.invoke()
            times.append(time.perf_counter() - started)
        return tuple(times)


def _shapes(details: list[dict], input_shape) -> list[tuple[int, ...]]:
    """Shapes without the batch axis: as given, else those of the file."""
    recorded = [tuple(map(int, detail["shape_signature"][1:])) for detail in details]
    if input_shape is not None:
        # A file's inputs are called "serving_default_image:0".
        names = [re.sub(r"^serving_default_|:\d+$", "", detail["name"]) for detail in details]
        given = keras_models.listed_shapes(input_shape, [names])
        fits = len(given) == len(recorded) and all(
            len(g) == len(r)
            and all(got and want in (-1, got) for want, got in zip(r, g, strict=True))
            for g, r in zip(given, recorded, strict=True)
        )
        if not fits:
            raise ValueError(
                f"Expected `input_shape` to fit inputs of the shapes {recorded} (-1 is open). "
                f"Received: {input_shape}"
            )
        return given
    if any(-1 in shape for shape in recorded):
        raise ValueError(
            f"Expected `input_shape`: the model leaves the size of its inputs open, {recorded}."
        )
    return recorded


def _names(models: list) -> list[str]:
    """A name for each model: those of two models that are called alike are told apart."""
    names = []
    for model in models:
        if isinstance(model, keras.Model):
            names.append(model.name)
        else:
            names.append("TFLite model" if isinstance(model, bytes) else Path(model).name)
    if len(set(names)) < len(names):
        names = [f"{name} ({letter})" for name, letter in zip(names, "AB", strict=True)]
    return names


def _content(model, quantization, calibration, input_shape) -> bytes:
    """A TFLite file's content."""
    if isinstance(model, bytes):
        return model
    if not isinstance(model, keras.Model):
        if not is_tflite(model):
            raise ValueError(
                f"Expected a Keras model or a TFLite file. '{model}' is neither; load a Keras "
                "file with `keras.models.load_model` first."
            )
        return Path(model).read_bytes()
    keras_models.check_model(model)
    if quantization == "int8" and calibration is None:
        calibration = _random_data(model, input_shape)
    return convert(model, quantization, calibration)


def _random_data(model, input_shape) -> Any:
    inputs = keras_models.body(model).inputs
    shapes = [tensor.shape[1:] for tensor in inputs]
    if input_shape is not None:
        names = keras_models.names_of(keras_models.input_structure(model))
        shapes = keras_models.listed_shapes(input_shape, names)
    shapes = [tuple(ASSUMED_SIZE if n is None else n for n in shape) for shape in shapes]
    return random_samples(model, shapes, SAMPLES)
