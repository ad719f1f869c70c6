"""Tensors stay boxes, whatever is made of names that vary along several axes."""

import keras
import numpy as np
import pytest

import keras_nisp as kn
from keras_nisp.channels.tracer import Tracer

PLACE = (0, 0)


def changed(names, rng):
    """The same names, laid out in another way."""
    kind = rng.integers(5)
    if kind == 0:
        return names.reshape(-1)
    if kind == 1:
        return np.transpose(names, rng.permutation(names.ndim))
    if kind == 2:
        return np.repeat(names, 2, axis=int(rng.integers(names.ndim)))
    if kind == 3:
        axis = int(rng.integers(names.ndim))
        return names.take(np.arange((names.shape[axis] + 1) // 2), axis)
    sizes = [s for size in names.shape for s in ((2, size // 2) if size % 2 == 0 else (size,))]
    return names.reshape(sizes)


@pytest.mark.parametrize("seed", range(300))
def test_what_is_left_is_a_box(seed):
    rng = np.random.default_rng(seed)
    tracer = Tracer(split=[PLACE] if seed % 2 else [])
    arrays, tensors = [], []
    for _ in range(3):
        lines = [tracer.fresh(int(size)) for size in rng.choice([2, 4], rng.integers(1, 3))]
        tracer.creators += [("layer", line) for line in lines]
        shape = [len(line) for line in lines]
        parts = [line.reshape([-1 if i == j else 1 for j in range(len(shape))])
                 for i, line in enumerate(lines)]  # fmt: skip
        arrays.append(tracer.grids.product(parts) if len(parts) > 1 else parts[0])
    for _ in range(12):
        names = changed(arrays[rng.integers(len(arrays))], rng)
        if names.ndim > 4 or names.size > 128:
            continue
        tensor = tracer.traced(names, names.shape, 1, PLACE)
        tensors += [tensor] if tensor.names.size > 1 else []
        arrays.append(np.broadcast_to(tensor.names, names.shape).copy())
        alike = [x for x in arrays[:-1] if x.shape == names.shape]
        if alike and rng.random() < 0.5:
            tracer.join(arrays[-1], alike[rng.integers(len(alike))])
        if tensor.lines and rng.random() < 0.5:
            tracer.grids.heads.append(tensor.line(0))
    if rng.random() < 0.5:
        tracer.fixed.append((rng.choice(tracer.count, 2), "stays"))
    solution = tracer.solve()
    count = solution.units.max() + 1
    for _ in range(5):
        keep = rng.random(count) < 0.6
        keep[solution.units[np.concatenate([np.zeros(0, int), *(n for n, _ in tracer.fixed)])]] = (
            True
        )
        for units, _ in solution.held:
            keep[units] = True
        products, factors = solution.products.units, solution.products.factors
        for product in np.unique(products):  # what is fixed holds its factors
            fixed = np.isin(product, solution.units[[n for x, _ in tracer.fixed for n in x]])
            keep[factors[products == product]] |= fixed
        for product in np.unique(products):
            keep[product] = keep[factors[products == product]].all()
        for tensor in tensors:
            box = np.ones((1,) * tensor.rank, bool)
            for axis, size in enumerate(tensor.names.shape):
                if size > 1:
                    shape = [-1 if i == axis else 1 for i in range(tensor.rank)]
                    box = box & keep[solution.units[tensor.line(axis)]].reshape(shape)
            kept = keep[solution.units[tensor.names]]
            np.testing.assert_array_equal(kept, np.broadcast_to(box, kept.shape))


def test_heads_in_the_batch_axis_stay_and_what_follows_goes_on():
    inputs = keras.Input((5, 4))
    x = keras.layers.Dense(6, name="before")(inputs)
    x = keras.ops.reshape(x, (-1, 3))  # two heads at each of five positions
    x = keras.layers.LayerNormalization()(x)
    x = keras.ops.reshape(x, (-1, 5, 6))
    x = keras.layers.Dense(8, name="after")(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    assert [row.kept for row in plan.creators] == [6, 4, 2]
    assert plan.before.flops == 5 * (4 * 6 + 6 * 8 + 8 * 2)
    assert kn.verify(kn.rebuild(model, plan), model, plan).ok
