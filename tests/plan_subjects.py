"""Small models with plans of every kind: whose files `plan_mutations.py` damages."""

import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
from keras import layers

import keras_nisp as kn
from keras_nisp.channels.channel_map import ChannelMap

FILES = Path(__file__).parent / "plan_files"  # as earlier releases wrote them, of the models here


def earlier_file(version: int, name: str) -> dict:
    """What a file of an earlier release holds."""
    return json.loads((FILES / f"version_{version}_{name}.json").read_text())


@dataclasses.dataclass
class Subject:
    """A model, a plan for it, and what the plan makes of it.

    Attributes:
        name: says of which kind it is.
        model: the model.
        plan: the plan.
        channel_map: the traced model.
        weights: of the rebuilt model.
        samples: for the model.
    """

    name: str
    model: keras.Model
    plan: kn.Plan
    channel_map: ChannelMap
    weights: list[np.ndarray]
    samples: list[np.ndarray]


def subjects() -> list[Subject]:
    """Plans that prune, merge, take whole groups, and are for several inputs."""
    keras.utils.set_random_seed(0)
    residual, joined, grouped = _residual(), _several_inputs(), _grouped()
    whole = kn.plan_pruning(grouped, kn.Random(), ratio=0.5, whole_groups="*")
    plans = [
        ("pruning", residual, kn.plan_pruning(residual, kn.Magnitude(), ratio=0.5)),
        ("merging", residual, kn.plan_merging(residual, ratio=0.5)),
        ("whole groups", grouped, whole),
        ("inputs", joined, kn.plan_pruning(joined, kn.Magnitude(), flops_reduction=0.3)),
        ("merging, inputs", joined, kn.plan_merging(joined, ratio=0.4)),
    ]
    return [_subject(*row) for row in plans]


def _subject(name: str, model: keras.Model, plan: kn.Plan) -> Subject:
    small = kn.rebuild(model, plan, force=True, verbose=0)
    rng = np.random.default_rng(0)
    shapes = plan.input_shapes
    samples = [rng.normal(size=(16, *shape)).astype("float32") for shape in shapes]
    return Subject(name, model, plan, plan.trace(model), small.get_weights(), samples)


def _residual() -> keras.Model:
    """A residual connection, a concatenation and BatchNormalization, of any input size."""
    inputs = keras.Input((None, None, 3))
    x = stem = layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    x = layers.Conv2D(6, 1, name="inner")(layers.ReLU()(x))
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Add()([stem, layers.Conv2D(8, 3, padding="same", name="outer")(layers.ReLU()(x))])
    x = layers.Concatenate()([x, layers.Conv2D(4, 1, name="side")(inputs)])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(5, name="head")(x), name="residual")


def _several_inputs() -> keras.Model:
    """A sequence and numbers, with attention."""
    sequence, numbers = keras.Input((5, 6), name="sequence"), keras.Input((7,), name="numbers")
    x = layers.Dense(8, name="tokens")(sequence)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = layers.Flatten()(x)
    y = layers.Dense(6, activation="relu", name="numbers_in")(numbers)
    x = layers.Dense(10, activation="relu", name="both")(layers.Concatenate()([x, y]))
    outputs = [layers.Dense(2, name="first")(x), layers.Dense(1, name="second")(x)]
    return keras.Model([sequence, numbers], outputs, name="joined")


def _grouped() -> keras.Model:
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, activation="relu", name="first")(inputs)
    x = layers.Conv2D(12, 3, groups=4, activation="relu", name="grouped")(x)
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x), name="grouped")
