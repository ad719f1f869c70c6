"""`sensitivity`: what a model loses if one coupled group loses channels, for each group."""

import dataclasses
import functools
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from keras_nisp._renaming import renamed
from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.tracing import trace
from keras_nisp.damage.network import DamagedNetwork
from keras_nisp.damage.table import Sensitivity, layers_of
from keras_nisp.data.calibration import calibration_samples
from keras_nisp.data.samples import MAX_SAMPLES, Samples, class_labels, outputs_of
from keras_nisp.errors import PlanFileError, check_function, check_number
from keras_nisp.importance.base import Custom, Importance, as_importance, supplied
from keras_nisp.io import schema
from keras_nisp.io.files import check_writable, replacing
from keras_nisp.io.progress import Progress
from keras_nisp.keras_graph import keras_models
from keras_nisp.keras_graph.output_kinds import is_regressor, kind_of
from keras_nisp.plans.budget import Budget
from keras_nisp.plans.plan import Plan
from keras_nisp.plans.planning import make_plan
from keras_nisp.pruning.identity import identity
from keras_nisp.recovery.pair import Pair
from keras_nisp.recovery.recalibration import repair
from keras_nisp.surgery.rebuilding import rebuild_traced

RATIOS = (0.25, 0.5, 0.75)


def accuracy(model: keras.Model, samples: Samples) -> float:
    """Share of right answers of a classifier with one output.

    Args:
        model: a model with outputs `(batch, classes)`.
        samples: samples with labels: indices of classes, or one-hot.

    Raises:
        ValueError: outputs or labels are of another kind.
    """
    outputs = outputs_of(model, samples)
    labels = np.asarray(keras.tree.flatten(samples.labels)[0])
    # Such labels make classes of a regression, too.
    shares = labels.ndim == 2 and labels.shape[-1] > 1 and np.allclose(labels.sum(-1), 1)
    if shares:
        labels = labels.argmax(-1)
    answers, classes = _answers(model, outputs, shares)
    if answers is None or labels.size != len(samples) or not _are_below(labels, classes):
        raise ValueError(
            "Expected a classifier with one output (batch, classes) and a label for each sample, "
            f"below {classes or 'the number of classes'}. Received outputs "
            f"{[output.shape for output in outputs]} and labels {labels.shape}"
            f"{_range_of(labels)}. For other models give `calibration` in the place of `data` "
            "(damages need no labels), or pass `metric=`, a function from a model and samples to a "
            "number."
        )
    return float((answers == labels.ravel()).mean())


def _answers(
    model: keras.Model, outputs: list[np.ndarray], shares: bool
) -> tuple[np.ndarray | None, int]:
    """Which class a classifier chooses for each sample, and of how many; `None` of any other."""
    if len(outputs) != 1 or outputs[0].ndim != 2 or (is_regressor(model) and not shares):
        return None, 0
    (values,), kind = outputs, kind_of(model).name
    if values.shape[-1] == 1:
        return (values.ravel() > (0 if kind == "binary logits" else 0.5)).astype(int), 2
    lengths = np.linalg.norm(values, axis=-1)
    if kind == "values" and np.allclose(lengths, 1, atol=1e-3) and (values.max(-1) < 0.99).any():
        return None, 0  # embeddings
    return values.argmax(-1), values.shape[-1]


def _are_below(labels: np.ndarray, classes: int) -> bool:
    """Whether labels are indices of so many classes."""
    known = labels.dtype.kind in "biuf" and np.isfinite(labels.astype(float)).all()
    return bool(known and ((labels >= 0) & (labels < classes) & (labels % 1 == 0)).all())


def _range_of(labels: np.ndarray) -> str:
    return f" from {labels.min():g} to {labels.max():g}" if labels.dtype.kind in "iuf" else ""


def known_accuracies(models: Iterable[keras.Model], samples: Samples) -> list[float]:
    """Accuracies on samples that have labels of a classifier; none on others."""
    if class_labels(samples) is None:
        return []
    try:
        return [accuracy(model, samples) for model in models]
    except ValueError:
        return []


