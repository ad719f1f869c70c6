"""Times one layer alone in the TFLite interpreter."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from keras_nisp.errors import ExportError
from keras_nisp.export.interpreter import load_interpreter
from keras_nisp.export.tflite import run_converter

RUNS = (7, 200)  # at least and at most
ENOUGH_SECONDS = 10e-3
LOOPS = {"While", "StatelessWhile"}


def seconds_of(
    function: Callable,
    inputs: tuple[tuple[int, ...], ...],
    quantization: str | None = None,
    threads: int = 1,
) -> float:
    """Seconds of one run: the fastest of many, which is what others disturb the least.

    Args:
        function: of tensors; it becomes a graph of its own.
        inputs: their shapes, with the batch axis.
        quantization: `None` or `"int8"`.
        threads: of the interpreter.

    Raises:
        ExportError: TFLite has no such operation, or would not survive it.
    """
    interpreter = load_interpreter(_convert(function, inputs, quantization), threads)
    for detail in interpreter.get_input_details():
        values = np.random.default_rng(0).uniform(-1, 1, detail["shape"])
        if np.issubdtype(detail["dtype"], np.integer):
            values *= 100
        interpreter.set_tensor(detail["index"], values.astype(detail["dtype"]))
    interpreter.invoke()
    times: list[float] = []
    while len(times) < RUNS[0] or (sum(times) < ENOUGH_SECONDS and len(times) < RUNS[1]):
        started = time.perf_counter()
        interpreter.invoke()
        times.append(time.perf_counter() - started)
    return min(times)


def _convert(function, inputs, quantization) -> bytes:
    try:
        specs = [tf.TensorSpec(shape) for shape in inputs]
        concrete = tf.function(function).get_concrete_function(*specs)
    except Exception as error:  # whatever a layer raises on these tensors
        raise ExportError(f"It cannot be built alone: {error}") from error
    if quantization and LOOPS & {op.type for op in concrete.graph.get_operations()}:
        # The converter takes the whole process down over int8 in some loops (LSTM, in 2.21).
        raise ExportError("Loops are not quantized alone.")
    with _silence():
        # Without the object that owns the weights no SavedModel is written: four times as fast.
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
        if quantization:
            rng = np.random.default_rng(0)
            sample = [rng.uniform(-1, 1, shape).astype(np.float32) for shape in inputs]
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: [sample]
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.int8
        return run_converter(converter, "of one layer")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hundreds of conversions would write as many lines, some of them from C++."""
    logger = logging.getLogger("absl")
    level, stderr = logger.level, os.dup(2)
    logger.setLevel(logging.ERROR)
    sys.stderr.flush()
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        logger.setLevel(level)
