"""Trains a small residual CNN and saves it, or fine-tunes a model that was saved.

python examples/train.py --dataset fashion_mnist -o model.keras
keras-nisp prune model.keras ... -o small.keras
python examples/train.py --dataset fashion_mnist --model small.keras -o tuned.keras
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from recipes import DATASETS, accuracy, compile_for, load, residual_cnn

EPOCHS = {"digits": 30, "mnist": 4, "fashion_mnist": 4, "cifar10": 12}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits", choices=DATASETS)
    parser.add_argument("--data-dir", help="TFDS data directory; default: download")
    parser.add_argument("--model", type=Path, help="fine-tune this one")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a .keras file")
    parser.add_argument("--epochs", type=int, help="default: a few, half of them to fine-tune")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    keras.utils.set_random_seed(args.seed)

    (x, y), (x_test, y_test) = load(args.dataset, args.data_dir)
    epochs = args.epochs or EPOCHS[args.dataset] // (2 if args.model else 1)
    if args.model:
        model = keras.models.load_model(args.model, compile=False)
        print(f"accuracy before fine-tuning {accuracy(model, x_test, y_test):.4f}")
    else:
        model = residual_cnn(x.shape[1:])
    rate = 0.02 if args.model else 0.05
    compile_for(model, epochs * (len(x) // args.batch_size), rate)
    model.fit(x, y, args.batch_size, epochs, validation_data=(x_test, y_test), verbose=2)
    model.save(args.output)
    keras.models.load_model(args.output, compile=False).save(args.output)  # without slots
    print(f"{args.output}: accuracy {accuracy(model, x_test, y_test):.4f}")


if __name__ == "__main__":
    main()
