"""Latency budgets, solved with a table and then proven by measuring what was built."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.unit_map import UnitMap
from keras_nisp.data.random_samples import random_samples
from keras_nisp.data.samples import Samples
from keras_nisp.errors import BudgetError
from keras_nisp.export.tflite import convert
from keras_nisp.importance.base import Importance
from keras_nisp.io.shown import Shown
from keras_nisp.latency.benchmarking import benchmark
from keras_nisp.latency.table import LatencyTable
from keras_nisp.plans.budget import Budget
from keras_nisp.plans.plan import Plan
from keras_nisp.plans.planning import make_plan
from keras_nisp.surgery.rebuilding import rebuild_traced

TRIES = 3  # after the first
NOISE = 0.02  # of the latency: as much may be missing, since measurements differ by it
SAMPLES = 8  # from which int8 takes ranges; time does not depend on them


@dataclasses.dataclass(frozen=True, repr=False)
class Realised(Shown):
    """What a latency budget came to; `print` it for one line.

    Attributes:
        plan: the plan.
        unit_map: what becomes of the model's units.
        small: the model that it makes.
        wanted: share of the latency that was to go.
        measured: share that is gone, measured end to end.
        tries: how many plans were built and measured.
    """

    plan: Plan
    unit_map: UnitMap
    small: keras.Model
    wanted: float
    measured: float
    tries: int = 1

    @property
    def estimated(self) -> float:
        """Share of the latency that is gone by the table."""
        assert self.plan.latency is not None
        return self.plan.latency.reduction

    @property
    def met(self) -> bool:
        """Whether as much is gone as was wanted, to what measurements differ by."""
        return self.measured >= self.wanted - NOISE

    def __str__(self) -> str:
        text = (
            f"latency: wanted -{100 * self.wanted:.1f} %, by the table "
            f"-{100 * self.estimated:.1f} % ({self.plan.latency}), measured "
            f"-{100 * self.measured:.1f} % in {self.tries} "
        )
        text += "try" if self.tries == 1 else "tries"
        return text + ("" if self.met else ": not met, this is the best of them")


def realise_latency(
    channel_map: ChannelMap,
    importance: Importance,
    budget: Budget,
    samples: Samples | None = None,
    verbose: int = 0,
) -> Realised:
    """Plans, builds and measures; plans again for more while too little is gone.

    The table knows single layers. What they cost together (weights that do not stay in the
    processor's caches, say) only the whole model shows.

    Args:
        channel_map: the traced model to prune.
        importance: scores its channels, once.
        budget: a latency budget.
        samples, verbose: as for `make_plan`.

    Returns:
        The first result that meets the budget, else the fastest of them.

    Raises:
        BudgetError: by the table it cannot be reached.
    """
    importance, measure = _Remembered(importance), _stopwatch(channel_map.model, budget.table)
    results: list[Realised] = []
    amount = wanted = budget.amount
    while len(results) <= TRIES:
        try:
            plan = make_plan(channel_map, importance, budget.with_amount(amount), samples, verbose)
        except BudgetError:
            if not results:
                raise
            break  # more than the table can give: what there is has to do
        unit_map = plan.unit_map(channel_map)
        small = rebuild_traced(channel_map, unit_map)
        measured = measure(small, plan.input_shapes)
        results.append(Realised(plan, unit_map, small, wanted, measured))
        if results[-1].met:
            break
        # What the table says is taken to be proportional to what is measured.
        left = (1 - results[-1].estimated) / (1 - results[-1].measured)
        amount = 1 - left * (1 - wanted)
    best = max(results, key=lambda result: result.measured)
    return dataclasses.replace(best, tries=len(results))


def _stopwatch(model: keras.Model, table: LatencyTable) -> Callable:
    """A function of another model and its input shapes that measures which share of the latency of
    this one it saves, in turns."""
    original: list[bytes] = []  # converted once, when the first plan is there

    def content(model: keras.Model, shapes) -> bytes:
        return convert(model, table.quantization, random_samples(model, shapes, SAMPLES))

    def measure(small: keras.Model, shapes) -> float:
        if not original:
            original.append(content(model, shapes))
        is_open = any(None in tensor.shape[1:] for tensor in model.inputs)
        shape = list(shapes) if is_open else None
        result = benchmark(
            original[0], content(small, shapes), threads=table.threads, input_shape=shape
        )
        return 1 - 1 / result.speedup

    return measure


class _Remembered(Importance):
    """Scores that are computed once, for several budgets."""

    def __init__(self, importance: Importance):
        self.importance = importance
        self.known: np.ndarray | None = None

    def scores(self, channel_map, select):
        if self.known is None:
            self.known = self.importance.scores(channel_map, select)
        return self.known

    @property
    def source(self):
        return self.importance.source
