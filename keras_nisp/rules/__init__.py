"""The rules, one file for each family of layers."""

from keras_nisp.rules import (  # noqa: F401
    activation,
    attention,
    contraction,
    convolution,
    dense,
    fixes,
    merging,
    moving,
    normalization,
    pooling,
    preprocessing,
    recurrent,
    reduction,
)
from keras_nisp.rules.base import BARRIER, PassThrough, Rule, register_rule, rule_for

__all__ = ["BARRIER", "PassThrough", "Rule", "register_rule", "rule_for"]
