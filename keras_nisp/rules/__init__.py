"""The rules, one file for each family of layers."""

from keras_nisp.channels.registry import register_rule, rule_for
from keras_nisp.channels.rule import BARRIER, PassThrough, Rule
from keras_nisp.rules import (  # noqa: F401
    activation,
    attention,
    combining,
    convolution,
    dense,
    fixes,
    moving,
    normalization,
    pooling,
    preprocessing,
    products,
    recurrent,
    reduction,
)

__all__ = ["BARRIER", "PassThrough", "Rule", "register_rule", "rule_for"]
