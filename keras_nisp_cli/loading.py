"""Models and samples from files, for the commands."""

import contextlib
import functools
import gc
import importlib
import os
import re
import sys
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import click

from keras_nisp_cli.console import Console, InputError


def load_library(console: Console) -> None:
    """Imports keras_nisp, and with it TensorFlow."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not console.traceback:
        _silence_native_code()
    gc.disable()  # of thousands of modules nothing is garbage; this saves a fifth of the time
    try:
        with console.stage("Loading TensorFlow"):
            import tensorflow as tf

            import keras_nisp  # noqa: F401
        tf.get_logger().setLevel("ERROR")  # it counts retracing, which many models mean
    finally:
        gc.enable()


@functools.cache
def _silence_native_code() -> None:
    """Sends what C++ libraries print nowhere; Python's own standard error stays."""
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def load_model(
    path: Path,
    custom_objects: tuple[str, ...],
    unsafe: bool,
    console: Console,
    compiled: bool = False,
):
    """A model from a `.keras` or `.h5` file.

    Args:
        path: of the file.
        custom_objects: `module:name` or `module` of the user's code.
        unsafe: whether code from the file may be run.
        console: of the command.
        compiled: whether it is to have its loss, which says what its outputs mean, and its
            optimizer. It has neither if they cannot be loaded, which a warning says.
    """
    if not path.exists():
        raise InputError(f"There is no file '{path}'.")
    if not _is_model_file(path):
        raise InputError(
            f"'{path}' is no Keras model. Expected a .keras or .h5 file, as `model.save` writes it."
        )
    load_library(console)
    objects = _custom_objects(custom_objects, console)
    with console.stage(f"Loading {path.name}"):
        try:
            return _loaded(path, compiled, custom_objects=objects, safe_mode=not unsafe)
        except Exception as error:  # whatever a damaged file makes Keras raise
            if console.traceback:
                raise
            raise InputError(_load_error(path, str(error))) from error


def _loaded(path: Path, compiled: bool, **settings):
    import keras

    from keras_nisp.errors import reason_of

    fault = ""
    if compiled:
        try:
            with warnings.catch_warnings():
                # Of a model that was compiled and not trained.
                warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
                return keras.saving.load_model(path, **settings)
        except Exception as error:  # whatever code of users raises; what is damaged raises again
            fault = reason_of(error)
    network = keras.saving.load_model(path, compile=False, **settings)
    if fault:
        click.echo(
            f"Warning: {path}: what it was compiled with cannot be loaded ({fault}). Without its "
            "loss logits count as numbers, and what comes out is not compiled. "
            "--custom-objects names code of yours.",
            err=True,
        )
    return network


