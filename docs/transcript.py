"""Writes docs/command_line.md's transcript: runs every command in it.

    python docs/transcript.py --data-dir DIR

The commands are in `CHAIN`; a test runs the same ones on smaller data.
"""

import argparse
import itertools
import os
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
MARKS = "<!-- transcript: written by docs/transcript.py -->", "<!-- end of the transcript -->"

WIDTH = 80  # of the terminal
CHAIN = """
python examples/train.py --dataset fashion_mnist --data-dir DATA -o model.keras
keras-nisp inspect model.keras
keras-nisp prune model.keras --calibration tfds:fashion_mnist --data-dir DATA --flops 0.5 -o small.keras --plan plan.json --report report.html
python examples/train.py --dataset fashion_mnist --data-dir DATA --model small.keras -o tuned.keras
keras-nisp diff model.keras tuned.keras --data tfds:fashion_mnist/test --data-dir DATA
keras-nisp export tuned.keras --serving models/fashion --top-k 3 --data tfds:fashion_mnist/test --data-dir DATA
keras-nisp export tuned.keras --tflite tuned.tflite --data tfds:fashion_mnist --data-dir DATA
keras-nisp export tuned.keras --tflite tuned_int8.tflite --quantization int8 --data tfds:fashion_mnist --data-dir DATA
keras-nisp benchmark model.keras tuned.tflite
keras-nisp benchmark tuned.tflite tuned_int8.tflite
keras-nisp sensitivity tuned.keras --data tfds:fashion_mnist/test --data-dir DATA -o sensitivity.json
keras-nisp apply plan.json model.keras -o again.keras
keras-nisp merge model.keras --flops 0.5 -o merging.json --steps 20000
""".strip().splitlines()  # noqa: E501


def run(command: str, folder: Path, data_dir: str, *more: str) -> str:
    """Runs one command of the chain in a folder.

    Args:
        command: a line of `CHAIN`.
        folder: where files are.
        data_dir: stands for `DATA`.
        more: arguments for `examples/train.py`.

    Returns:
        What it printed.
    """
    words = [data_dir if word == "DATA" else word for word in shlex.split(command)]
    if words[0] == "python":
        words = [sys.executable, str(EXAMPLES / Path(words[1]).name), *words[2:], *more]
    else:
        words[0] = str(Path(sys.executable).with_name(words[0]))
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "COLUMNS": str(WIDTH)}
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{command}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def folded(line: str) -> list[str]:
    """A line as a terminal of `WIDTH` columns shows it, broken between words."""
    if line.startswith(" "):  # of a table
        return [line]
    whole = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(line, WIDTH, **whole) or [""]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="TFDS data directory")
    data_dir = str(Path(parser.parse_args().data_dir).resolve())
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for command in CHAIN:
            print(command, flush=True)
            output = run(command, Path(folder), data_dir)
            output = re.sub(r"^(\d+/\d+ - |Epoch ).*\n", "", output, flags=re.MULTILINE)
            shown = output.replace(data_dir, "DATA").strip("\n").splitlines()
            lines += [f"$ {command}", *itertools.chain(*map(folded, shown)), ""]
    page = HERE / "command_line.md"
    text = page.read_text(encoding="utf-8")
    before, after = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
    body = "\n".join(["", "", "```console", *lines[:-1], "```", "", ""])
    page.write_text(f"{before}{MARKS[0]}{body}{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
