"""The calls of a model, recorded: what is called with what, and which outputs go where."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_nisp.keras_graph import calling
from keras_nisp.keras_graph.keras_models import body
from keras_nisp.keras_graph.masks import pass_on_counts
from keras_nisp.keras_graph.walking import walk


@dataclasses.dataclass(frozen=True)
class Token:
    """Stands for a tensor: the output of a call, or (at -1) an input of the model."""

    call: int
    output: int


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """A call of a model, with tokens for tensors."""

    operation: keras.Operation
    path: str
    args: tuple
    kwargs: dict

    @property
    def tokens(self) -> list[Token]:
        return [x for x in keras.tree.flatten((self.args, self.kwargs)) if isinstance(x, Token)]

    def fill(self, values: dict[Token, Any]) -> tuple[tuple, dict]:
        """The arguments, with values for tokens."""
        return keras.tree.map_structure(
            lambda x: values[x] if isinstance(x, Token) else x, (self.args, self.kwargs)
        )

    def run(self, values: dict[Token, Any], weights: Sequence[tuple] = ()) -> list:
        """The outputs of the call in inference mode, from a fresh state.

        Args:
            values: for tokens.
            weights: pairs of a weight and the value that it is to have.
        """
        args, kwargs = self.fill(values)
        fresh = [
            (state, tf.zeros_like(state)) for state in calling.recurrent_states(self.operation)
        ]
        with keras.StatelessScope(state_mapping=[*fresh, *weights]):
            outputs = keras.tree.flatten(calling.infer(self.operation, *args, **kwargs))
        pass_on_counts(args, kwargs, outputs)
        return outputs


def recorded(model: keras.Model, counts: list[int]) -> list[Step]:
    """The calls of a model, in order.

    Args:
        model: a functional or Sequential model.
        counts: how many outputs each call has.
    """
    steps: list[Step] = []

    def visit(site, args, kwargs):
        index = len(steps)
        steps.append(Step(site.operation, site.path, args, kwargs))
        count = counts[index] if index < len(counts) else 1
        return [Token(index, i) for i in range(count)]

    walk(model, [Token(-1, i) for i in range(len(body(model).inputs))], visit)
    return steps