@renamed(limit="max_samples")
def sensitivity(
    model: keras.Model,
    importance: Importance | Callable,
    data: Any = None,
    *,
    ratios: Iterable[float] | None = None,
    budget: Budget | None = None,
    calibration: Any = None,
    metric: Callable[[keras.Model, Samples], float] = accuracy,
    path: str | os.PathLike | None = None,
    max_samples: int = MAX_SAMPLES,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    verbose: int = 0,
) -> Sensitivity:
    """Measures how much each coupled group matters: prunes it alone, by several ratios.

    With labeled `data` it measures accuracies of rebuilt models. With `calibration` alone, which
    needs no labels, it measures damages: how far the outputs move once the kernels that read the
    removed channels are refitted. No model is built for that, and such a table can be the
    `allocation` of a budget.

    Args:
        model: a functional or Sequential model. It is not changed.
        importance: an `Importance` such as `Magnitude()`, which scores the whole model once. If it
            uses data and was given none, it gets `calibration`.
        data: labeled samples on which accuracy is measured, as `(x, y)` or a dataset.
        ratios: shares of the channels of a group to remove, in (0, 1); by default 0.25, 0.5 and
            0.75.
        budget: instead of `ratios`, a `Budget` with one `ratio` and its limits (`round_to`,
            `target`, `min_channels`, `exclude`).
        calibration: samples on which damages are measured, as for `NISP`. If `data` are given,
            samples for a repair of BatchNormalization and biases before each measurement, as in
            `recalibrate(compensate="mean")`; by default nothing is repaired then.
        metric: `metric(model, samples)` returns the figure for `data`; by default top-1 accuracy.
        path: path of a JSON file to which results are written after each measurement. A file of
            the same model, importance, metric, samples and labels is continued. If a metric
            depends on anything besides its arguments, constants and closure, use another path
            when that changes.
        max_samples: largest number of samples to measure on.
        seed: seed for choosing the samples.
        progress: function that is called with the number of measurements done, and their total.
        verbose: 1 shows progress bars for reading data and for measurements.

    Returns:
        A `Sensitivity`.

    Raises:
        TypeError: the model is not functional or Sequential, or `data` have no labels.
        ValueError: an argument is wrong, or nothing can be pruned.
        PlanFileError: `path` holds something else, or results of another model or settings.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu", name="hidden"),
    ...     keras.layers.Dense(8, activation="relu", name="small"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> model.get_layer("small").set_weights([np.full((8, 8), 0.01), np.zeros(8)])  # duplicates
    >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    >>> table = sensitivity(model, Magnitude(), calibration=x, ratios=[0.5, 0.75])
    >>> table.groups, table.channels
    ((('hidden',), ('small',)), (8, 8))
    >>> plan = plan_pruning(model, Magnitude(), flops_reduction=0.4, allocation=table)
    >>> [creator.kept for creator in plan.creators][:2]
    [8, 3]
    """
    ratios, limits = _checked_ratios(ratios, budget)
    check_function("metric", metric)
    if progress is not None:
        check_function("progress", progress)
    importance = as_importance(importance)
    _check_data(data, calibration, metric)
    if path is not None:
        check_writable(path)
    keras_models.check_model(model)
    how: dict[str, Any] = {"limit": max_samples, "seed": seed, "verbose": verbose}
    unlabelled = None if calibration is None else calibration_samples(calibration, model, **how)
    importance = supplied(importance, unlabelled, verbose)
    channel_map = trace(model, importance.input_shapes(model))
    channel_map.check_groups()
    channel_map.check_weights()
    labelled = None if data is None else calibration_samples(data, model, labels=True, **how)
    known = _Results(path, _settings(model, importance, metric, labelled, unlabelled))
    if labelled is None:
        figure = _damage(channel_map, unlabelled, verbose)
    else:
        known.check_baseline(_figure(metric, model, labelled))
        figure = _accuracy(channel_map, metric, labelled, unlabelled)
    scores = importance(channel_map)
    pairs = list(itertools.product(range(len(channel_map.groups)), ratios))
    measured, bar = [], Progress(len(pairs), verbose, "Pruning each group alone", "measurement")
    for group, ratio in pairs:
        plan = _plan(channel_map, group, ratio, limits, scores)
        units = channel_map.groups[group].units
        measured.append(known.once(f"{group} {ratio:g}", plan, figure, units))
        bar.update(len(measured))
        if progress:
            progress(len(measured), len(pairs))
    names = importance.name, _name(metric)
    return _result(channel_map, names, known.get("baseline"), ratios, measured)


