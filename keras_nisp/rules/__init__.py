"""The rules, one file for each family of layers."""

from keras_nisp.channels.registry import register_rule, rule_for
from keras_nisp.channels.rule import BARRIER, PassThrough, Rule
from keras_nisp.rules import (  # noqa: F401
    activation,
    attention,
    choosing,
    combining,
    convolution,
    dense,
    fixes,
    kinds,
    moving,
    normalization,
    pooling,
    preprocessing,
    products,
    recurrent,
    reduction,
)
from keras_nisp.rules.kinds import ChannelNorm, ChannelWise

__all__ = [
    "BARRIER",
    "ChannelNorm",
    "ChannelWise",
    "PassThrough",
    "Rule",
    "register_rule",
    "rule_for",
]
