"""Latency of a model from measurements of its layers, for latency budgets."""

import dataclasses
import functools
import os
from typing import Literal

import keras
import numpy as np

from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.errors import ExportError, several
from keras_nisp.io.progress import Progress
from keras_nisp.io.shown import Shown
from keras_nisp.latency.cache import LatencyCache
from keras_nisp.latency.timing import seconds_of
from keras_nisp.latency.workload import Workload, Workloads, layer_workload

# Channels that kernels compute at once: a part of a block costs as much as all of it.
# These are the usual ones; `LatencyTable.block` is what a machine really does.
MULTIPLES = {"x86": 16, "arm": 8, "gpu": 8}
STEPS = (8, 16, 32, 64)  # in which machines are known to compute channels
SHORTEST = 1e-9  # seconds: nothing takes no time


@dataclasses.dataclass(frozen=True, repr=False)
class LatencyChange(Shown):
    """Latencies of a model before and after, by a table; `print` it for one line.

    Attributes:
        before, after: latencies in seconds.
        device: format and threads for which they hold, as text.
        estimated: layers that could not be measured.
    """

    before: float
    after: float
    device: str
    estimated: tuple[str, ...] = ()

    @property
    def reduction(self) -> float:
        """Share of the latency that is gone."""
        return 1 - self.after / self.before

    def __str__(self) -> str:
        text = f"{1e3 * self.before:.3g} -> {1e3 * self.after:.3g} ms, {self.device}"
        return text + (f", estimated: {several(self.estimated)}" if self.estimated else "")