def _name(metric: Callable) -> str:
    """What a metric is called where figures are shown."""
    name = getattr(getattr(metric, "func", metric), "__name__", "")  # of a `functools.partial`
    return name if name.isidentifier() else "metric"  # "<lambda>"


def _figure(metric: Callable, model: keras.Model, samples: Samples) -> float:
    """What a metric says of a model."""
    figure = metric(model, samples)
    try:
        return float(figure)
    except (TypeError, ValueError):
        raise TypeError(
            f"Expected `metric` to return a number. Received: {figure!r} from {_name(metric)}."
        ) from None


def _accuracy(channel_map, metric, samples: Samples, repaired_on: Samples | None) -> Callable:
    """Gives the figure of a plan by building the smaller model."""
    return lambda plan, units: _figure(metric, _pruned(channel_map, plan, repaired_on), samples)


def _damage(channel_map: ChannelMap, samples: Samples | None, verbose: int) -> Callable:
    """Gives the damage of a plan that removes some units; `None` where it does not show."""
    assert samples is not None
    network = functools.cache(lambda: DamagedNetwork(channel_map, samples, verbose))

    def damage(plan: Plan, units: np.ndarray) -> float | None:
        if not network().seen[units].any():
            return None
        return network().measure(~plan.removed_units(channel_map))

    return damage


def _result(channel_map, names, baseline: float | None, ratios, measured) -> Sensitivity:
    importance, metric = names
    rows = [tuple(measured[i : i + len(ratios)]) for i in range(0, len(measured), len(ratios))]
    return Sensitivity(
        channel_map.model.name,
        importance,
        baseline,
        tuple(layers_of(group, channel_map) for group in channel_map.groups),
        tuple(len(group.units) for group in channel_map.groups),
        ratios,
        **{"damages" if baseline is None else "accuracies": tuple(rows)},
        metric=metric,
    )


def _check_data(data: Any, calibration: Any, metric: Callable) -> None:
    if data is None and calibration is None:
        raise ValueError(
            "Expected labeled `data`, for accuracies, or `calibration` data, for damages to the "
            "outputs, which need no labels. Received neither."
        )
    if data is None and metric is not accuracy:
        raise ValueError("Expected `data` for `metric`. Received `calibration` alone.")


def _checked_ratios(ratios, budget: Budget | None) -> tuple[tuple[float, ...], Budget]:
    """The ratios in ascending order, and a budget whose limits hold for each of them."""
    if budget is not None and ratios is not None:
        raise ValueError("Expected either `ratios` or `budget`. Received both.")
    if budget is not None:
        if (
            not isinstance(budget, Budget)
            or budget.kind != "ratio"
            or budget.allocation not in ("auto", "uniform")
        ):
            raise ValueError(
                "Expected `budget` to be a Budget with `ratio`, and no `allocation`: each group is "
                f"pruned alone. Received: {budget!r}"
            )
        ratios = [budget.amount]
    given = RATIOS if ratios is None else ratios
    if isinstance(given, (str, Mapping)) or not isinstance(given, Iterable):
        raise TypeError(f"Expected `ratios` to be a list of numbers. Received: {given!r}")
    given = list(given)
    for ratio in given:
        check_number("ratios", ratio, "in (0, 1)", lambda share: 0 < share < 1)
    if not given:
        raise ValueError("Expected `ratios` to hold a number in (0, 1). Received: none.")
    shares = tuple(sorted({float(ratio) for ratio in given}))
    return shares, budget or Budget(ratio=shares[0])


