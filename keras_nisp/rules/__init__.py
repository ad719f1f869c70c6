"""The rules, one file for each family of layers."""

from keras_nisp.rules import (  # noqa: F401
    activation,
    convolution,
    dense,
    merging,
    normalization,
    pooling,
    reshaping,
)
from keras_nisp.rules.base import BARRIER, PassThrough, Rule, register_rule, rule_for

__all__ = ["BARRIER", "PassThrough", "Rule", "register_rule", "rule_for"]