class LatencyTable:
    """Latencies of single layers in the TFLite interpreter, measured when they are first needed.

    Each layer is converted and timed alone, at batch 1, once for each shape; results are kept on
    disk. Layers that the runtime fuses into other kernels (BatchNormalization and ReLU after a
    kernel, zero padding before a convolution) cost nothing. A layer that the interpreter does not
    run alone is estimated from its multiply-adds and outputs, and named in `estimated`.

    For another device, override `measure`.

    Args:
        quantization: `None` or `"float32"`, or `"int8"`.
        threads: number of threads of the interpreter.
        cache: path of a JSON file for the results; by default a file in the user's cache folder
            for this processor and version of the runtime. `False` keeps no file.
        verbose: 1 shows a progress bar, and prints each measurement.

    Raises:
        ValueError: an argument is wrong.

    Example:

    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(16, 3)])
    >>> table = LatencyTable(cache=False)
    >>> table.model(trace(model)) > 0
    True
    """

    def __init__(
        self,
        quantization: str | None = None,
        threads: int = 1,
        cache: str | os.PathLike | Literal[False] | None = None,
        verbose: int = 0,
    ) -> None:
        quantization = None if quantization == "float32" else quantization
        if quantization not in (None, "int8"):
            raise ValueError(
                f"Expected `quantization` to be None or 'int8'. Received: {quantization!r}"
            )
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
            raise ValueError(f"Expected `threads` of at least 1. Received: {threads!r}")
        self.quantization = quantization
        self.threads = threads
        self.verbose = verbose
        self.shows_progress = verbose  # what takes `verbose` and has this table turns it on, too
        self.estimated: dict[str, str] = {}
        self._failed: dict[str, str] = {}  # not kept on disk: the next version may do it
        self._cache = LatencyCache(cache)
        self._workloads: tuple[ChannelMap, Workloads] | None = None

    def model(self, channel_map: ChannelMap, keep: np.ndarray | None = None) -> float:
        """Seconds of a model for one sample: the sum over its layers.

        Args:
            channel_map: the model, from `keras_nisp.trace`.
            keep: boolean array of the units that are kept. By default all.
        """
        return sum(self.layers(channel_map, keep).values())

    def layers(self, channel_map: ChannelMap, keep: np.ndarray | None = None) -> dict[str, float]:
        """Seconds of each layer, by path; arguments as for `model`."""
        if self._workloads is None or self._workloads[0] is not channel_map:
            self._workloads = channel_map, Workloads(channel_map)
        keep = np.ones(channel_map.count, bool) if keep is None else keep
        seconds = {call.path: 0.0 for call in channel_map.calls}
        try:
            works = list(self._workloads[1](keep))
            unknown = sum(not self._knows(self._key(work)) for work in works)
            progress = Progress(len(works), bool(unknown and self.shows_progress), "Timing layers")
            for done, work in enumerate(works, 1):
                seconds[work.path] += self.seconds(work)
                progress.update(done)
        finally:
            self._cache.save()
        return seconds

    def reduction(self, channel_map: ChannelMap, keep: np.ndarray) -> float:
        """Share of the latency that is gone if only the units of the boolean array are kept."""
        return self.change(channel_map, keep).reduction

    @functools.cached_property
    def block(self) -> int:
        """The step of output channels in which a convolution gets faster here: one of `STEPS`.

        It is the smallest number of channels to remove from the 64 of a 3x3 convolution that saves
        at least half of their share of the time.
        """

        def seconds(width: int) -> float:
            layer = keras.layers.Conv2D(width, 3, padding="same")
            flops = 14 * 14 * 9 * 64 * width
            return self.seconds(layer_workload(layer, ((1, 14, 14, 64),), flops))

        whole, steps = seconds(64), STEPS[:-1]
        return next((s for s in steps if seconds(64 - s) <= whole * (1 - s / 128)), STEPS[-1])

    def change(self, channel_map: ChannelMap, keep: np.ndarray) -> LatencyChange:
        """The latencies of the whole model and of the model with only the units of the array."""
        before, after = self.model(channel_map), self.model(channel_map, keep)
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        paths = [call.path for call in channel_map.calls if call.path in self.estimated]
        device = f"{self.quantization or 'float32'}, {threads}"
        return LatencyChange(before, after, device, tuple(dict.fromkeys(paths)))

    def seconds(self, work: Workload) -> float:
        """Seconds of one workload, from the table if it is there."""
        key = self._key(work)
        if not self._knows(key):
            self._measure(key, work)
        if key in self._cache:
            return self._cache[key]
        self.estimated[work.path] = self._failed[key]
        return self._estimate(work)

    def measure(self, work: Workload) -> float:
        """Seconds of one workload, measured now.

        Override it for other devices: `work` has the kind of the layer, its settings and the shapes
        of its inputs.

        Raises:
            ExportError: the layer cannot be measured alone.
        """
        return seconds_of(work.build(), work.inputs, self.quantization, self.threads)

    def _key(self, work: Workload) -> str:
        key = f"{self.quantization or 'float32'}, {self.threads} threads: {work.key}"
        # Other devices are not to be mistaken for this machine.
        return key if type(self) is LatencyTable else f"{type(self).__qualname__}: {key}"

    def _knows(self, key: str) -> bool:
        return key in self._cache or key in self._failed

    def _measure(self, key: str, work: Workload) -> None:
        try:
            self._cache[key] = max(float(self.measure(work)), SHORTEST)
        except ExportError as error:
            self._failed[key] = str(error)
        if self.verbose:
            result = f"{1e6 * self._cache[key]:.1f} us" if key in self._cache else "cannot be timed"
            print(f"{work.path}: {result} ({key})")

    def _estimate(self, work: Workload) -> float:
        """Multiply-adds at the speed of a pointwise convolution, outputs at that of a `tanh`."""
        shape = (1, 14, 14, 256)
        kernel = layer_workload(keras.layers.Conv2D(256, 1), (shape,), 14 * 14 * 256**2)
        outputs = layer_workload(keras.layers.Activation("tanh"), (shape,))
        per_flop = self._reference(kernel) / kernel.flops
        per_element = self._reference(outputs) / outputs.elements
        return work.flops * per_flop + work.elements * per_element + SHORTEST

    def _reference(self, work: Workload) -> float:
        """Seconds of what must be measurable for anything to be estimated."""
        key = self._key(work)
        if key not in self._cache:
            self._measure(key, work)
        if key in self._failed:
            raise ExportError(
                f"Expected a table that can measure a {work.kind} layer. It cannot: "
                f"{self._failed[key]}"
            )
        return self._cache[key]
