"""For mkdocstrings: docstrings in Keras' style, in the sections that Griffe knows."""

import re
from typing import Any

import griffe

# Arguments that share a description, which may go on in lines that are indented further.
TOGETHER = re.compile(
    r"^(?P<margin> +)(?P<names>\w+(?:, \w+)+)(?P<text>: .*(?:\n(?P=margin) +.*)*)", re.M
)
EXAMPLE = re.compile(r"^Example:(?P<text>.*(?:\n.*)*?)(?=\n\S+:(?: |\n)|\Z)", re.M)


class KerasDocstrings(griffe.Extension):
    """Gives each argument an entry of its own, and shows an example as code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            text = TOGETHER.sub(_apart, obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub(_section, text)


def _apart(found: re.Match) -> str:
    names = found["names"].split(", ")
    return "\n".join(found["margin"] + name + found["text"] for name in names)


def _section(found: re.Match) -> str:
    lines = found["text"].strip().splitlines()
    return "\n".join(["Examples:", *(f"    {line}".rstrip() for line in lines), ""])
