"""How far the members of clusters are from identical."""

import dataclasses
from collections import defaultdict

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.centripetal.cluster_mean import ClusteredVariables
from keras_nisp.io.shown import Shown
from keras_nisp.plans.plan import Plan


@dataclasses.dataclass(frozen=True)
class VariableDeviation:
    """The deviation of one variable.

    Attributes:
        path: path of the variable.
        is_kernel: whether it is a kernel.
        squares: sum of squared differences from the mean of the cluster.
        norm: sum of the squares of the variable.
    """

    path: str
    is_kernel: bool
    squares: float
    norm: float


@dataclasses.dataclass(frozen=True, repr=False)
class Deviation(Shown):
    """The deviation of a model from merged clusters; `print` it.

    Attributes:
        variables: a `VariableDeviation` for each variable that owns clustered channels.
    """

    variables: tuple[VariableDeviation, ...]

    @property
    def squares(self) -> float:
        """The paper's measure: squared differences, summed over all kernels."""
        return sum(row.squares for row in self.variables if row.is_kernel)

    @property
    def relative(self) -> float:
        """The deviation relative to the weights: root of `squares` over the squared weights."""
        return _ratio(self.variables)

    @property
    def layers(self) -> dict[str, float]:
        """The relative deviation of each layer."""
        rows = defaultdict(list)
        for row in self.variables:
            rows[row.path.rsplit("/", 1)[0]].append(row)
        return {layer: _ratio(variables) for layer, variables in rows.items()}

    @property
    def largest(self) -> tuple[str, float]:
        """The layer with the largest relative deviation, and its value."""
        return max(self.layers.items(), key=lambda item: item[1])

    def __str__(self) -> str:
        layer, value = self.largest
        return f"deviation {self.relative:.1e} of the weights (largest {value:.1e}, in '{layer}')"


def _ratio(rows) -> float:
    squares, norm = sum(row.squares for row in rows), sum(row.norm for row in rows)
    return float(np.sqrt(squares / norm)) if norm else 0.0


def deviation(model: keras.Model, plan: Plan) -> Deviation:
    """Measures how far the clusters of a plan are from identical.

    Args:
        model: the model that the plan was made for, or one of the same structure.
        plan: a plan from `plan_merging`.

    Returns:
        A `Deviation`.

    Raises:
        PlanMismatchError: the plan is for a model of another structure.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(3)])
    >>> deviation(model, plan_merging(model, ratio=0.5)).relative > 0.1
    True
    """
    plan.check_merges()
    variables = model.trainable_variables
    if len(variables) < len(plan.variables):  # some were frozen since
        variables = model.weights
    return deviation_of(variables, ClusteredVariables(plan, variables))


def deviation_of(variables: list[keras.Variable], clustered: ClusteredVariables) -> Deviation:
    """`deviation` for variables and their clusters."""
    rows = []
    for index, (is_kernel, mean) in clustered.rows.items():
        weights = tf.convert_to_tensor(variables[index])
        if weights.dtype.size < 4:  # squares of half precision would vanish
            weights = tf.cast(weights, tf.float32)
        squares = tf.reduce_sum((weights - mean(weights)) ** 2)
        norm = tf.reduce_sum(weights**2)
        rows.append(
            VariableDeviation(variables[index].path, is_kernel, float(squares), float(norm))
        )
    return Deviation(tuple(rows))
