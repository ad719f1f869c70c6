"""Writes docs/quickstart.ipynb: Getting started as a notebook, run, with its outputs.

python docs/notebook.py       (pip install ".[docs]")
"""

import os
import re
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

FOLDER = Path(__file__).parent
FIRST, LAST = "## Preamble", "## From the shell"


def cells(page: str):
    """Text and Python of a part of the page, in turns."""
    part = page[page.index(FIRST) : page.index(LAST)]
    yield new_markdown_cell("# Getting started with keras_nisp")
    for text, code in re.findall(r"(?s)(.*?)(?:```python[^\n]*\n(.*?)```|\Z)", part):
        for make, source in ((new_markdown_cell, text), (new_code_cell, code)):
            if source.strip():
                yield make(source.strip())


def printed(cell) -> str:
    """What a cell printed, as it stands in the end: progress bars overwrite their line."""
    streams = (out.text for out in cell.outputs if out.get("name") == "stdout")
    text = re.sub(r"\x1b\[[\d;]*m", "", "".join(streams))
    lines = (re.split(r"[\r\b]+", line.rstrip("\r\b "))[-1] for line in text.split("\n"))
    return "\n".join(line for line in lines if "\u2501" not in line)


def main():
    book = new_notebook(cells=list(cells((FOLDER / "index.md").read_text(encoding="utf-8"))))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryDirectory() as folder:  # for the files that it writes
        NotebookClient(book, resources={"metadata": {"path": folder}}).execute()
    for number, cell in enumerate(book.cells):
        cell.id = f"cell-{number}"  # the same each time
        cell.metadata = {}  # how long it took
        if cell.cell_type == "code" and (text := printed(cell)):
            cell.outputs = [new_output("stream", name="stdout", text=text)]
    nbformat.write(book, FOLDER / "quickstart.ipynb")


if __name__ == "__main__":
    main()
