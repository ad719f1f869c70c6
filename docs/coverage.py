"""Writes docs/coverage.md: what becomes of channels in every layer and operation of Keras.

python docs/coverage.py
"""

import inspect
import json
import re
import textwrap
from pathlib import Path

import keras

from keras_nisp.channels.registry import registered
from keras_nisp.channels.rule import Barrier, PassThrough
from keras_nisp.keras_graph import keras_layers
from keras_nisp.keras_graph.wrappers import WRAPPED

PAGE = Path(__file__).with_name("coverage.md")
FAMILIES = Path(__file__).parents[1] / "benchmarks" / "results" / "keras_hub_language.json"
MUCH = 0.5  # of the parameters, where what holds them is named
# What stands in no graph by itself.
ABSTRACT = {"Layer", "Wrapper", "InputLayer"}
CELLS = {"GRUCell", "LSTMCell", "SimpleRNNCell", "StackedRNNCells"}
HEADER = """# What becomes of channels in each layer and operation

Written by `python docs/coverage.py` from the registry of rules, for Keras {version}; a test keeps
it true.

* **creates** new channels, **passes** them on, **moves** them, **joins** those of several tensors,
  or **fixes** them: then they stay, and `plan.explain` says why.
* **exact**: whether the rebuilt model gives what the original gives with the removed channels at
  zero. Where statistics are taken over channels, they are taken over those that are kept.
* If a remark does not say how NISP's importance passes, it passes with the absolute weights.
"""


def layer_rows() -> list[tuple]:
    """Name (with aliases), what happens, exactness and remark for each class of keras.layers."""
    names: dict[type, list[str]] = {}
    for name, cls in inspect.getmembers(keras.layers, inspect.isclass):
        if issubclass(cls, keras.Layer) and name not in ABSTRACT:
            names.setdefault(cls, []).append(name)
    rows = []
    for cls, known in names.items():
        title = ", ".join(sorted(known, key=lambda name: name != cls.__name__))
        if cls in WRAPPED:
            rows.append((title, "as inside", "as inside", "Walked as calls of what it wraps."))
        elif cls.__name__ in CELLS:
            rows.append((title, "creates", "yes", "Inside `RNN`."))
        else:
            rows.append((title, *describe(cls)))
    return sorted(rows)


def operation_rows() -> tuple[list[tuple], list[str]]:
    """The same for functions of keras.ops; and those that stand in no graph."""
    rows, others = [], []
    for prefix, module in (("", keras.ops), ("image.", keras.ops.image)):
        for name, _ in inspect.getmembers(module, inspect.isfunction):
            cls = keras_layers.operation_class(prefix + name)
            if cls is None:
                others.append(prefix + name)
            else:
                rows.append((prefix + name, *describe(cls)))
    return rows, others


def describe(cls: type) -> tuple[str, str, str]:
    """What happens to channels, exactness and remark."""
    rule = registered(cls)
    if rule is None:
        return "NO RULE", "", ""
    if isinstance(rule, Barrier):
        return rule.does, "", sentence(rule.reason)
    own = "" if type(rule) is PassThrough else type(rule).__doc__ or ""
    remark = own.strip().replace("|", "\\|")
    exact = "over those kept" if rule.mixes_channels else "yes"
    return rule.does, exact, " ".join(remark.split())


def sentence(reason: str) -> str:
    """The reason of a barrier, which goes on from the name of a layer, as a sentence."""
    text = re.sub("^which ", "", re.sub("^whose ", "its ", reason))
    return f"{text[0].upper()}{text[1:]}."


def shortened(text: str, width: int) -> str:
    """Text for a cell of a table, cut off between words."""
    return textwrap.shorten(text.replace("|", " "), width, placeholder=" ...")


def families() -> str:
    """What is left of the language models of keras-hub, from the results of their benchmark."""
    lines = [
        "\n## Text, audio and multimodal models of keras-hub\n\n"
        "Tiny random backbones (two layers of width 32, four heads) with a Dense head, converted "
        "by `as_functional`, pruned by `Magnitude` at `ratio=0.5` and verified; from "
        "`python benchmarks/keras_hub_language.py`. The difference is that of the outputs from the "
        "original's with the removed channels at zero, relative to their scale. A layer that stays "
        "holds the channels that enter and leave it. If more than half of the parameters are left, "
        "the table says what holds the most channels.\n\n"
        "| model | parameters left | difference | layers that stay |\n|---|---|---|---|\n"
    ]
    for row in json.loads(FAMILIES.read_text())["rows"]:
        stays = []
        for line in row.get("kept", ()):
            kind, why = re.search(r"\((\w+)\): (.*)", line).groups()
            stays.append(f"`{kind}`: {shortened(why.split(', which belong')[0], 160)}")
        if row.get("left", 1) > MUCH and row.get("held"):
            stays.append(f"held: {row['held'][0].replace('|', ' ')}")
        if "error" in row:
            stays.append(shortened(row["error"].partition(": ")[2], 160))
        left = f"{row['left']:.0%}" if "left" in row else "none removed"
        difference = f"{row['difference']:.1e}" if "left" in row else ""
        lines.append(f"| {row['model']} | {left} | {difference} | {'; '.join(stays)} |\n")
    return "".join(lines)


def page() -> str:
    """The whole page."""
    rows, others = operation_rows()
    parts = [HEADER.format(version=keras.__version__)]
    for title, body in (("keras.layers", layer_rows()), ("keras.ops", rows)):
        parts.append(f"\n## {title}\n\n| | names | exact | remark |\n|---|---|---|---|\n")
        parts += [f"| {' | '.join(row)} |\n" for row in body]
    parts.append(
        "\nNo operation of their own, since they make tensors from numbers, are made of "
        f"the others, or give no tensor: {', '.join(others)}.\n"
    )
    return "".join(parts) + families()


if __name__ == "__main__":
    PAGE.write_text(page())
