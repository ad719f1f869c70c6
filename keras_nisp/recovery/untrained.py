"""Whether a pruned model is still what the surgery, or a repair, made of the original."""

import contextlib
import hashlib
import weakref

import keras
import tensorflow as tf

from keras_nisp.keras_graph.rounding import relative_difference
from keras_nisp.recovery.pair import Pair, Reader

SAME = 1e-6  # largest difference of weights that were not trained, over their scale
# For each model a digest of its layers after the last repair.
_MADE: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def untrained(pair: Pair | None):
    """Raises if kernels or biases were trained since the surgery: compensation overwrites them.

    They must be as the surgery or the last repair left them. Without a pair, or if nothing was
    removed, nothing is overwritten, and nothing is checked.
    """
    if pair is None or pair.unit_map.keep.all():
        yield
        return
    if _MADE.get(pair.small) != _digest(pair.readers):
        for reader in pair.readers:
            _check_untrained(reader, pair.small)
    yield
    _MADE[pair.small] = _digest(pair.readers)


def _check_untrained(reader: Reader, model: keras.Model) -> None:
    pairs = [(reader.made.kernel, reader.laid_out(reader.surgery(reader.kernel())))]
    if (bias := reader.bias) is not None:
        pairs.append((reader.made.bias, bias))
    for variable, value in pairs:
        if (
            relative_difference(tf.cast(value, variable.dtype), tf.convert_to_tensor(variable))
            > SAME
        ):
            raise ValueError(
                f"Expected model '{model.name}' to be what `rebuild(original, plan)` gives. "
                f"Received: the {variable.name} of layer '{reader.twin.path}' differs. Either "
                "`original` or `plan` is not the one that it was made by: pass that one. Or it was "
                "trained since, and compensation would overwrite that: pass `compensate=None` to "
                "renew only the statistics of BatchNormalization."
            )


def _digest(readers: list[Reader]) -> bytes:
    digest = hashlib.sha256()
    for layer in {id(reader.twin.operation): reader.twin.operation for reader in readers}.values():
        for weight in layer.weights:
            digest.update(weight.numpy().tobytes())
    return digest.digest()
