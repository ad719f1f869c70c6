"""How much to remove, and within which limits."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from keras_nisp.channels.tracing import trace_quietly
from keras_nisp.latency.table import BLOCKS, STEPS, LatencyTable

KINDS = ("ratio", "ratios", "widths", "flops_reduction", "params_reduction", "latency_reduction")


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much to remove: exactly one of `KINDS`, and the limits that hold for it.

    Arguments are those of `keras_nisp.plan_pruning`.
    """

    ratio: float | None = None
    ratios: Mapping[str, float] | None = None
    widths: Mapping[str, int] | keras.Model | None = None
    flops_reduction: float | None = None
    params_reduction: float | None = None
    latency_reduction: float | None = None
    latency: LatencyTable | None = None
    ranking: str = "local"
    round_to: int | None = None
    target: str | None = None
    min_channels: int | float = 1
    exclude: tuple = ()

    def __post_init__(self):
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"Expected exactly one of {', '.join(KINDS)}. Received: {given or 'none of them'}."
            )
        if self.widths is not None:
            object.__setattr__(self, "widths", _checked_widths(self.widths))
        else:
            _check_shares(given[0], getattr(self, given[0]))
        if self.ranking not in ("local", "global"):
            raise ValueError(
                f"Expected `ranking` to be 'local' or 'global'. Received: {self.ranking!r}"
            )
        _check_rounding(self.round_to, self.target)
        self._set_table()
        _check_least(self.min_channels)
        _check_effective(self)
        exclude = self.exclude
        single = isinstance(exclude, str) or not isinstance(exclude, Iterable)
        object.__setattr__(self, "exclude", (exclude,) if single else tuple(exclude))

    def _set_table(self) -> None:
        """Checks `latency`, and gives latency budgets a table of this machine by default."""
        if self.latency is not None and not isinstance(self.latency, LatencyTable):
            raise TypeError(f"Expected `latency` to be a LatencyTable. Received: {self.latency!r}")
        if (self.latency is None) != (self.latency_reduction is None):
            if self.latency is not None:
                raise ValueError(
                    f"Expected `latency` with `latency_reduction` alone. Received: {self.kind}."
                )
            object.__setattr__(self, "latency", LatencyTable())

    @property
    def blocks(self) -> tuple[int, ...]:
        """Widths are to be multiples of the first of these with which the budget can be met.

        That is what is given, or what suits the target, or 1. Latency falls in steps, so that
        latency budgets take those that their table measures, and finer ones if they must.
        """
        if self.round_to is not None:
            return (int(self.round_to),)
        if self.target is not None:
            return (BLOCKS[self.target],)
        if self.latency is None:
            return (1,)
        return tuple(step for step in reversed(STEPS) if step <= self.latency.block)

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def amount(self) -> float | Mapping:
        return getattr(self, self.kind)

    def with_amount(self, amount: float) -> "Budget":
        """The same limits with another amount of the same kind."""
        return dataclasses.replace(self, **{self.kind: amount})


def _check_rounding(round_to: int | None, target: str | None) -> None:
    if target is not None and target not in BLOCKS:
        raise ValueError(
            f"Expected `target` to be one of {', '.join(BLOCKS)}. Received: {target!r}"
        )
    if round_to is None:
        return
    if target is not None:
        raise ValueError(
            f"Expected `round_to` or `target`, which stands for round_to={BLOCKS[target]}, not "
            f"both. Received: round_to={round_to}, target={target!r}."
        )
    whole = isinstance(round_to, (int, float, np.number)) and not isinstance(round_to, bool)
    if not whole or round_to < 1 or round_to != np.floor(round_to) or round_to == np.inf:
        raise ValueError(f"Expected `round_to` of at least 1. Received: {round_to}")


def _check_least(given: Any) -> None:
    number = isinstance(given, (int, float, np.number)) and not isinstance(given, bool)
    if not number or not (0 < given < 1 or (given >= 1 and given == np.floor(given) < np.inf)):
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
    if budget.kind in ("widths", "ratios") and budget.ranking != "local":
        useless.append("ranking")
    if useless:
        given = ", ".join(f"{name}={getattr(budget, name)!r}" for name in useless)
        raise ValueError(
            f"Expected `{budget.kind}` alone: it says how wide each layer becomes, so that "
            f"{given} would have no effect. Leave it out, or give `ratio` instead."
        )


def _check_shares(kind: str, given: Any) -> None:
    amounts = given if kind == "ratios" else {kind: given}
    if not isinstance(amounts, Mapping):
        raise TypeError(f"Expected `ratios` to be a dict of layer: ratio. Received: {amounts!r}")
    for name, amount in amounts.items():
        if isinstance(amount, bool) or not isinstance(amount, (int, float, np.number)):
            raise TypeError(f"Expected `{name}` to be a number in [0, 1). Received: {amount!r}")
        if not 0 <= amount < 1:
            raise ValueError(f"Expected `{name}` in [0, 1). Received: {amount}")


def _checked_widths(given: Any) -> dict[str, int]:
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
