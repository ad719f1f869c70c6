"""Latency of single layers against their widths: in blocks of how many channels does it rise?

    python benchmarks/alignment.py

Every width from 16 to 80 is converted and timed alone in the TFLite interpreter, batch 1, 1 thread,
in random order, several times; the fastest counts. The block is the one whose staircase
`a + b * ceil(width / block)` lies nearest to the measurements (least squares). Beside it stands
what one channel more than 32 and three fewer than 64 change.
"""

import argparse
import os
import random

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from results import save_results

from keras_nisp.export.interpreter import runtime_name
from keras_nisp.latency.timing import seconds_of

# Kind and axis -> the layer and its input shape at a width.
SWEEPS = {
    ("1x1 convolution", "outputs"): lambda w: (keras.layers.Conv2D(w, 1), (1, 28, 28, 128)),
    ("1x1 convolution", "inputs"): lambda w: (keras.layers.Conv2D(128, 1), (1, 28, 28, w)),
    ("3x3 convolution", "outputs"): lambda w: (_conv3(w), (1, 14, 14, 64)),
    ("3x3 convolution", "inputs"): lambda w: (_conv3(64), (1, 14, 14, w)),
    ("depthwise convolution", "channels"): lambda w: (_depthwise(), (1, 56, 56, w)),
    ("dense", "outputs"): lambda w: (keras.layers.Dense(w), (1, 4096)),
    ("dense", "inputs"): lambda w: (keras.layers.Dense(4096), (1, w)),
}
BLOCKS = (1, 2, 4, 8, 16, 32, 64)


def _conv3(width):
    return keras.layers.Conv2D(width, 3, padding="same")


def _depthwise():
    return keras.layers.DepthwiseConv2D(3, padding="same")


def measure(make, widths, quantization, passes):
    """Seconds at each width."""
    best = dict.fromkeys(widths, np.inf)
    for _ in range(passes):
        for width in random.sample(widths, len(widths)):
            layer, shape = make(width)
            best[width] = min(best[width], seconds_of(layer, (shape,), quantization))
    return np.array([best[width] for width in widths])


def residuals(widths, seconds):
    """For each block, the share of the variance that its staircase does not explain."""
    shares = {}
    for block in BLOCKS:
        stairs = np.ceil(np.array(widths) / block)
        basis = np.stack([np.ones(len(widths)), stairs], 1)
        error = seconds - basis @ np.linalg.lstsq(basis, seconds, rcond=None)[0]
        shares[block] = float(np.var(error) / np.var(seconds))
    return shares


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--step", type=int, default=1, help="between widths")
    args = parser.parse_args()
    widths, rows = list(range(16, 81, args.step)), []
    for quantization in (None, "int8"):
        for (kind, axis), make in SWEEPS.items():
            seconds = measure(make, widths, quantization, args.passes)
            unexplained = residuals(widths, seconds)
            at = dict(zip(widths, seconds.tolist(), strict=True))
            row = {
                "kind": kind,
                "axis": axis,
                "quantization": quantization,
                "block": min(unexplained, key=unexplained.get),
                "unexplained": unexplained,
                "33_over_32": at[33] / at[32] if 33 in at else None,
                "61_over_64": at[61] / at[64] if 61 in at else None,
                "microseconds": {width: round(1e6 * s, 2) for width, s in at.items()},
            }
            rows.append(row)
            print({k: v for k, v in row.items() if k != "microseconds"}, flush=True)
            save_results("alignment", {"runtime": runtime_name(), "rows": rows}, args)


if __name__ == "__main__":
    main()
