"""Processes that cannot import some packages: one for each set of them, for it takes seconds."""

import atexit
import functools
import json
import os
import subprocess
import sys

RUN_ALL = """
import json, sys, traceback
for name in sys.argv[1:]:
    sys.modules[name] = None
for line in sys.stdin:
    code, *sys.argv[1:] = json.loads(line)
    error = ""
    try:
        exec(code, {"sys": sys})
    except Exception:
        error = traceback.format_exc()
    print("DONE" + json.dumps(error), flush=True)
"""


def in_fresh_process(code: str, *arguments, without=("keras_nisp",)) -> None:
    """Runs code in a process that cannot import some packages.

    Args:
        code: reads its arguments from `sys.argv`.
        arguments: any that have a `str`.
        without: packages.
    """
    process = _process(without)
    process.stdin.write(json.dumps([code, *map(str, arguments)]) + "\n")
    process.stdin.flush()
    line = next((line for line in process.stdout if line.startswith("DONE")), None)
    assert line is not None, f"the process ended with {process.wait()}"
    error = json.loads(line.removeprefix("DONE"))
    assert not error, error[-2000:]


@functools.cache
def _process(without: tuple[str, ...]) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN_ALL, *without],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    atexit.register(process.communicate)
    return process
