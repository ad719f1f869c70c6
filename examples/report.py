"""Writes the page of a plan: a small residual CNN, trained briefly on scikit-learn's digits.

    python examples/report.py                   out/report.html
    python examples/report.py --merge           of a plan for C-SGD

A picture of the first page is in docs/report.png.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from recipes import accuracy, compile_for, load, residual_cnn

import keras_nisp as kn


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--merge", action="store_true", help="merge channels, do not remove them")
    parser.add_argument("--output", type=Path, default=Path("out/report.html"))
    args = parser.parse_args()

    keras.utils.set_random_seed(0)
    (x, y), test = load("digits")
    model = residual_cnn(x.shape[1:])
    compile_for(model, args.epochs * (len(x) // 64))
    model.fit(x, y, 64, args.epochs, verbose=2)
    if args.merge:
        plan, outcome = kn.plan_merging(model, flops_reduction=0.5), None
    else:
        plan = kn.plan_pruning(model, kn.NISP(x), flops_reduction=0.5)
        small = kn.rebuild(model, plan)
        outcome = {"surgery": kn.verify(small, model, plan, x)}
        kn.recalibrate(small, x, model, plan)
        before, after = (accuracy(network, *test) for network in (model, small))
        outcome["accuracy"] = f"{before:.4f} -> {after:.4f} on {len(test[0])} images, repaired"
    args.output.parent.mkdir(parents=True, exist_ok=True)
    plan.report(args.output, f"python examples/report.py{' --merge' * args.merge}", outcome)
    print(f"{plan}\n\nThe plan as a page: {args.output}")


if __name__ == "__main__":
    main()
