"""How much to remove, and within which limits."""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypedDict, TypeVar

import keras
import numpy as np

from keras_nisp.channels.tracing import Layers, trace_quietly
from keras_nisp.damage.table import Sensitivity
from keras_nisp.errors import warn
from keras_nisp.io.schema import StoredAs
from keras_nisp.latency.table import MULTIPLES, STEPS, LatencyTable

Function = TypeVar("Function", bound=Callable)
KINDS = (
    "ratio",
    "ratios",
    "widths",
    "flops_reduction",
    "params_reduction",
    "memory_reduction",
    "cache_reduction",
    "latency_reduction",
)
ALLOCATIONS = ("auto", "uniform", "global", "predicted", "measured")


class BudgetKeywords(TypedDict, total=False):
    """The arguments of `Budget`, for signatures of functions that take them as keywords."""

    ratio: float | None
    ratios: Mapping[str, float] | None
    widths: Mapping[str, int] | keras.Model | None
    flops_reduction: float | None
    params_reduction: float | None
    memory_reduction: float | None
    cache_reduction: float | None
    latency_reduction: float | None
    latency: LatencyTable | None
    allocation: str | Sensitivity
    round_to: int | None
    target: str | None
    min_channels: int | float
    exclude: Layers


RANKINGS = {"local": "uniform", "global": "global"}  # what `ranking` was


def _takes_ranking(budget: Any) -> Any:
    """Lets the class take `ranking`, as `allocation` was called, with a warning."""
    made = budget.__init__

    @functools.wraps(made)
    def init(self, *args, **keywords):
        if "ranking" in keywords:
            old = keywords.pop("ranking")
            keywords.setdefault("allocation", RANKINGS.get(old, old))
            new = f"`allocation={keywords['allocation']!r}`"
            warn(f"`ranking={old!r}` is now {new}.", DeprecationWarning)
        made(self, *args, **keywords)

    setattr(budget, "__init__", init)  # noqa: B010
    return budget