def _is_model_file(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return path.suffix == ".keras" and "config.json" in archive.namelist()
    except zipfile.BadZipFile:
        with path.open("rb") as file:
            return file.read(8) == b"\x89HDF\r\n\x1a\n"


def optimizer_bytes(path: Path) -> int:
    """What the optimizer's variables take of a model's file."""
    import h5py

    with contextlib.ExitStack() as files:
        file: Path | IO[bytes] = path
        if zipfile.is_zipfile(path):
            archive = files.enter_context(zipfile.ZipFile(path))
            names = [name for name in archive.namelist() if name.endswith(".weights.h5")]
            if not names:
                return 0
            file = files.enter_context(archive.open(names[0]))
        sizes = []

        def visit(name, part):
            if name.startswith("optimizer") and isinstance(part, h5py.Dataset):
                sizes.append(part.id.get_storage_size())

        files.enter_context(h5py.File(file, "r")).visititems(visit)
    return sum(sizes)


def _load_error(path: Path, text: str) -> str:
    """What to do about an error of Keras while loading."""
    # Of nested errors the innermost says what is missing; the others name what holds it.
    missing = re.findall(r"(?:Could not locate|Unknown) [\w ]+:? '([^']+)'", text)
    lowered = text.lower()
    if "lambda" in lowered and ("safe" in lowered or "unsafe" in lowered):
        return (
            f"'{path}' holds Python code (a Lambda layer), which is not run: whoever made the "
            "file could make it do anything. If you trust it, pass --unsafe."
        )
    if missing:
        name = missing[-1].rpartition(">")[2]  # of 'package>Class'
        return (
            f"'{path}' needs '{name}', which is not part of Keras. Name the module that defines "
            f"it: --custom-objects module:{name}"
        )
    return f"'{path}' cannot be loaded: {_first_line(text)}"


def _first_line(error: Exception | str) -> str:
    """What a message of other libraries begins with."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip().rstrip(".")[:400] if lines else "it does not say why"


def _custom_objects(entries: tuple[str, ...], console: Console) -> dict[str, Any]:
    if entries and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: nothing there may pass for a library
    objects = {}
    for entry in entries:
        module_name, _, name = entry.partition(":")
        try:
            module = importlib.import_module(module_name)
        except Exception as error:  # whatever the user's code raises
            if not isinstance(error, ImportError) and console.traceback:
                raise
            kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
            raise InputError(f"--custom-objects {entry}: {kind}{_first_line(error)}.") from error
        if not name:
            continue
        if not hasattr(module, name):
            raise InputError(f"--custom-objects {entry}: '{module_name}' has no '{name}'.")
        objects[name] = getattr(module, name)
    return objects


def load_samples(
    network, options: dict, name: str, console: Console, *, labels: bool = False
) -> Any:
    """`Samples` for a model, or `None` if the option is not given.

    Args:
        network: the model whose inputs they are for.
        options: of the command: those of `data_options`, and `name`.
        name: of the option that says where samples are: an .npz or .npy file, or `tfds:`.
        console: of the command.
        labels: whether labels are needed.
    """
    if options[name] is None:
        return None
    import numpy as np

    from keras_nisp.data.collecting import collect
    from keras_nisp.data.sample_checks import warn_of_kind
    from keras_nisp.data.value_range import check_range, starts_with_rescaling
    from keras_nisp.errors import DataRangeWarning

    source, option, scale = options[name], f"--{name}", options["scale"]
    with console.stage(f"Reading {source}"):
        if source.startswith("tfds:"):
            x, y = _from_tfds(source, options["data_dir"], options["samples"])
            if scale is None and x.dtype == np.uint8 and not starts_with_rescaling(network):
                scale = 255
                console.say(f"{source}: pixels are divided by 255 (--scale 1 leaves them)")
        else:
            x, y = _from_file(Path(source), option, network, console)
        if labels and y is None:
            raise InputError(f"{option} {source}: there are no labels; add an array `y`.")
        if scale is not None:
            x = _scaled(x, scale)
        seed = options.get("seed", 0)
        data = x if y is None else (x, y)
        samples = collect(data, network, options["samples"], seed, labels)
    warnings.simplefilter("ignore", DataRangeWarning)  # the library's words, said here with names
    if problem := check_range(network, samples):
        if scale is None:
            raise InputError(
                f"{option} {source}: {problem.found} Say what to divide them by, such as "
                f"--scale {_round(problem.divisor)}, or --scale 1 if they are right as they are."
            )
        click.echo(f"Warning: {option} {source}: {problem}", err=True)
    if name == "calibration":
        warn_of_kind(samples)
    return samples


def _round(divisor: float) -> str:
    """255 where a divisor is near it: pixels are what differs most often."""
    near = next((n for n in (255, 1 / 255) if 0.5 < divisor / n < 2), divisor)
    return f"{near:.3g}"


def _scaled(x, scale: float):
    import numpy as np

    if isinstance(x, dict):
        return {name: _scaled(array, scale) for name, array in x.items()}
    return (np.asarray(x) / scale).astype(np.float32)


def _from_file(path: Path, option: str, model, console: Console) -> tuple[Any, Any]:
    from keras_nisp.keras_graph import keras_models

    arrays = _arrays(path, option, console)
    if not isinstance(arrays, dict):
        return arrays, None
    found, known = sorted(arrays), keras_models.names_of(keras_models.input_structure(model))
    names = next((names for names in known if set(names) <= set(arrays)), [])
    if names == ["y"] and "x" in arrays:
        names = []  # labels
    x: Any = {name: arrays.pop(name) for name in names}
    y = arrays.pop("y", None)
    if not names and len(known[0]) == 1 and (len(arrays) == 1 or "x" in arrays):
        x = arrays.get("x", next(iter(arrays.values())))
    elif not names:
        raise InputError(
            f"{option}: expected '{path}' to hold the arrays {' or '.join(map(str, known))} (and "
            f"`y`, labels). It holds {found}."
        )
    return x, y


def _arrays(path: Path, option: str, console: Console) -> Any:
    """The array of an .npy file, or those of an .npz file by name."""
    import numpy as np

    if not path.exists():
        raise InputError(f"{option}: there is no file '{path}'.")
    try:
        with path.open("rb") as file:
            data = np.load(file, allow_pickle=False)
            if isinstance(data, np.ndarray):
                return data
            return {name: data[name] for name in data.files}
    except Exception as error:  # whatever a damaged file makes NumPy raise
        if console.traceback:
            raise
        why = _first_line(error)
        raise InputError(
            f"{option}: '{path}' is no .npz or .npy file, or damaged: {why}"
        ) from error


def _from_tfds(source: str, data_dir: Path | None, limit: int) -> tuple[Any, Any]:
    name, _, split = source.removeprefix("tfds:").partition("/")
    from keras_nisp.errors import from_extra

    with from_extra("examples", "tfds: data need"):
        import tensorflow_datasets as tfds
    try:
        data = tfds.load(
            name,
            data_dir=data_dir,
            download=data_dir is None,
            split=split or "train",
            as_supervised=True,
        )
        return next(iter(tfds.as_numpy(data.batch(limit))))
    except Exception as error:  # AssertionError, ValueError, DatasetNotFoundError...
        raise InputError(f"{source}: {_first_line(str(error) or repr(error))}") from error