def _plan(channel_map: ChannelMap, group: int, ratio: float, limits: Budget, scores) -> Plan:
    """The plan that removes that share of one group's channels."""
    layer = layers_of(channel_map.groups[group], channel_map)[0]
    budget = dataclasses.replace(limits, ratio=None, ratios={layer: ratio})
    return make_plan(channel_map, Custom(lambda _: scores), budget)


def _pruned(channel_map: ChannelMap, plan: Plan, samples: Samples | None) -> keras.Model:
    unit_map = plan.unit_map(channel_map)
    small = rebuild_traced(channel_map, unit_map)
    if samples is not None:  # there are many networks: by what takes the least time
        repair(small, samples, Pair(channel_map, unit_map, small), "mean")
    return small


def _settings(
    model, importance, metric, labelled: Samples | None, unlabelled: Samples | None
) -> dict:
    """What all results depend on; what each is measured on besides is in its key."""
    data = [unlabelled and unlabelled.inputs]
    if labelled is not None:
        data = [labelled.inputs, keras.tree.flatten(labelled.labels), *data]
    return {"importance": importance.name, "digest": identity(model, metric, data)}


class _Results(dict):
    """Measurements by key, kept in a file after each."""

    def __init__(self, path: str | os.PathLike | None, settings: dict):
        super().__init__()
        self.path, self.settings = path, settings
        if path is not None and Path(path).exists():
            super().update(_read(Path(path), settings))

    def check_baseline(self, value: float) -> None:
        """Keeps the figure of the whole model, which tells whether a metric is still the same."""
        if not math.isfinite(value):
            raise ValueError(
                f"Expected `metric` to give a finite number for the whole model. Received: {value}."
            )
        known = self.get("baseline", value)
        if not math.isclose(known, value, rel_tol=1e-5, abs_tol=1e-5):
            raise PlanFileError(
                f"'{self.path}' holds results of another metric: the whole model has {value:g} "
                f"now, and had {known:g}. Choose another path, or remove the file to start again."
            )
        if "baseline" not in self:
            self["baseline"] = value

    def once(self, name: str, plan: Plan, figure: Callable, units: np.ndarray) -> float | None:
        """The figure of a plan that removes some units, measured if it is not known."""
        # By what is removed: another setting of the importance may remove something else.
        key = f"{name} {identity([row.removed for row in plan.creators])[:16]}"
        if key not in self:
            self[key] = figure(plan, units)
        return self[key]

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        if self.path is not None:
            with replacing(self.path) as temporary:
                # JSON has no NaN and no infinity: a metric of a smaller model may be either.
                results = {
                    k: x if x is None or math.isfinite(x) else str(x) for k, x in self.items()
                }
                data = {"format": "keras_nisp sensitivity", **self.settings, "results": results}
                temporary.write_text(json.dumps(data, indent=1))


@dataclasses.dataclass(frozen=True)
class _Record:
    """What a file of results holds."""

    __pydantic_config__ = schema.STRICT

    format: Literal["keras_nisp sensitivity"]
    importance: str
    digest: str
    results: dict[str, float | Literal["nan", "inf", "-inf"] | None]


def _read(path: Path, settings: dict) -> dict:
    try:
        record = schema.read(_Record, schema.parse(path.read_bytes()))
    except ValueError as error:
        raise PlanFileError(f"Expected results of `sensitivity` in '{path}': {error}") from error
    recorded = {"importance": record.importance, "digest": record.digest}
    if recorded != settings:
        raise PlanFileError(
            f"'{path}' holds results of another model, importance, metric, data or labels. Choose "
            "another path, or remove the file to start again."
        )
    return {k: float(x) if isinstance(x, str) else x for k, x in record.results.items()}
