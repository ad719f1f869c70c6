"""The TFLite interpreter: LiteRT's own package, or the copy inside TensorFlow."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def load_interpreter(
    model: bytes | str | os.PathLike,
    threads: int = 1,
    resize: Callable | None = None,
    allocate: bool = True,
) -> Any:
    """An interpreter of a TFLite model.

    Args:
        model: content or path of a TFLite file.
        threads: number of threads.
        resize: `resize(details)` gives a shape for each input, from `get_input_details()`; by
            default inputs are as large as the file says.
        allocate: whether to allocate its tensors; a signature runner does so when it is called,
            at the size of what it is given.

    Returns:
        An `ai_edge_litert.interpreter.Interpreter`; where that package is missing the
        `tf.lite.Interpreter` of the same interface.

    Raises:
        ValueError: it is no TFLite model.
    """
    content = {"model_content": model} if isinstance(model, bytes) else {"model_path": str(model)}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"[\s\S]*LiteRT interpreter")
            interpreter = _interpreter_class()(**content, num_threads=threads)
        details = interpreter.get_input_details()
        for detail, shape in zip(details, resize(details) if resize else (), strict=False):
            interpreter.resize_tensor_input(detail["index"], shape)
        if allocate:
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        name = "these bytes" if isinstance(model, bytes) else f"'{model}'"
        raise ValueError(f"The TFLite interpreter does not take {name}: {error}") from error
    return interpreter


def runtime_name() -> str:
    """Name and version of the interpreter's package."""
    from importlib.metadata import PackageNotFoundError, version

    for package in ("ai-edge-litert", "tensorflow"):
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
    return "unknown"


def _interpreter_class() -> type:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tensorflow.lite.python.interpreter import Interpreter
    return Interpreter


def quantized(array: np.ndarray, detail: dict) -> np.ndarray:
    """Floats as a tensor of the interpreter takes them.

    Args:
        array: floats, or integers as they are.
        detail: of the tensor, from `get_input_details()`.
    """
    scale, zero = detail["quantization"]
    if np.issubdtype(detail["dtype"], np.integer) and scale:
        limits = np.iinfo(detail["dtype"])
        array = np.clip(np.round(array / scale) + zero, limits.min, limits.max)
    return array.astype(detail["dtype"])


def dequantized(array: np.ndarray, detail: dict) -> np.ndarray:
    """Values of a tensor as float32, or as they are if it is not quantized."""
    scale, zero = detail["quantization"]
    if np.issubdtype(array.dtype, np.integer) and scale:
        return (array.astype(np.float32) - zero) * np.float32(scale)
    return array


def is_tflite(path: str | os.PathLike) -> bool:
    """Whether a file holds a TFLite model, by its identifier."""
    with Path(path).open("rb") as file:
        return file.read(8)[4:] == b"TFL3"
