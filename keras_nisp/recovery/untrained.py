"""Whether a pruned model is still what the surgery, or compensation, made of the original."""

import contextlib
import hashlib
import weakref

import keras
import tensorflow as tf

from keras_nisp.channels.unit_map import UnitMap
from keras_nisp.keras_graph.rounding import relative_difference
from keras_nisp.recovery.pair import Pair, Reader

SAME = 1e-6  # of weights that were not trained, over their scale
# By model a digest of what compensation made of its kernels and biases.
_MADE: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def untrained(pair: Pair):
    """Raises if kernels or biases have learnt what compensation would put others in place of.

    They must be what the surgery made of the original's, or what compensation did.
    """
    if _MADE.get(pair.small) != _digest(pair.readers):
        for reader in pair.readers:
            _check_untrained(reader, pair.unit_map, pair.small)
    yield
    _MADE[pair.small] = _digest(pair.readers)


def _check_untrained(reader: Reader, unit_map: UnitMap, model: keras.Model) -> None:
    (read,), (create,) = reader.kernel.read, reader.kernel.create
    outputs, made = reader.kernel.axes[create], reader.made
    kernel = unit_map.read(tf.convert_to_tensor(reader.kernel.variable), read, reader.units)
    pairs = [(made.kernel, unit_map.own(kernel, create, outputs))]
    if reader.bias is not None:
        bias = tf.convert_to_tensor(reader.bias)
        pairs.append((made.bias, unit_map.own(bias, 0, outputs)))
    for variable, value in pairs:
        if relative_difference(value, tf.convert_to_tensor(variable)) > SAME:
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
