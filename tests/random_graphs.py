"""Random Keras graphs as source code, for property tests and benchmarks.

A graph is a table of small integers: the first two rows say what goes in and comes out, every
other row is one step. `write` makes code of a table. A row of zeros is no step, and zero is the
simplest choice everywhere, so Hypothesis shrinks a failure to the few lines that matter.

Functional graphs of feature maps (either data format), sequences and vectors; what a step cannot
be applied to is left out.
"""

import contextlib
from collections.abc import Callable

import keras
import numpy as np
from hypothesis import strategies as st
from random_custom_steps import CUSTOM_STEPS
from random_parts import Graph, Unfit
from random_steps import ALL_STEPS

STEPS = 12
KINDS = ALL_STEPS + CUSTOM_STEPS
NUMBERS = 10  # integers in a row
RANGE = 2520  # of an integer: a multiple of 1 to 10, so that remainders are even

IMPORTS = """import keras
import numpy as np
from keras import layers, ops
import random_layers
"""


class Code(str):
    """Source code that a failing test shows as it is, to be pasted."""

    def __repr__(self) -> str:
        return f'"""\n{self}"""'


def codes() -> st.SearchStrategy[Code]:
    """Hypothesis strategy of random graphs."""
    row = st.tuples(*[st.integers(0, RANGE - 1)] * NUMBERS)
    return st.tuples(*[row] * (2 + STEPS)).map(write)


def sample(seed: int) -> Code:
    """A random graph without Hypothesis; the same for the same seed."""
    rng = np.random.default_rng(seed)
    steps = rng.integers(1, STEPS + 1)
    return write(rng.integers(RANGE, size=(2 + steps, NUMBERS)).tolist())


def build(code: str) -> keras.Model:
    """The model that the code builds."""
    namespace = {}
    exec(compile(code, "<random graph>", "exec"), namespace)
    return namespace["model"]


def write(table) -> Code:
    """The code of a graph."""
    inputs, outputs, *rows = map(chooser, table)
    graph = Graph(inputs)
    for choose in rows:
        with contextlib.suppress(Unfit):
            KINDS[choose(len(KINDS))](graph, choose)
    graph.finish(outputs)
    return Code(IMPORTS + "\n" + "\n".join(graph.lines) + "\n")


def chooser(row) -> Callable[[int], int]:
    """`choose(n)` gives an integer in [0, n): the next one of a row."""
    numbers = iter(row)
    return lambda n: next(numbers, 0) % n
