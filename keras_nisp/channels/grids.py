"""Names of tensors in which channels lie along several axes: channels inside of heads, say.

An element of such a tensor is there as long as its head is, and its channel inside the head. It
has a name of its own, a *product*, that stands for its *factors*: the head and the channel. What
decides is factors alone, so that a tensor stays a box after any removal.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from keras_nisp.channels.named_tensor import compact, varying

INSIDE = "lies inside of what goes as a whole"
SEVERAL_WAYS = "is laid out in several ways that do not fit each other"


class Grids:
    """Products, by their factors.

    Args:
        fresh: makes so many new names.
    """

    def __init__(self, fresh: Callable[[int], np.ndarray]) -> None:
        self.fresh = fresh
        self.factors: dict[int, tuple[int, ...]] = {}
        self.known: dict[tuple[int, ...], int] = {}
        self.further: list[tuple[int, tuple[int, ...]]] = []  # other factors of known products
        self.needed: list[np.ndarray] = []  # what tensors hold nothing without
        self.heads: list[np.ndarray] = []  # products of tensors have them for each alone

    def product(self, columns: list[np.ndarray]) -> np.ndarray:
        """The names of products of arrays that broadcast to each other, element by element."""
        laid = np.broadcast_arrays(*columns)
        rows = list(zip(*(column.ravel().tolist() for column in laid), strict=True))
        missing = [row for row in dict.fromkeys(rows) if row not in self.known]
        for row, name in zip(missing, self.fresh(len(missing)).tolist(), strict=True):
            self.known[row], self.factors[name] = name, row
        return np.array([self.known[row] for row in rows], int).reshape(laid[0].shape)

    def laid_out(self, names: np.ndarray, split: bool = False) -> dict[int, np.ndarray] | None:
        """What lies along each axis along which an array varies.

        Args:
            names: the array; compact.
            split: whether to make products of names that are none.

        Returns:
            For each of these axes names, of which those of an element are products; `None` if
            the names are no products.
        """
        if names.ravel()[0] not in self.factors and not split:
            return None
        columns = self._columns(names)
        if columns is None or (len(columns) < 2 and not split):
            return None
        parts: dict[int, list[np.ndarray]] = {axis: [] for axis in varying(names)}
        while columns:
            column = compact(columns.pop(0))
            axes = [axis for axis in parts if column.shape[axis] > 1]
            if len(axes) > 1:
                columns = self._split(column, axes) + columns
            elif axes:
                parts[axes[0]].append(column)
            else:
                self.needed.append(column.ravel())  # one channel of all heads
        if not all(parts.values()):
            return None  # an axis along which the same element lies at other places
        return {
            axis: (found[0] if len(found) == 1 else self.product(found)).ravel()
            for axis, found in parts.items()
        }

    def _columns(self, names: np.ndarray) -> list[np.ndarray] | None:
        """The factors of each element, first factors first."""
        rows = [self._leaves(name) for name in names.ravel().tolist()]
        if any(len(row) != len(rows[0]) for row in rows):
            return None
        return [np.array(column).reshape(names.shape) for column in zip(*rows, strict=True)]

    def _leaves(self, name: int) -> tuple[int, ...]:
        if name not in self.factors:
            return (name,)
        return tuple(leaf for factor in self.factors[name] for leaf in self._leaves(factor))

    def _split(self, column: np.ndarray, axes: list[int]) -> list[np.ndarray]:
        """Makes products of names that vary along several axes: heads, laid out as groups."""
        parts = []
        for axis in axes:
            shape = [-1 if i == axis else 1 for i in range(column.ndim)]
            parts.append(self.fresh(column.shape[axis]).reshape(shape))
        rows = zip(*(p.ravel().tolist() for p in np.broadcast_arrays(*parts)), strict=True)
        for name, row in zip(column.ravel().tolist(), rows, strict=True):
            if name in self.factors:
                self.further.append((name, row))
            else:
                self.factors[name] = row
                self.known.setdefault(row, name)
        return parts

    def solve(
        self,
        count: int,
        first: np.ndarray,
        second: np.ndarray,
        fixed: np.ndarray,
        made: np.ndarray,
    ) -> "Solution":
        """The unit of each name, given which are joined.

        Where products are one, so are their factors, and the other way round.

        Args:
            count: of names.
            first, second: names that are joined.
            fixed: names that may not be removed.
            made: names of channels that layers create.
        """
        defined = [*self.factors.items(), *self.further]
        blocks = [
            (np.array([n for n, row in defined if len(row) == arity]),
             np.array([row for _, row in defined if len(row) == arity]))
            for arity in sorted({len(row) for _, row in defined})
        ]  # fmt: skip
        pairs = [(first, second)]
        while True:
            labels = _components(count, pairs)
            more = [pair for block in blocks for pair in _implied(labels, *block)]
            if not more:
                heads = np.concatenate([np.zeros(0, int), *self.heads])
                return _solution(labels, blocks, fixed, made, heads)
            pairs += more


class Products:
    """The units that stand for others, their factors: each goes with any of them.

    Args:
        units, factors: pairs of a unit that is a product and one of its factors, which are no
            products.
    """

    def __init__(self, units: np.ndarray, factors: np.ndarray) -> None:
        self.units, self.factors = units, factors
        self.by_product: dict[int, list[int]] = {}
        for product, factor in zip(units.tolist(), factors.tolist(), strict=True):
            self.by_product.setdefault(product, []).append(factor)

    def deciding(self, units: np.ndarray) -> np.ndarray:
        """The units that decide whether these stay: of products their factors.

        Returns:
            1-D array, in the order in which they first occur.
        """
        units = np.ravel(units)
        if self.by_product:
            parts = [self.by_product.get(unit, (unit,)) for unit in dict.fromkeys(units.tolist())]
            units = np.array([factor for part in parts for factor in part], int)
        return np.array(list(dict.fromkeys(units.tolist())), int)

    def columns(self, units: np.ndarray) -> list[np.ndarray]:
        """Arrays of the units that decide whether these stay: each unit is there as long as what
        lies in its place in each of the arrays."""
        if not np.isin(units, self.units).any():
            return [units]
        rows = [self.by_product.get(unit, (unit,)) for unit in units.ravel().tolist()]
        most = max(map(len, rows))
        columns = zip(*((*row, *row[-1:] * (most - len(row))) for row in rows), strict=True)
        return [np.array(column).reshape(units.shape) for column in columns]

    def scores_of_factors(self, scores: np.ndarray) -> np.ndarray:
        """Scores of units that decide: what a product has counts for each of its factors."""
        if not self.by_product:
            return scores
        scores, given = scores.copy(), scores[self.units]
        told = ~np.isnan(given)
        whole = np.unique(self.factors[told])
        scores[whole] = np.nan_to_num(scores[whole])
        np.add.at(scores, self.factors[told], given[told])
        scores[self.units] = np.nan
        return scores

    def gone(self, removed: np.ndarray) -> np.ndarray:
        """What is removed if these units are: products go with any of their factors.

        Args:
            removed: boolean per unit.
        """
        if not self.by_product:
            return removed
        removed = removed.copy()
        removed[self.units] = False
        np.logical_or.at(removed, self.units, removed[self.factors])
        return removed


@dataclasses.dataclass(frozen=True)
class Solution:
    """Units, and which of them stand for others.

    Attributes:
        units: the unit of each name.
        products: those that stand for others.
        held: pairs of an array of units that may not be removed, and the reason.
    """

    units: np.ndarray
    products: Products
    held: list[tuple[np.ndarray, str]]


def _components(count: int, pairs: list) -> np.ndarray:
    first, second = (np.concatenate(side) for side in zip(*pairs, strict=True))
    links = coo_array((np.ones(len(first), bool), (first, second)), (count, count))
    return connected_components(links, directed=False)[1]


def _implied(labels: np.ndarray, names: np.ndarray, rows: np.ndarray) -> list:
    """Names that are one because products are, or products because their factors are."""
    found = []
    _, place = np.unique(labels[names], return_inverse=True)
    first = np.zeros(place.max() + 1, int)
    first[place[::-1]] = np.arange(len(names))[::-1]
    one, other = rows[first[place]].ravel(), rows.ravel()
    if (apart := labels[one] != labels[other]).any():
        found.append((one[apart], other[apart]))
    _, place = np.unique(labels[rows], axis=0, return_inverse=True)
    place = place.ravel()
    first = np.zeros(place.max() + 1, int)
    first[place[::-1]] = np.arange(len(names))[::-1]
    one = names[first[place]]
    if (apart := labels[one] != labels[names]).any():
        found.append((one[apart], names[apart]))
    return found


def _solution(
    labels: np.ndarray, blocks: list, fixed: np.ndarray, made: np.ndarray, heads: np.ndarray
) -> Solution:
    """The units of names with these labels: some go on as the one factor that decides of them."""
    factors, clashing = _by_unit(labels, blocks)
    leaves, circular = _leaves_of(factors)
    held = [*clashing, *circular]
    inner = _inner(labels, factors, made, heads)
    stay = np.zeros(labels.max() + 1, bool)
    stay[labels[fixed]] = True
    stay[held + inner] = True
    for product, row in leaves.items():
        if stay[product]:
            stay[list(row)] = True
    stands_for = _decided_by_one(leaves, stay)
    _, units = np.unique(stands_for[labels], return_inverse=True)
    unit_of = np.zeros(len(stay), int)
    unit_of[stands_for[labels]] = units
    rows = [(u, f) for u, row in leaves.items() if stands_for[u] == u for f in row]
    pairs = unit_of[np.array(rows, int).reshape(-1, 2).T]
    reasons = (np.unique(held), SEVERAL_WAYS), (np.unique(inner), INSIDE)
    blocked = [(unit_of[stands_for[found]], why) for found, why in reasons if len(found)]
    return Solution(units, Products(*pairs), blocked)


def _by_unit(labels: np.ndarray, blocks: list) -> tuple[dict[int, tuple[int, ...]], list[int]]:
    """The factors of each product, by label, and what is laid out in several ways: with other
    factors in one place than in another."""
    factors: dict[int, tuple[int, ...]] = {}
    clashing: list[int] = []
    for names, rows in blocks:
        for product, row in zip(labels[names].tolist(), labels[rows].tolist(), strict=True):
            if factors.setdefault(product, tuple(row)) != tuple(row):
                clashing += [product, *row]
    return factors, clashing


def _leaves_of(factors: dict) -> tuple[dict[int, tuple[int, ...]], list[int]]:
    """For each product the factors that are none themselves, and products that are factors of
    their own factors."""
    leaves: dict[int, tuple[int, ...]] = {}
    circular: list[int] = []

    def expand(unit: int, above: tuple[int, ...] = ()) -> tuple[int, ...]:
        if unit not in factors:
            return (unit,)
        if unit in above:
            circular.extend(above)
            return ()
        if unit not in leaves:
            parts = [expand(factor, (*above, unit)) for factor in factors[unit]]
            leaves[unit] = tuple(dict.fromkeys(leaf for part in parts for leaf in part))
        return leaves[unit]

    for unit in factors:
        expand(unit)
    return leaves, circular


def _decided_by_one(leaves: dict, stay: np.ndarray) -> np.ndarray:
    """For each label the one that decides of it: a factor, if all others of a product stay."""
    decides = np.arange(len(stay))
    for product, row in leaves.items():
        free = [leaf for leaf in row if not stay[leaf]]
        if len(free) == 1:
            decides[product] = free[0]
    return decides


def _inner(labels: np.ndarray, factors: dict, made: np.ndarray, heads: np.ndarray) -> list[int]:
    """Factors that stay, although nothing fixes them.

    Groups of heads go with the keys that they read, not single heads in all of them. Where a
    layer lays its channels out along several axes, those along the last go, and heads.
    """
    created, is_head = np.zeros((2, labels.max() + 1), bool)
    created[labels[made]] = True
    is_head[labels[heads]] = True
    inner = []
    for row in factors.values():
        known = created if created[list(row)].any() else is_head
        last = () if known is created else row[-1:]
        inner += [f for f in row if not known[f] and f not in factors and f not in last]
    return inner
