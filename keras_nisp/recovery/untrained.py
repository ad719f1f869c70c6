"""Whether a pruned model is still what the surgery, or a repair, made of the original."""

import contextlib
import hashlib
import weakref

import keras
import tensorflow as tf

from keras_nisp.keras_graph.rounding import relative_difference
from keras_nisp.recovery.pair import Pair, Reader

SAME = 1e-6  # of weights that were not trained, over their scale
# By model a digest of what a repair made of its kernels and biases.
_MADE: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def untrained(pair: Pair | None):
    """Raises if kernels or biases have learnt what compensation would put others in place of.

    They must be what the surgery made of the original's, or what the last repair did. Without a
    pair, and where nothing was removed, nothing is put in their place.
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
                f"Expected the weights of model '{model.name}' as `rebuild` made them. Received a "
                f"{variable.name} of layer '{reader.twin.path}' that is another: it was trained "
                "since, and compensation would make it of the original's again. Pass "
                "`compensate=None`, which renews statistics of BatchNormalization alone."
            )


def _digest(readers: list[Reader]) -> bytes:
    digest = hashlib.sha256()
    for layer in {id(reader.twin.operation): reader.twin.operation for reader in readers}.values():
        for weight in layer.weights:
            digest.update(weight.numpy().tobytes())
    return digest.digest()
