"""Calibration data: read once, and looked at once."""

from typing import Any

import keras

from keras_nisp.data.collecting import collect
from keras_nisp.data.model_inputs import fits
from keras_nisp.data.sample_checks import warn_of_kind
from keras_nisp.data.samples import Samples
from keras_nisp.data.value_range import warn_of_range
from keras_nisp.errors import check_count
from keras_nisp.keras_graph import keras_models


def calibration_samples(
    data: Any, model: keras.Model, trained: keras.Model | None = None, **settings: Any
) -> Samples:
    """`collect`, with warnings of data in another range than the model was trained on, or too few,
    or of one kind alone.

    Args:
        data, model: as for `collect`.
        trained: the model that knows the range, if that is another.
        **settings: as for `collect`.
    """
    samples = collect(data, model, **settings)
    if not isinstance(data, Samples):  # else they were looked at where they were read
        warn_of_range(trained or model, samples)
        warn_of_kind(samples)
    return samples


class Calibration:
    """Calibration data of an importance, read once per kind of model.

    A generator cannot be read again when channels are scored a second time, as `NISPPruner`
    does.

    Args:
        data: as for `collect`; `None` if they come later, by `on`.
        limit, seed, labels, verbose: as for `collect`.
    """

    def __init__(self, data: Any, limit: int, seed: int, labels: bool = False, verbose: int = 0):
        check_count("max_samples", limit)
        check_count("seed", seed, 0)
        self.data = data
        self.limit = limit
        self._settings: dict[str, Any] = {
            "limit": limit,
            "seed": seed,
            "labels": labels,
            "verbose": verbose,
        }
        self._read: list[tuple[tuple, Samples]] = []

    @property
    def verbose(self) -> int:
        return self._settings["verbose"]

    def on(self, data: Any, verbose: int = 0) -> "Calibration":
        """The same settings with these data, and a progress bar if one of both shows it."""
        _check_given(data)
        if isinstance(data, Samples):
            data = data.at_most(self.limit)
        return Calibration(data, **{**self._settings, "verbose": max(verbose, self.verbose)})

    def samples(self, model: keras.Model) -> Samples:
        """The samples for a model."""
        samples = self.known(model)
        if samples is None:
            _check_given(self.data)
            samples = calibration_samples(self.data, model, **self._settings)
            self._read.append((_signature(model), samples))
        return samples

    def known(self, model: keras.Model) -> Samples | None:
        """The samples for a model, if they were read already."""
        inputs, names = keras_models.body(model).inputs, keras_models.input_names(model)
        for known, samples in self._read:
            if samples.names is None and known == _signature(model):
                return samples
            if samples.names is not None and set(samples.names) == set(names):
                # By name: another model may take the same inputs in another order.
                order = [samples.names.index(name) for name in names]
                arrays = [samples.inputs[i] for i in order]
                if all(map(fits, arrays, inputs)):
                    batch = keras_models.batch_size(model)
                    return Samples(arrays, samples.labels, batch, tuple(names))
        return None


def _check_given(data: Any) -> None:
    if data is None:
        raise ValueError(
            "Expected calibration data for the importance. Received none: give them to it, as in "
            "`NISP(calibration)`, or to the function that uses it, as in "
            "`prune(model, NISP(), calibration=calibration)`."
        )


def _signature(model: keras.Model) -> tuple:
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in keras_models.body(model).inputs)