@_takes_ranking
@dataclasses.dataclass(frozen=True, repr=False)
class Budget:
    """How much to remove, and the limits that hold for it.

    Exactly one of `ratio`, `ratios`, `widths`, `flops_reduction`, `params_reduction`,
    `memory_reduction`, `cache_reduction` and `latency_reduction` is given. Functions that take a
    budget take it as `budget=Budget(...)`, or its arguments as keywords of their own:
    `prune(model, importance, flops_reduction=0.5)`.

    Args:
        ratio: share of the channels to remove, in [0, 1): of every coupled group, or of
            the whole with another `allocation` than `"uniform"`.
        ratios: shares by layer name or pattern, `{"conv2": 0.3, "stage3/*": 0.6}`. Coupled layers
            lose the same channels; all other layers stay as they are.
        widths: numbers of channels to keep by layer name or pattern, `{"conv2": 24}`, likewise; or
            a model whose layers have the same names, which then get its widths.
        flops_reduction: share of the FLOPs to remove, met within one channel.
        params_reduction: share of the parameters to remove, likewise.
        memory_reduction: share of the bytes of all activations to remove, likewise.
        cache_reduction: share to remove of the bytes that the keys and values of attention take for
            each token, likewise. Channels that are not part of keys or values stay.
        latency_reduction: share of the latency to remove, by a table of measured layers.
        latency: the `LatencyTable` for `latency_reduction`; by default float32 on one thread
            of this machine.
        allocation: which groups lose channels.
            `"uniform"`: every group loses the same share.
            `"global"`: channels with the lowest scores go, relative to the mean of their group.
            `"predicted"`: groups lose the channels whose removal changes the outputs least for
            what it saves, with kernels refitted. Gradients on calibration data predict the
            changes, in several rounds.
            `"measured"`: the same, but the most promising candidates of a round are measured.
            A `Sensitivity` table of damages: damages are added up; no data are read.
            `"auto"`: `"predicted"` for `*_reduction` if there are calibration data, otherwise
            `"uniform"`.
        round_to: widths of pruned groups are multiples of this number, the nearest ones that meet
            the budget. A group with no more channels than that stays whole. By default 1; for
            `latency_reduction` the block of the table (`LatencyTable.block`), or a smaller number
            if the budget cannot be met with that.
        target: a preset for `round_to`: `"x86"` (16), `"arm"` (8) or `"gpu"` (8), the number of
            channels that kernels there usually compute at once.
        min_channels: smallest number of channels to keep in a group; below 1, the smallest share.
        exclude: names, patterns or layer objects whose channels stay.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument is out of range or has no effect together with the others, or not
            exactly one amount is given.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu", name="hidden"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> budget = Budget(ratio=0.5, min_channels=6)
    >>> [plan_pruning(model, i, budget=budget).creators[0].kept for i in (Magnitude(), Random())]
    [6, 6]
    >>> budget
    Budget(ratio=0.5, min_channels=6)
    """

    ratio: float | None = None
    ratios: Mapping[str, float] | None = None
    widths: Annotated[Mapping[str, int] | keras.Model | None, StoredAs(dict[str, int] | None)] = (
        None
    )
    flops_reduction: float | None = None
    params_reduction: float | None = None
    memory_reduction: float | None = None
    cache_reduction: float | None = None
    latency_reduction: float | None = None
    latency: Annotated[LatencyTable | None, StoredAs(None)] = None
    allocation: str | Sensitivity = "auto"
    round_to: int | None = None
    target: str | None = None
    min_channels: int | float = 1
    exclude: Annotated[Layers, StoredAs(tuple[str, ...])] = ()

    def __post_init__(self):
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"Expected exactly one of {', '.join(KINDS)}. Received: {given or 'none of them'}."
            )
        amount = getattr(self, given[0])
        checked = (_checked_widths if given[0] == "widths" else _checked_shares)(given[0], amount)
        exclude = self.exclude
        single = isinstance(exclude, str) or not isinstance(exclude, Iterable)
        _check_limits(self)
        least = self.min_channels
        plain = {
            given[0]: checked,
            "round_to": None if self.round_to is None else int(self.round_to),
            "min_channels": float(least) if least < 1 else int(least),
            "exclude": (exclude,) if single else tuple(exclude),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        _check_effective(self)

    def __repr__(self) -> str:
        arguments = (f"{name}={value!r}" for name, value in self.arguments.items())
        return f"Budget({', '.join(arguments)})"

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that differ from their defaults."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value != DEFAULTS[name]}

    @property
    def kind(self) -> str:
        """Which of the amounts is given."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def amount(self) -> float:
        """The amount, as a share; for `ratios` the largest. `widths` have no amount."""
        given = getattr(self, self.kind)
        return max(given.values(), default=0.0) if self.kind == "ratios" else given

    @property
    def by_damage(self) -> bool:
        """Whether widths are chosen by damage to the outputs on calibration data."""
        return self.allocation in ("predicted", "measured")

    def allocated(self, has_samples: bool) -> "Budget":
        """The same budget with `"auto"` decided.

        Args:
            has_samples: whether there are calibration data.
        """
        if self.allocation != "auto":
            return self
        spent = self.kind.endswith("_reduction")
        allocation = "predicted" if spent and has_samples else "uniform"
        return dataclasses.replace(self, allocation=allocation)

    def with_amount(self, amount: float) -> "Budget":
        """The same limits with another amount of the same kind; `ratios` keep their proportions."""
        changed: dict[str, Any] = {self.kind: amount}
        if self.ratios is not None:
            scale = amount / (self.amount or 1.0)
            changed["ratios"] = {name: scale * ratio for name, ratio in self.ratios.items()}
        if self.kind == "latency_reduction":
            changed["latency"] = self.table  # what it has measured is not measured again
        return dataclasses.replace(self, **changed)

    @functools.cached_property
    def table(self) -> LatencyTable:
        """The table of a latency budget, by default one of this machine."""
        return LatencyTable() if self.latency is None else self.latency

    @property
    def multiples(self) -> tuple[int, ...]:
        """Candidates for the number of which widths are multiples; the first that meets the budget
        is taken.

        It is `round_to`, or the number for `target`, or 1. Latency falls in steps, so latency
        budgets start with the block that their table measures, then try smaller ones.
        """
        if self.round_to is not None:
            return (self.round_to,)
        if self.target is not None:
            return (MULTIPLES[self.target],)
        if self.kind != "latency_reduction":
            return (1,)
        return tuple(step for step in reversed(STEPS) if step <= self.table.block)


DEFAULTS = {field.name: field.default for field in dataclasses.fields(Budget)}


# Budgets as keywords -----------------------------------------------------------------


def lists_budget(function: Function) -> Function:
    """Puts the arguments of `Budget` in a function's signature, in the place of `**keywords`.

    So help and completion show them, and they are written only once.
    """
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    listed = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for (name, default), kind in zip(
            DEFAULTS.items(), BudgetKeywords.__annotations__.values(), strict=True
        )
    ]
    setattr(function, "__signature__", signature.replace(parameters=[*own, *listed]))  # noqa: B010
    return function


def as_budget(budget: Budget | None, keywords: BudgetKeywords, function: Callable) -> Budget:
    """The budget that was passed to a function, as `budget` or as keywords.

    Raises:
        TypeError: there is no such keyword, or `budget` is none.
        ValueError: both are given, or the keywords are no budget.
    """
    for name in keywords.keys() - DEFAULTS.keys() - {"ranking"}:
        near = difflib.get_close_matches(name, inspect.signature(function).parameters, 1, 0.4)
        raise TypeError(
            f"{function.__name__}() got an unexpected keyword argument '{name}'."
            + (f" Did you mean `{near[0]}`?" if near else "")
        )
    if budget is None:
        return Budget(**keywords)
    if not isinstance(budget, Budget):
        raise TypeError(f"Expected `budget` to be a keras_nisp.Budget. Received: {budget!r}")
    if keywords:
        given = ", ".join(f"`{name}`" for name in keywords)
        raise ValueError(
            f"Expected either `budget` or its arguments as keywords. Received: `budget` and "
            f"{given}. Put them into one: `budget=keras_nisp.Budget(...)`."
        )
    return budget


# Checks ------------------------------------------------------------------------------


def _check_limits(budget: Budget) -> None:
    allocation = budget.allocation
    if not isinstance(allocation, Sensitivity) and allocation not in ALLOCATIONS:
        raise ValueError(
            f"Expected `allocation` to be one of {', '.join(map(repr, ALLOCATIONS))}, or a "
            f"Sensitivity. Received: {allocation!r}"
        )
    _check_rounding(budget.round_to, budget.target)
    _check_least(budget.min_channels)
    if budget.latency is None:
        return
    if not isinstance(budget.latency, LatencyTable):
        raise TypeError(f"Expected `latency` to be a LatencyTable. Received: {budget.latency!r}")
    if budget.latency_reduction is None:
        raise ValueError(
            f"Expected `latency` with `latency_reduction` alone. Received: {budget.kind}."
        )


def _check_rounding(round_to: int | None, target: str | None) -> None:
    if target is not None and target not in MULTIPLES:
        raise ValueError(
            f"Expected `target` to be one of {', '.join(MULTIPLES)}. Received: {target!r}"
        )
    if round_to is None:
        return
    if target is not None:
        raise ValueError(
            f"Expected `round_to` or `target`, which stands for round_to={MULTIPLES[target]}, not "
            f"both. Received: round_to={round_to}, target={target!r}."
        )
    whole = isinstance(round_to, (int, float, np.number)) and not isinstance(round_to, bool)
    if not whole or round_to < 1 or round_to % 1 != 0:  # NaN for infinity
        raise ValueError(
            f"Expected `round_to` to be a whole number of at least 1. Received: {round_to!r}"
        )


def _check_least(given: Any) -> None:
    number = isinstance(given, (int, float, np.number)) and not isinstance(given, bool)
    if not number or not (0 < given < 1 or (given >= 1 and given % 1 == 0)):
        raise (ValueError if number else TypeError)(
            "Expected `min_channels` to be a whole number of channels of at least 1, or a fraction "
            f"of a group in (0, 1). Received: {given!r}"
        )


def _check_effective(budget: "Budget") -> None:
    """Raises where an argument would have no effect next to the others."""
    useless = []
    if budget.kind == "widths":  # they say how wide a layer becomes
        limits = {"round_to": None, "target": None, "min_channels": 1}
        useless = [name for name, default in limits.items() if getattr(budget, name) != default]
        useless = [name for name in useless if (name, budget.round_to) != ("round_to", 1)]
    if budget.kind in ("widths", "ratios") and budget.allocation not in ("auto", "uniform"):
        useless.append("allocation")
    if useless:
        given = ", ".join(f"{name}={getattr(budget, name)!r}" for name in useless)
        raise ValueError(
            f"Expected `{budget.kind}` alone: it says how wide each layer becomes, so that "
            f"{given} would have no effect. Leave it out, or give `ratio` instead."
        )


def _checked_shares(kind: str, given: Any) -> float | dict[str, float]:
    amounts = given if kind == "ratios" else {kind: given}
    if not isinstance(amounts, Mapping):
        raise TypeError(f"Expected `ratios` to be a dict of layer: ratio. Received: {amounts!r}")
    for name, amount in amounts.items():
        if isinstance(amount, bool) or not isinstance(amount, (int, float, np.number)):
            raise TypeError(f"Expected `{name}` to be a number in [0, 1). Received: {amount!r}")
        if not 0 <= amount < 1:
            raise ValueError(f"Expected `{name}` in [0, 1). Received: {amount}")
    shares = {name: float(amount) for name, amount in amounts.items()}
    return shares if kind == "ratios" else shares[kind]


def _checked_widths(kind: str, given: Any) -> dict[str, int]:
    if isinstance(given, keras.Model):
        return {creator.layer: len(creator.units) for creator in trace_quietly(given).creators}
    if not isinstance(given, Mapping):
        raise TypeError(f"Expected `widths` to be a dict of layer: channels. Received: {given!r}")
    for name, width in given.items():
        if isinstance(width, bool) or not isinstance(width, (int, np.integer)):
            raise TypeError(f"Expected the width of '{name}' to be an integer. Received: {width!r}")
        if width < 1:
            raise ValueError(f"Expected the width of '{name}' to be at least 1. Received: {width}")
    return {name: int(width) for name, width in given.items()}
