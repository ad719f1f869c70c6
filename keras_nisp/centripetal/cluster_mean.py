"""The mean of each cluster, in the place of its members: what C-SGD adds to a step."""

from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.errors import PlanMismatchError
from keras_nisp.keras_graph.keras_training import compiled_by_xla
from keras_nisp.plans.plan import Plan
from keras_nisp.plans.plan_rows import VariablePlan

# A product with a small matrix is one fast operation; wider than this, sums of whole rows of
# the transposed kernel are faster (benchmarks/step_time.py).
MATRIX_LIMIT = 256


class ClusterMean:
    """Replaces slices of a tensor by the mean of their cluster.

    Args:
        clusters: for each axis the cluster of every position.
        by_matrix: whether to use the paper's matrix Gamma at any width.
    """

    def __init__(self, clusters: Mapping[int, Sequence[int]], by_matrix: bool = False):
        self.axes = [
            (_Matrix if by_matrix or len(labels) <= MATRIX_LIMIT else _Segments)(axis, labels)
            for axis, labels in ((axis, np.asarray(row)) for axis, row in clusters.items())
        ]

    def __call__(self, tensor: tf.Tensor) -> tf.Tensor:
        for mean in self.axes:
            tensor = mean(tensor)
        return tensor


class _Matrix:
    """By the matrix Gamma: 1 / size of the cluster where two positions share one, else 0."""

    def __init__(self, axis: int, labels: np.ndarray):
        same = labels[:, None] == labels
        self.axis = axis
        self.gamma = same / same.sum(1)

    def __call__(self, tensor):
        before, after = tensor.shape[: self.axis], tensor.shape[self.axis + 1 :]
        gamma = tf.constant(self.gamma, tensor.dtype)
        if after.num_elements() == 1:
            flat = tf.reshape(tensor, [-1, len(self.gamma)])
            return tf.reshape(tf.matmul(flat, gamma), tensor.shape)
        blocks = tf.reshape(tensor, [before.num_elements(), len(self.gamma), -1])
        return tf.reshape(tf.matmul(gamma, blocks), tensor.shape)


class _Segments:
    """By means over whole rows: linear in the size of the tensor."""

    def __init__(self, axis: int, labels: np.ndarray):
        self.axis = axis
        self.labels = np.unique(labels, return_inverse=True)[1]
        self.members = np.argsort(self.labels, kind="stable")  # of one cluster after another

    def __call__(self, tensor):
        order = [self.axis, *(i for i in range(len(tensor.shape)) if i != self.axis)]
        means = self._means(tf.transpose(tensor, order))
        return tf.transpose(tf.gather(means, self.labels), np.argsort(order))

    def _means(self, rows):
        """Of each cluster, in one pass over the memory. XLA does not know that operation."""
        if not compiled_by_xla():
            return tf.sparse.segment_mean(rows, self.members, self.labels[self.members])
        sizes = np.bincount(self.labels).reshape([-1] + [1] * (len(rows.shape) - 1))
        sums = tf.math.unsorted_segment_sum(rows, self.labels, len(sizes))
        return sums * tf.constant(1 / sizes, rows.dtype)


class ClusteredVariables:
    """Those of a list of variables that own clustered channels.

    Args:
        plan: from `plan_merging`.
        variables: the trainable variables of its model.

    Raises:
        PlanMismatchError: they are not.
    """

    def __init__(self, plan: Plan, variables: Sequence[keras.Variable]):
        self.rows = {
            index: (row.is_kernel, ClusterMean(row.clusters))
            for index, row in enumerate(match_variables(plan, variables))
            if row is not None and row.clusters
        }

    def __contains__(self, index: int) -> bool:
        return index in self.rows

    def __getitem__(self, index: int) -> tuple[bool, ClusterMean]:
        """Whether the variable at an index is a kernel, and the mean of its clusters."""
        return self.rows[index]


def match_variables(plan: Plan, variables: Sequence[keras.Variable]) -> list[VariablePlan | None]:
    """What the plan says of each variable: by position, or by path if some are not trained.

    Args:
        plan: from `plan_merging`.
        variables: the trainable variables of the model.

    Raises:
        PlanMismatchError: they are not those of the model that the plan was made for.
    """
    rows = plan.variables
    if [row.shape for row in rows] == [tuple(v.shape) for v in variables]:
        return list(rows)
    by_path = {(row.path, row.shape): row for row in rows}
    found = [by_path.get((v.path, tuple(v.shape))) for v in variables]
    missing = [row.path for row in rows if row.clusters and row not in found]
    if missing or len(by_path) < len(rows):
        name = f"'{missing[0]}'" if missing else "one of them"
        raise PlanMismatchError(
            f"Expected the trainable variables of '{plan.model}', for which the plan was made. "
            f"Received {len(variables)} variables, among which {name} is not found in its shape: "
            "the model has another structure, or this layer is not trained. Make a new plan, with "
            "`exclude=` for layers that are not trained."
        )
    return found
