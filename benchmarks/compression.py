"""Size, latency and accuracy of TFLite files: unstructured sparsity by TFMOT beside NISP.

    python benchmarks/compression.py --data-dir DIR [--seeds 3]

A network is trained once for each seed. Then each way of making it smaller gets the same epochs
of fine-tuning, with the same optimizer: magnitude sparsity of 50 % and 75 % (TFMOT, the share
rises over the first half of fine-tuning), NISP at 50 % of the FLOPs (also with channel counts in
multiples of 16, which is what kernels for AVX-512 compute in), and both at once (TFMOT on the
pruned network, by `to_tf_keras`). "Dense, trained on" is the original with these epochs.

BatchNorm of each is re-estimated at the end on the same data: running averages lag behind kernels
that lose three quarters of their entries. Then it becomes a float32 and an int8 file, the latter
after training, by 200 samples. Sparse models go back to Keras 3 first, so that one converter makes
all files. Accuracy is that of the file in the interpreter; latency is measured in turns with the
dense float32 file.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from quantization_aware import tflite_accuracy
from recipes import DATASETS, compile_for, load, residual_cnn
from results import save_results

import keras_nisp as kn

RATE = 0.02  # of fine-tuning
UPDATES = 20  # of the masks while sparsity rises
FIGURES = ("bytes", "gzip_bytes", "latency", "accuracy")


def some(x, count):
    return x[np.random.default_rng(0).permutation(len(x))[:count]]


def copy_of(model):
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def fine_tuned(model, data, args):
    """A Keras 3 model after the epochs of fine-tuning that all get."""
    x, y = data
    compile_for(model, args.fine_tuning * (len(x) // args.batch_size), RATE)
    model.fit(x, y, args.batch_size, args.fine_tuning, verbose=0)
    return model


def made_sparse(model, sparsity, data, args):
    """A copy of a Keras 3 model, fine-tuned by TFMOT until this share of each kernel is zero."""
    import tf_keras

    pruning = kn.import_tfmot().sparsity.keras
    x, y = data
    steps = args.fine_tuning * (len(x) // args.batch_size)
    frequency = max(1, steps // 2 // UPDATES)
    # TFMOT prunes at multiples of the frequency only: the last must be the end.
    schedule = pruning.PolynomialDecay(0.0, sparsity, 0, frequency * UPDATES, frequency=frequency)
    sparse = pruning.prune_low_magnitude(kn.to_tf_keras(model), pruning_schedule=schedule)
    rate = tf_keras.optimizers.schedules.CosineDecay(RATE, steps)
    sparse.compile(  # what `compile_for` does in Keras 3
        tf_keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=5e-3),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    callbacks = [pruning.UpdatePruningStep()]
    sparse.fit(x, y, args.batch_size, args.fine_tuning, verbose=0, callbacks=callbacks)
    stripped = pruning.strip_pruning(sparse)
    copy = copy_of(model)
    for layer in copy.layers:
        layer.set_weights(stripped.get_layer(layer.name).get_weights())
    return copy


def models(model, data, args):
    """The models to compare, by name; each is made when it is asked for."""
    x, _ = data
    calibration = some(x, 2000)

    def small(round_to=1):
        budget = kn.Budget(flops_reduction=0.5, round_to=round_to, allocation="uniform")
        importance = kn.NISP(calibration)
        return kn.prune(model, importance, calibration=calibration, budget=budget, verbose=0)

    yield "dense", copy_of(model)
    yield "dense, trained on", fine_tuned(copy_of(model), data, args)
    yield "TFMOT, 50 % zeros", made_sparse(model, 0.5, data, args)
    yield "TFMOT, 75 % zeros", made_sparse(model, 0.75, data, args)
    yield "NISP, 50 % FLOPs", fine_tuned(small(), data, args)
    yield "NISP, 50 % FLOPs, round_to=16", fine_tuned(small(round_to=16), data, args)
    yield "NISP, 50 % FLOPs; TFMOT, 50 % zeros", made_sparse(small(), 0.5, data, args)


def measure(model, quantization, dense, folder, data, args):
    """Figures of one file; `dense` is the path of the file that latency is compared with."""
    (x, _), test = data
    path = folder / f"model_{quantization}.tflite"
    representative = some(x, 200) if quantization else None
    export = kn.export_tflite(model, path, quantization, representative, verbose=0)
    turns = {"rounds": args.rounds, "repeats": args.repeats}
    speedup = kn.benchmark(dense, path, threads=1, **turns).speedup
    return {
        "bytes": export.bytes,
        "gzip_bytes": export.gzip_bytes,
        "latency": 1 / speedup,
        "accuracy": tflite_accuracy(path.read_bytes(), *test),
    }


def run_seed(seed, data, args, rows):
    train, _ = data
    x, y = train
    keras.utils.set_random_seed(seed)
    model = compile_for(residual_cnn(x.shape[1:]), args.epochs * (len(x) // args.batch_size))
    model.fit(x, y, args.batch_size, args.epochs, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        dense = Path(folder) / "dense.tflite"
        kn.export_tflite(model, dense, verbose=0)
        for name, net in models(model, train, args):
            kn.recalibrate(net, some(x, 4000))
            cost = kn.profile(net).total
            kernels = [np.asarray(w) for w in net.trainable_weights if len(w.shape) > 1]
            zeros = sum((k == 0).sum() for k in kernels) / sum(k.size for k in kernels)
            for quantization in (None, "int8"):
                figures = measure(net, quantization, dense, Path(folder), data, args)
                row = {"seed": seed, "model": name, "quantization": quantization or "float32"}
                row |= {"parameters": cost.parameters, "flops": cost.flops, "zeros": float(zeros)}
                rows.append(row | figures)
                print(rows[-1], flush=True)


def table(rows):
    """Means over seeds, as Markdown; of accuracy the standard deviation, too."""
    lines = ["| model | file | bytes | gzip | latency | accuracy |", "|---|---|---|---|---|---|"]
    kinds = dict.fromkeys((row["model"], row["quantization"]) for row in rows)
    for kind in kinds:
        same = [row for row in rows if (row["model"], row["quantization"]) == kind]
        mean = {key: np.mean([row[key] for row in same]) for key in same[0] if key in FIGURES}
        deviation = np.std([row["accuracy"] for row in same])
        lines.append(
            f"| {kind[0]} | {kind[1]} | {mean['bytes']:,.0f} | {mean['gzip_bytes']:,.0f} "
            f"| {mean['latency']:.2f} | {mean['accuracy']:.4f} ± {deviation:.4f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="fashion_mnist", choices=DATASETS)
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--fine-tuning", type=int, default=4, help="epochs")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=30, help="of measuring latency")
    parser.add_argument("--repeats", type=int, default=50, help="runs in a round")
    parser.add_argument("--dry-run", action="store_true", help="keep no results")
    args = parser.parse_args()
    data = load(args.dataset, args.data_dir)
    rows = []
    for seed in range(args.seeds):
        run_seed(seed, data, args, rows)
        if not args.dry_run:
            save_results("compression", {"rows": rows}, args)
    print(table(rows))


if __name__ == "__main__":
    main()
